"""Rows of a batch one behind the other, without padding and without a mask, on a CPU.

The rows of a step are drawn at random, so a quarter of a padded batch is padding, which costs what real
tokens cost, and a mask keeps attention from its fastest kernel. Packed, every layer but attention sees the
tokens of all rows at once, and attention, row by row, transformers' own function without a mask.
"""

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kdag.models.same import TOLERANCE, distance, same

NAME = "kdag_packed"  # no mask is registered under it, so transformers makes none


def attention(module, query, key, value, attention_mask, row_lengths=None, **kwargs):
    """query, key, value: [1, heads, tokens, d], the rows one behind the other, `row_lengths` tokens each."""
    if row_lengths is None:  # rows of one length, an entry of the batch each
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    rows = zip(*(tensor.split(row_lengths, 2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], 1), None


AttentionInterface.register(NAME, attention)


def forward(body, input_ids, attention_mask):
    """Hidden states [B, L, d] of right-padded rows [B, L]; zeros where the mask is."""
    real = attention_mask.bool()
    lengths = real.sum(1).tolist()
    out = body(
        input_ids=input_ids[real][None],
        position_ids=torch.cat([torch.arange(n, device=input_ids.device) for n in lengths])[None],
        row_lengths=lengths,
        use_cache=False,
    )
    hidden = out.last_hidden_state[0]
    padded = hidden.new_zeros(*real.shape, hidden.shape[-1])
    padded[real] = hidden
    return padded


def on(model) -> bool:
    return model.config._attn_implementation == NAME


@torch.no_grad()
def turn_on(model) -> bool:
    """Pack from now on, if the model's layers keep rows apart; says whether. For passes over whole rows."""
    config = model.config.get_text_config()
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    before = model.config._attn_implementation
    if before != "sdpa" or not full or getattr(config, "sliding_window", None):
        return False
    ids = torch.arange(10).remainder(config.vocab_size).reshape(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    other = torch.stack([ids[0].flip(0), ids[1]])
    body = model.base_model
    padded = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    model.set_attn_implementation(NAME)
    try:
        first, second = forward(body, ids, mask), forward(body, other, mask)
    except TypeError:  # the model has no place for row_lengths
        apart = False
    else:
        real = mask.bool()
        # Not bit for bit: experts' products over all tokens may be summed in another order.
        leaked = distance(first[1], second[1]) > TOLERANCE[first.dtype] / 10
        apart = not leaked and same(padded[real], first[real])
    if not apart:
        model.set_attn_implementation(before)
    return apart

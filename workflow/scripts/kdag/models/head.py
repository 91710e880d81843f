"""Hidden states and the head that turns them into logits.

Everywhere below logits are cap(hidden @ head.T) of hidden states [n, d] and a head [V, d]. What families put
between the two is brought into that form here: a factor of the logits (Cohere, Granite) goes into the hidden
states, a bias (Phi) is a further column of the head, next to a state of ones, and a soft cap (Gemma 2) is a
number c for c tanh(z / c), which is handed on.
"""

import contextlib

import torch

from kdag.job.errors import UserError
from kdag.losses.cap import capped
from kdag.models import packed
from kdag.models.same import distance, same


def base_model(model):
    """The transformers model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def hidden_states(model, input_ids, attention_mask) -> torch.Tensor:
    """Hidden states after the final norm, [B, L, d], next to the head that takes them. No logits are made.

    Rows are padded on the right, behind everything that a causal model sees: without the mask it computes the
    same, by faster kernels.
    """
    base = base_model(model)
    body, head = base.base_model, base.get_output_embeddings()
    if packed.on(base):
        hidden = packed.forward(body, input_ids, attention_mask)
    else:
        out = body(input_ids=input_ids, use_cache=False)
        hidden = out.last_hidden_state.to(head.weight.device)
    if (factor := logit_factor(base.config)) != 1:
        hidden = hidden * factor
    if head.bias is not None:
        hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:-1], 1)], -1)
    return hidden


def logit_factor(config) -> float:
    """What a family multiplies its logits with: Cohere's logit_scale, one over Granite's logits_scaling."""
    config = config.get_text_config()
    return (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)


def logit_cap(model) -> float | None:
    """c, if the model's logits are c tanh(z / c); None if they are as they are."""
    return getattr(base_model(model).config.get_text_config(), "final_logit_softcapping", None) or None


@contextlib.contextmanager
def forward_replaced(model, forward):
    """While this is open, model(...) is forward(...).

    DistributedDataParallel prepares a backward pass in its own forward, so whatever it is to see, the
    loss from hidden states included, has to be what calling the model does.
    """
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def head_weight(model, vocabulary: int) -> torch.Tensor:
    """The head cut to the tokenizer's length, [V, d]; rows above it belong to no token.

    A bias is its last column, next to the ones that `hidden_states` adds.
    """
    head = base_model(model).get_output_embeddings()
    weight, bias = head.weight, head.bias
    if weight.shape[0] < vocabulary:
        raise UserError(f"the model's head has {weight.shape[0]} rows for a tokenizer of {vocabulary} tokens")
    if bias is not None:
        weight = torch.cat([weight, bias[:, None]], 1)
    return weight[:vocabulary]


def check_head(model, vocabulary: int) -> None:
    """Assert that the head applied to the hidden states gives the model's own logits.

    A quantised head, or one with something else between the two, fails here, before any training.
    """
    head = base_model(model).get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(f"the model's head is a {type(head).__name__}, and no matrix that could be stored")
    if not head.weight.is_floating_point():
        raise UserError("the model's head is stored quantised; take the model's full weights")
    ids = torch.arange(min(8, vocabulary), device=head.weight.device)[None]
    with torch.no_grad():
        hidden = hidden_states(model, ids, torch.ones_like(ids))
        rebuilt = capped((hidden @ head_weight(model, vocabulary).T).float(), logit_cap(model))
        own = base_model(model)(input_ids=ids, use_cache=False).logits[..., :vocabulary]
    if not same(own, rebuilt.to(own.dtype)):
        raise UserError(
            "the model's logits are not its head applied to its last hidden states, as far as its family is "
            f"known here: they are off by {distance(own, rebuilt):.1%}"
        )

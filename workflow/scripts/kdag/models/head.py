"""Hidden states and the head that turns them into logits."""

import contextlib

import torch

from kdag.job.errors import UserError
from kdag.models import packed


def base_model(model):
    """The transformers model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def hidden_states(model, input_ids, attention_mask) -> torch.Tensor:
    """Hidden states after the final norm, [B, L, d], next to the head that takes them. No logits are made."""
    base = base_model(model)
    body = base.base_model
    if packed.on(base):
        return packed.forward(body, input_ids, attention_mask)
    out = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return out.last_hidden_state.to(base.get_output_embeddings().weight.device)


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
    """The head cut to the tokenizer's length, [V, d]; rows above it belong to no token."""
    weight = base_model(model).get_output_embeddings().weight
    if weight.shape[0] < vocabulary:
        raise UserError(f"the model's head has {weight.shape[0]} rows for a tokenizer of {vocabulary} tokens")
    return weight[:vocabulary]


def check_head(model, vocabulary: int) -> None:
    """Assert that head(hidden) is the model's own logits, so that nothing stands between the two.

    A soft-capped, scaled or quantised head fails here, before any training.
    """
    head = base_model(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or not head.weight.is_floating_point():
        raise UserError(f"the model's head is a {type(head).__name__}; a plain linear layer is needed")
    ids = torch.arange(min(8, vocabulary), device=head.weight.device)[None]
    with torch.no_grad():
        hidden = hidden_states(model, ids, torch.ones_like(ids))
        rebuilt = hidden @ head_weight(model, vocabulary).T
        own = base_model(model)(input_ids=ids, use_cache=False).logits[..., :vocabulary]
    tolerance = 0.05 if rebuilt.dtype != torch.float32 else 1e-3
    if not torch.allclose(rebuilt.float(), own.float(), rtol=tolerance, atol=tolerance):
        raise UserError(
            "the model's logits are not its head applied to its last hidden states (a soft cap or a scale "
            f"on the logits?): they differ by up to {(rebuilt - own).abs().max():.3g}"
        )

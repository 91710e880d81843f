"""Rows one behind the other give what padded rows give, and only models that keep rows apart are packed."""

import pytest
import tiny  # noqa: F401
import torch
import transformers

from kdag.models import head, packed

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROWS = torch.tensor([[5, 9, 3, 7, 2, 8], [1, 4, 6, 0, 0, 0], [11, 12, 13, 14, 0, 0], [21, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])


def model(kind: str, dtype=torch.float64, **config):
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{kind}ForCausalLM", None) or transformers.GPT2LMHeadModel
    return model_class._from_config(model_class.config_class(**SMALL | config), dtype=dtype).eval()


def loss_and_gradients(net):
    hidden = head.hidden_states(net, ROWS, MASK)[MASK.bool()]
    loss = (hidden.sin() * torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)[:, None]).sum()
    weights = [p for n, p in net.named_parameters() if "lm_head" not in n]
    return loss, torch.autograd.grad(loss, weights)


PACKED = [
    ("Llama", {}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 8}),
    ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}),
    ("Olmo2", {}),
    ("Mistral", {"sliding_window": None}),
]


@pytest.mark.parametrize(("kind", "config"), PACKED, ids=[kind for kind, _ in PACKED])
def test_loss_and_gradients_are_those_of_padded_rows(kind, config):
    exact = kind != "Qwen3Moe"  # whose grouped products have no float64
    net = model(kind, torch.float64 if exact else torch.float32, **config)
    loss, gradients = loss_and_gradients(net)
    assert packed.turn_on(net)
    assert packed.on(net)
    packed_loss, packed_gradients = loss_and_gradients(net)
    torch.testing.assert_close(packed_loss, loss, rtol=1e-12 if exact else 1e-5, atol=0)
    for ours, theirs in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-12 if exact else 1e-4 * float(theirs.abs().max())
        )


def test_checkpointed_layers_are_packed_when_they_are_computed_again():
    net = model("Llama")
    assert packed.turn_on(net)
    loss, gradients = loss_and_gradients(net)
    net.train()
    net.gradient_checkpointing_enable({"use_reentrant": False})
    again, anew = loss_and_gradients(net)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, anew))


PADDED = [
    ("Lfm2", {"layer_types": ["conv", "full_attention"]}),  # a convolution runs over the rows' ends
    ("Mistral", {"sliding_window": 4}),
    ("Gemma3", {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_implementation": "eager"}),
]


@pytest.mark.parametrize(("kind", "config"), PADDED, ids=[kind for kind, _ in PADDED])
def test_other_models_are_padded_as_before(kind, config):
    net = model(kind, **config)
    before, _ = loss_and_gradients(net)
    assert not packed.turn_on(net)
    assert not packed.on(net)
    after, _ = loss_and_gradients(net)
    assert torch.equal(before, after)


def test_a_layer_that_mixes_rows_is_found_by_trying():
    """Its configuration names full attention alone, and each token sees the one before it, whosever it is."""
    net = model("Llama")
    mixing = net.model.layers[0].mlp
    mixing.register_forward_hook(lambda module, arguments, out: out + out.roll(1, 1))
    assert not packed.turn_on(net)
    assert not packed.on(net)

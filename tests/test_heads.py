"""Heads with a bias, a factor, a soft cap; against dense float64 and against the models' own logits."""

import pytest
import torch
import transformers

from kdag.job.errors import UserError
from kdag.losses.cap import capped
from kdag.losses.divergences import load
from kdag.losses.fused import distill_loss
from kdag.models import head
from kdag.teacher.storage import SCHEMES

N, V, DS, DT = 11, 37, 8, 12
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
FAMILIES = {
    "plain": ("Qwen2", {}),
    "bias": ("Phi", {"num_key_value_heads": 4}),
    "Cohere's factor": ("Cohere", {"logit_scale": 0.0833}),
    "Granite's factor": ("Granite", {"logits_scaling": 6.0}),
    "soft cap": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
}


def model(family: str):
    name, further = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | further)
    made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    if made.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(made.get_output_embeddings().bias)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_hidden_states_give_the_models_own_logits(family):
    made = model(family).double()
    ids = torch.arange(2 * 9).reshape(2, 9) % V
    hidden = head.hidden_states(made, ids, torch.ones_like(ids))
    rebuilt = capped(hidden @ head.head_weight(made, V).T, head.logit_cap(made))
    assert torch.allclose(rebuilt, made(input_ids=ids).logits, rtol=1e-12, atol=1e-12)
    head.check_head(model(family), V)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "plain"])
def test_what_is_between_head_and_logits_is_not_forgotten(family):
    """Without it the rebuilt logits would be others: the check has something to find."""
    made = model(family)
    ids = torch.arange(9)[None]
    bare = made.base_model(input_ids=ids).last_hidden_state @ made.get_output_embeddings().weight.T
    assert not torch.allclose(bare, made(input_ids=ids).logits, atol=1e-2)


def test_a_head_that_is_not_known_is_refused():
    made = model("plain")
    made.config.logits_scaling = 3.0  # which Qwen 2 does not apply
    with pytest.raises(UserError, match="as far as its family is known here: they are off by"):
        head.check_head(made, V)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sizes = {
        "student_hidden": (N, DS),
        "student_head": (V, DS),
        "teacher_hidden": (N, DT),
        "teacher_head": (V, DT),
    }
    made = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    made["targets"] = torch.randint(0, V, (N,), generator=generator)
    made["targets"][3] = -100
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in made.items()}


def dense(given, name, params, temperature, weight, caps):
    """The same by whole matrices and autograd."""
    learn = given["targets"] != -100
    student = given["student_hidden"][learn] @ given["student_head"].T
    teacher = given["teacher_hidden"][learn] @ given["teacher_head"].T
    student, teacher = (
        z if c is None else c * torch.tanh(z / c) for z, c in zip((student, teacher), caps, strict=True)
    )
    ce = torch.nn.functional.cross_entropy(student, given["targets"][learn], reduction="sum")
    logps = ((z / temperature).log_softmax(-1) for z in (student, teacher))
    divergence = load(name)(*logps, **params).sum()
    return ((1 - weight) * ce + weight * temperature**2 * divergence) / learn.sum()


@pytest.mark.parametrize("caps", [(2.0, None), (None, 2.0), (1.5, 4.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 1.7])
@pytest.mark.parametrize(
    ("name", "params"),
    [("fkl", {}), ("rkl", {}), ("skewed-fkl", {"skew_lambda": 0.2}), ("jsd", {"beta": 0.4}), ("akl", {})],
)
def test_loss_and_gradients_under_a_soft_cap_are_those_of_dense_float64(caps, temperature, name, params):
    given = inputs()
    ours = {name: tensor.clone() for name, tensor in given.items()}
    trained = ("student_hidden", "student_head")
    for tensors in (given, ours):
        for key in trained:
            tensors[key].requires_grad_()
    expected = dense(given, name, params, temperature, 0.4, caps)
    expected.backward()
    options = {"kl_weight": 0.4, "temperature": temperature, "chunk_tokens": 4}
    options |= {"student_cap": caps[0], "teacher_cap": caps[1]}
    loss, _ = distill_loss(**ours, divergence=load(name), divergence_params=params, **options)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for key in trained:
        assert torch.allclose(ours[key].grad, given[key].grad, rtol=1e-10, atol=1e-12), key


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_every_weight_are_those_of_the_models_own_logits(family):
    ids, fkl = torch.arange(12)[None] % V, load("fkl")
    teacher = torch.randn(12, V, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = {"divergence": fkl, "divergence_params": {}, "kl_weight": 0.5, "temperature": 2.0}
    targets = (ids[0] + 1) % V

    def gradients(loss_of):
        made = model(family).double()
        loss_of(made).backward()
        return {name: weight.grad for name, weight in made.named_parameters()}

    def ours(made):
        hidden = head.hidden_states(made, ids, torch.ones_like(ids))[0]
        stored = {"logits": teacher}
        return distill_loss(
            hidden,
            head.head_weight(made, V),
            stored,
            torch.zeros(V, 1, dtype=torch.float64),
            targets,
            teacher_logits=SCHEMES["logits"].logits,
            student_cap=head.logit_cap(made),
            **given,
        )[0]

    def own(made):
        logits = made(input_ids=ids).logits[0]
        ce = torch.nn.functional.cross_entropy(logits, targets)
        return 0.5 * ce + 0.5 * 4 * fkl((logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)).mean()

    expected, found = gradients(own), gradients(ours)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("store", ["hidden", "hidden-int8", "logits", "topk", "distillkit", "sampled"])
def test_every_form_of_storage_knows_the_cap(store):
    given, cap = inputs(torch.float32), 2.0
    hidden, weight = given["teacher_hidden"], given["teacher_head"]
    keys = (
        {"dtype": "float32"}
        if store in ("hidden", "logits")
        else {"k": V, "dtype": "float32"}
        if store == "topk"
        else {"k": V, "exact_k": V, "polynomial_terms": [], "exact_dtype": "float32"}
        if store == "distillkit"
        else {"samples": 10**6}
        if store == "sampled"
        else {}
    )
    told = keys if SCHEMES[store].told else {}
    stored = SCHEMES[store].encode(hidden, weight, cap=cap, **keys)
    logp = SCHEMES[store].logits(stored, weight, cap=cap, **told).float().log_softmax(-1)
    expected = capped(hidden @ weight.T, cap).log_softmax(-1)
    if store == "sampled":
        assert torch.allclose(logp.exp(), expected.exp(), atol=4e-3)  # 8 standard errors
    else:
        assert torch.allclose(logp, expected, atol=0.05 if store == "hidden-int8" else 1e-5)

"""Every way to store the teacher: what comes back, how far off it is, and what it costs."""

import math

import pytest
import torch

from kdag.losses import divergences
from kdag.teacher.storage import ENCODE_ROWS, FLOOR, SCHEMES

N, D, V = ENCODE_ROWS + 20, 40, 600  # two blocks of rows; D is no multiple of int8's group
PARAMS = {
    "hidden": [{}, {"dtype": "float32"}],
    "hidden-int8": [{}, {"group": 8}],
    "topk": [{"k": 16}, {"k": 5, "tail": "renormalised"}, {"k": 7, "dtype": "float32"}],
    "logits": [{}, {"dtype": "float32"}],
}
CASES = [(name, params) for name, several in PARAMS.items() for params in several]


def teacher(dtype=torch.float32):
    """Hidden states [N, D] with two outlier channels, and a head [V, D] that makes peaked logits."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator)
    hidden[:, :2] *= 20
    head = torch.randn(V, D, generator=generator) * 3 * D**-0.5
    head[:, :2] /= 20
    return hidden.to(dtype), head.to(dtype)


def student_logp():
    return torch.randn(N, V, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)


def logp(name, hidden, head, **params):
    scheme = SCHEMES[name]
    return scheme.logits(scheme.encode(hidden, head, **params), head).float().log_softmax(-1)


@pytest.mark.parametrize("name,params", CASES)
def test_stored_bytes_shapes_and_rows(name, params):
    hidden, head = teacher(torch.bfloat16)
    scheme = SCHEMES[name]
    stored = scheme.encode(hidden, head, **params)
    assert all(len(tensor) == N and tensor.is_contiguous() for tensor in stored.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert size == N * scheme.bytes_per_token(D, V, **params)
    whole = scheme.logits(stored, head)
    assert whole.shape == (N, V) and whole.isfinite().all()
    some = torch.tensor([3, 270, 0])
    part = scheme.logits({key: tensor[some] for key, tensor in stored.items()}, head)
    torch.testing.assert_close(part, whole[some])
    empty = scheme.encode(hidden[:0], head, **params)
    assert scheme.logits(empty, head).shape == (0, V)


def test_int8_bytes_count_the_padding():
    hidden, head = teacher()
    for group in (1, 8, 16, D, D + 1):
        stored = SCHEMES["hidden-int8"].encode(hidden, head, group=group)
        size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        assert size == N * SCHEMES["hidden-int8"].bytes_per_token(D, V, group=group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_is_exact(dtype):
    hidden, head = teacher(dtype)
    stored = SCHEMES["hidden"].encode(hidden, head, dtype=str(dtype).removeprefix("torch."))
    assert torch.equal(SCHEMES["hidden"].logits(stored, head), hidden @ head.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_exact_in_their_dtype(dtype):
    hidden, head = teacher(dtype)
    stored = SCHEMES["logits"].encode(hidden, head, dtype=str(dtype).removeprefix("torch."))
    assert torch.equal(SCHEMES["logits"].logits(stored, head), hidden @ head.T)
    rounded = SCHEMES["logits"].encode(hidden, head)["logits"]
    assert torch.equal(rounded, (hidden @ head.T).bfloat16())


def test_int8_is_off_by_half_a_step_at_most():
    hidden, head = teacher()
    hidden[0] = 0
    stored = SCHEMES["hidden-int8"].encode(hidden, torch.eye(D), group=8)
    back = SCHEMES["hidden-int8"].logits(stored, torch.eye(D))
    largest = hidden.unflatten(1, (-1, 8)).abs().amax(-1, keepdim=True).expand(N, 5, 8).flatten(1)
    assert ((back - hidden).abs() <= largest / 127 * 0.502 + 1e-6).all()  # a float16 scale is off by 2^-11
    assert (back[0] == 0).all()


def test_int8_groups_contain_an_outlier():
    hidden, head = teacher()
    truth = (hidden @ head.T).log_softmax(-1)
    error = {
        group: divergences.load("fkl")(logp("hidden-int8", hidden, head, group=group), truth).mean()
        for group in (16, D)
    }
    assert error[16] < 0.01 and error[16] < error[D] / 2


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_topk_of_everything_is_the_logits(tail):
    hidden, head = teacher()
    truth = (hidden @ head.T).log_softmax(-1)
    exact = logp("topk", hidden, head, k=V, tail=tail, dtype="float32")
    torch.testing.assert_close(exact, truth, rtol=1e-5, atol=1e-5)
    half = logp("topk", hidden, head, k=V, tail=tail)
    torch.testing.assert_close(half, truth, rtol=2**-10, atol=2**-10)


def test_bucket_keeps_the_mass_and_renormalised_gives_none():
    hidden, head = teacher()
    truth = (hidden @ head.T).softmax(-1)
    top = truth.topk(16)
    for tail in ("bucket", "renormalised"):
        params = {"k": 16, "tail": tail, "dtype": "float32"}
        stored = SCHEMES["topk"].encode(hidden, head, **params)
        assert stored["ids"].dtype == torch.int32
        assert torch.equal(stored["ids"].long(), top.indices)
        # Of the bucket the exponentials sum to 1 before any softmax.
        raw = SCHEMES["topk"].logits(stored, head).exp()
        kept = raw.gather(1, top.indices)
        torch.testing.assert_close(kept, top.values)
        rest = raw.scatter(1, top.indices, 0)
        if tail == "bucket":
            torch.testing.assert_close(raw.sum(-1), torch.ones(N))
            torch.testing.assert_close(rest.sum(-1), 1 - top.values.sum(-1), rtol=1e-3, atol=1e-6)
            spread = rest[0][rest[0] > 0]
            assert len(spread) == V - 16 and torch.equal(spread, spread[:1].expand_as(spread))
        else:
            assert (rest == 0).all()


def test_the_bucket_has_the_mass_that_is_left_at_its_temperature():
    hidden, head = teacher()
    for temperature in (1.0, 2.0, 4.0):
        back = logp("topk", hidden, head, k=16, tail_temperature=temperature, dtype="float32")
        kept = (hidden @ head.T).topk(16).indices
        mass = [
            (logits / temperature).softmax(-1).gather(1, kept).sum(-1) for logits in (back, hidden @ head.T)
        ]
        torch.testing.assert_close(*mass, rtol=1e-4, atol=1e-5)


def test_a_tail_below_float32_s_one_is_kept():
    """1 - sum of the kept would be 0 or noise; the log of the mass is not."""
    hidden, head = torch.ones(1, 1), torch.tensor([[0.0], [-30.0], [-31.0]])
    stored = SCHEMES["topk"].encode(hidden, head, k=1)
    assert stored["tail"].item() == pytest.approx(-30 + math.log1p(math.exp(-1)) - math.log(2), rel=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_more_of_the_top_is_better_for_fkl(tail):
    hidden, head = teacher()
    student = student_logp()
    truth = divergences.load("fkl")(student, (hidden @ head.T).log_softmax(-1)).mean()
    errors = [
        abs(divergences.load("fkl")(student, logp("topk", hidden, head, k=k, tail=tail)).mean() - truth)
        for k in (2, 8, 32, 128, V)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * truth


def test_the_floor_decides_rkl_of_the_renormalised():
    """The student's mass outside the kept tokens times FLOOR, as the docstring says."""
    hidden, head = teacher()
    student = student_logp()
    stored = SCHEMES["topk"].encode(hidden, head, k=16, tail="renormalised")
    teacher_logp = SCHEMES["topk"].logits(stored, head).log_softmax(-1)
    outside = student.exp().scatter(1, stored["ids"].long(), 0).sum(-1)
    value = divergences.load("rkl")(student, teacher_logp)
    torch.testing.assert_close(value, -FLOOR * outside, rtol=0.02, atol=10)
    for name in ("skewed-fkl", "skewed-rkl"):
        assert (divergences.load(name)(student, teacher_logp) <= -math.log(0.1) + 1e-4).all()


@pytest.mark.parametrize(
    "name,params,message",
    [
        ("topk", {"k": 0}, "k = 0"),
        ("topk", {"k": V + 1}, "vocabulary"),
        ("topk", {"k": 4, "tail": "none"}, "bucket, renormalised"),
        ("topk", {"k": 4, "tail_temperature": 0}, "tail_temperature = 0"),
        ("hidden-int8", {"group": 0}, "group = 0"),
    ],
)
def test_wrong_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        SCHEMES[name].encode(*teacher(), **params)

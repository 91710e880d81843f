"""Every way to store the teacher: what comes back, how far off it is, and what it costs."""

import math

import pytest
import torch

from kdag.config.training import TeacherCache
from kdag.losses import divergences
from kdag.losses.fused import distill_loss
from kdag.teacher.sizes import BYTES_PER_TOKEN
from kdag.teacher.storage import ENCODE_ROWS, FLOOR, SCHEMES
from kdag.teacher.writing import encoder

# Two blocks of rows; D is no multiple of int8's group, V none of 8.
N, D, V = ENCODE_ROWS + 20, 40, 601
PARAMS = {
    "hidden": [{}, {"dtype": "float32"}],
    "hidden-int8": [{}, {"group": 8}],
    "topk": [{"k": 16}, {"k": 5, "tail": "renormalised"}, {"k": 7, "dtype": "float32"}],
    "logits": [{}, {"dtype": "float32"}],
    "distillkit": [
        {"k": 30, "exact_k": 6, "polynomial_terms": [0, 1, "sqrt"]},
        {"k": 9, "exact_k": 9, "polynomial_terms": [], "tail": "renormalised"},
    ],
    "sampled": [{"samples": 13}, {"samples": 1, "temperature": 3.0}],
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


def decoded(name, stored, head, **params):
    scheme = SCHEMES[name]
    return scheme.logits(stored, head, **(params if scheme.told else {}))


def logp(name, hidden, head, **params):
    stored = SCHEMES[name].encode(hidden, head, **params)
    return decoded(name, stored, head, **params).float().log_softmax(-1)


@pytest.mark.parametrize("name,params", CASES)
def test_stored_bytes_shapes_and_rows(name, params):
    hidden, head = teacher(torch.bfloat16)
    scheme = SCHEMES[name]
    stored = scheme.encode(hidden, head, **params)
    assert all(len(tensor) == N and tensor.is_contiguous() for tensor in stored.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert size == N * scheme.bytes_per_token(D, V, **params)
    whole = decoded(name, stored, head, **params)
    assert whole.shape == (N, V) and whole.isfinite().all()
    some = torch.tensor([3, 270, 0])
    part = decoded(name, {key: tensor[some] for key, tensor in stored.items()}, head, **params)
    torch.testing.assert_close(part, whole[some])
    empty = scheme.encode(hidden[:0], head, **params)
    assert decoded(name, empty, head, **params).shape == (0, V)


@pytest.mark.parametrize("store", SCHEMES)
def test_the_configuration_s_parameters_are_those_of_the_store_and_of_the_planner(store):
    settings = TeacherCache(store=store, dtype="float32")
    hidden, head = teacher()
    stored = encoder(store, head, settings)(hidden, "a row")
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert size == N * BYTES_PER_TOKEN[store](D, V, **settings.parameters())
    assert decoded(store, stored, head, **settings.parameters()).shape == (N, V)


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
        ("distillkit", {"k": V + 1}, "vocabulary"),
        ("distillkit", {"k": 4, "exact_k": 5}, "exact_k = 5 and k = 4"),
        ("distillkit", {"k": 4, "exact_k": 4, "tail": "none"}, "bucket, renormalised"),
        ("distillkit", {"error_diffusion": True}, "only read here"),
        ("distillkit", {"k": 128, "exact_k": 0, "term_dtype": "float16"}, "float16 cannot hold"),
        ("sampled", {"samples": 0}, "samples = 0"),
        ("sampled", {"samples": 4, "temperature": 0}, "temperature = 0"),
    ],
)
def test_wrong_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        SCHEMES[name].encode(*teacher(), **params)


@pytest.mark.parametrize("name", ["distillkit", "sampled"])
def test_a_teacher_without_numbers_is_refused(name):
    hidden, head = teacher()
    for wrong in (math.nan, math.inf):
        broken = hidden.clone()
        broken[5, 0] = wrong
        with pytest.raises(ValueError, match="not finite"):
            SCHEMES[name].encode(broken, head, **PARAMS[name][0])


def test_compressed_top_k_is_nearly_the_top_k():
    """What the polynomial and bfloat16 add is small next to what the cut does."""
    hidden, head = teacher()
    settings = {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
    truth = (hidden @ head.T).log_softmax(-1)
    ids = truth.topk(128).indices
    raw = decoded("distillkit", SCHEMES["distillkit"].encode(hidden, head, **settings), head, **settings)
    error = (raw - truth).gather(1, ids)
    assert (error[:, :16].abs() <= truth.gather(1, ids[:, :16]).abs() * 2**-8).all()
    assert error.square().mean().sqrt() < 0.05
    torch.testing.assert_close(raw.exp().sum(-1), torch.ones(N), atol=0.02, rtol=0)
    top = {
        name: logp(name, hidden, head, **params)
        for name, params in (("topk", {"k": 128}), ("distillkit", settings))
    }
    student = student_logp()
    fkl = divergences.load("fkl")
    torch.testing.assert_close(
        fkl(student, top["distillkit"]), fkl(student, top["topk"]), rtol=0.02, atol=0.02
    )


def test_a_renormalised_tail_has_no_mass():
    hidden, head = teacher()
    settings = {"k": 20, "exact_k": 20, "polynomial_terms": [], "tail": "renormalised"}
    back = logp("distillkit", hidden, head, **settings)
    assert ((back > FLOOR / 2).sum(-1) == 20).all()
    torch.testing.assert_close(back.exp().sum(-1), torch.ones(N))


def test_log_probs_that_sum_to_more_than_one_leave_little_and_no_nan():
    """bfloat16 rounds -0.0019 to -0.0019 and a tiny rest up: nothing is left for the others, as written."""
    hidden, head = torch.ones(1, 1), torch.tensor([[0.0], [-20.0], [-21.0], [-30.0]])
    settings = {"k": 2, "exact_k": 2, "polynomial_terms": []}
    stored = SCHEMES["distillkit"].encode(hidden, head, **settings)
    raw = decoded("distillkit", stored, head, **settings)
    assert raw.isfinite().all()
    torch.testing.assert_close(raw[0, 2:].exp().sum(), torch.tensor(1e-6), rtol=1e-3, atol=0)


# --- sampled ---------------------------------------------------------------------------------------


def shares(temperature=1.0, samples=50, **more):
    hidden, head = teacher()
    params = {"samples": samples, "temperature": temperature, **more}
    raw = decoded("sampled", SCHEMES["sampled"].encode(hidden, head, **params), head, **params)
    return (raw / temperature).softmax(-1), (hidden @ head.T / temperature).softmax(-1)


def test_a_sample_s_softmax_is_the_share_of_the_draws():
    for temperature in (1.0, 2.0, 96.0):
        found, _ = shares(temperature)
        counts = found * 50
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
        torch.testing.assert_close(counts.sum(-1), torch.full((N,), 50.0))


def test_draws_depend_on_the_row_and_the_seed_and_on_nothing_else():
    hidden, head = teacher()

    def ids(states, **params):
        return SCHEMES["sampled"].encode(states, head, samples=9, **params)["ids"]

    assert torch.equal(ids(hidden, row="a"), ids(hidden, row="a"))
    assert not torch.equal(ids(hidden, row="a"), ids(hidden, row="b"))
    assert not torch.equal(ids(hidden, row="a"), ids(hidden, row="a", seed=1))
    before = torch.get_rng_state()
    ids(hidden)
    assert torch.equal(torch.get_rng_state(), before)
    # No position has another's draws.
    assert len(ids(hidden[:1].expand(N, D), row="a").unique(dim=0)) > N / 2


def fkl_gradients(states, head, targets, drawn_at, used_at, samples):
    """[n, V]: the gradient of fkl at each row's logits, of a student whose logits are its hidden states."""
    params = {"samples": samples, "temperature": drawn_at}
    stored = SCHEMES["sampled"].encode(states, head, **params)
    student = torch.linspace(-1, 1, len(head)).expand(len(states), -1).clone().requires_grad_()
    loss, metrics = distill_loss(
        student,
        torch.eye(len(head)),
        stored,
        head,
        targets,
        divergence=divergences.load("fkl"),
        divergence_params={},
        kl_weight=1.0,
        use_ce=False,
        temperature=used_at,
        num_items=1,
        teacher_logits=lambda stored, head: SCHEMES["sampled"].logits(stored, head, **params),
    )
    loss.backward()
    return student.grad, metrics["divergence_sum"] / len(states), student.detach()


@pytest.mark.parametrize(("drawn_at", "used_at"), [(1.0, 1.0), (2.0, 2.0), (2.0, 1.0)])
def test_fkl_s_gradient_is_unbiased_at_the_temperature_of_the_draws_and_only_there(drawn_at, used_at):
    """8000 samples of one token, through the fused loss: within 4 standard errors of the whole teacher's."""
    n, vocabulary = 8000, 11
    generator = torch.Generator().manual_seed(5)
    state = torch.randn(1, 4, generator=generator)
    head = torch.randn(vocabulary, 4, generator=generator)
    targets = torch.zeros(n, dtype=torch.long)
    found, value, student = fkl_gradients(state.expand(n, 4), head, targets, drawn_at, used_at, samples=6)
    p = (state @ head.T / used_at).softmax(-1)
    q = (student[:1] / used_at).softmax(-1)
    exact = used_at * (q - p)
    error = (found.mean(0) - exact[0]).abs()
    within = error <= 4 * found.std(0) / n**0.5
    assert within.all() == (drawn_at == used_at)
    if drawn_at == used_at:
        assert value > 1.1 * (p * (p / q).log()).sum(), "the value is too large, as the docstring says"


def test_rarest_tokens_are_drawn_as_often_as_they_should():
    """The draws of all rows against the sum of their probabilities: chi-squared by its degrees of freedom."""
    found, p = shares(samples=200)
    drawn, expected = found.sum(0) * 200, p.sum(0) * 200
    expected, drawn = expected[expected > 5], drawn[expected > 5]
    chi = ((drawn - expected).square() / expected).sum() / len(expected)
    assert 0.8 < chi < 1.2

"""Every divergence, by its definition and by its analytic gradient, against the float64 oracle."""

import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdag.losses import divergences
from kdag.losses.base import value_and_grad
from kdag.losses.parameters import PARAMETERS, Range, resolve

NAMES = list(PARAMETERS)
DIVERGENCES = {name: divergences.load(name) for name in NAMES}
quick = settings(derandomize=True, database=None, deadline=None, max_examples=25)

FRACTION = st.floats(0.05, 0.95)
PARAMS = {
    "skewed-fkl": {"skew_lambda": FRACTION},
    "skewed-rkl": {"skew_lambda": FRACTION},
    "jsd": {"beta": FRACTION},
    "akl": {"mu": FRACTION},
    "ab": {"alpha": st.one_of(st.just(0.0), st.floats(0.05, 1)), "beta": st.floats(0.05, 1)},
    "taid": {"taid_t": st.floats(0, 1)},
}


@st.composite
def case(draw, name):
    """(student logits, teacher logits) [N, V] in float64, and params."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return (
        student * draw(st.floats(0.1, 6)),
        teacher * draw(st.floats(0.1, 6)),
        {key: draw(strategy) for key, strategy in PARAMS.get(name, {}).items()},
    )


def by_definition(name, student_logits, teacher_logits, params):
    """Values and gradient with respect to the student's logits: DIVERGENCES and autograd."""
    student = student_logits.detach().requires_grad_()
    teacher = teacher_logits.detach().requires_grad_()
    values = DIVERGENCES[name](torch.log_softmax(student, -1), torch.log_softmax(teacher, -1), **params)
    values.sum().backward()
    assert teacher.grad is None
    return values.detach(), student.grad


def analytic(name, student_logits, teacher_logits, params):
    """The same through the function that distill_loss uses."""
    x = student_logits - student_logits.amax(-1, keepdim=True)
    y = teacher_logits - teacher_logits.amax(-1, keepdim=True)
    x_sum, y_sum = x.logsumexp(-1, keepdim=True), y.logsumexp(-1, keepdim=True)
    q, p = x.softmax(-1), y.softmax(-1)
    before = q.clone()
    gradient, params = value_and_grad(DIVERGENCES[name], params)
    value, grad = gradient(x, y, q, p, x_sum, y_sum, **params)
    assert torch.equal(q, before), "q is not the function's to change"
    assert any(grad is buffer for buffer in (x, y, p))
    return value.squeeze(1), grad


FORMS = {"definition": by_definition, "analytic": analytic}


def test_files_parameters_and_oracle_have_the_same_divergences():
    assert sorted(divergences.NAMES) == sorted(NAMES) == sorted(oracle.DIVERGENCES)
    assert all(divergence.gradient for divergence in DIVERGENCES.values())
    with pytest.raises(ValueError, match="unknown divergence 'kl'; known: ab, akl"):
        divergences.load("kl")


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_the_whole_teacher_is_what_a_cut_off_tail_makes_large(name):
    """Half of the student's mass where the teacher was left none: ln p = -1e4 there, or is not asked for."""
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, -1e4]])
    cases = [resolve(name, {})] + [{"alpha": 0, "beta": 1}, {"alpha": 0, "beta": 0.5}] * (name == "ab")
    for params in cases:
        value = DIVERGENCES[name](student, teacher, **params).item()
        assert (value > 100) == DIVERGENCES[name].whole_teacher(**params), (params, value)


@pytest.mark.parametrize("name", NAMES)
def test_what_says_that_it_is_linear_in_the_teacher_is_and_nothing_else(name):
    """The gradient at the mean of two teachers against the mean of their gradients."""
    generator = torch.Generator().manual_seed(3)
    student, one, other = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    middle = torch.logaddexp(one, other) - math.log(2)
    ends = [{"alpha": 1, "beta": 0}, {"alpha": 1, "beta": 0.5}, {"alpha": 0.9, "beta": 0}] * (name == "ab")
    for params in [resolve(name, {}), *ends]:
        gradients = [by_definition(name, student, teacher, params)[1] for teacher in (one, other, middle)]
        same = torch.allclose(gradients[2], (gradients[0] + gradients[1]) / 2, rtol=1e-9, atol=1e-12)
        assert same == DIVERGENCES[name].linear_in_teacher(**params), params


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_oracle(name, form):
    @quick
    @given(case(name))
    def check(drawn):
        student, teacher, params = drawn
        values, gradient = oracle.divergence(name, student, teacher, params)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
            found = FORMS[form](name, student.to(dtype), teacher.to(dtype), params)
            scale = max(1.0, values.max().item())
            torch.testing.assert_close(found[0].double(), values, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(found[1].double(), gradient, rtol=tolerance, atol=tolerance * scale)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_analytic_gradient_equals_autograd_on_a_whole_vocabulary(name):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 5000, generator=generator) * 4
    params = resolve(name, {})
    expected = by_definition(name, student, teacher, params)
    found = analytic(name, student, teacher, params)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 1e4])
def test_equal_distributions_are_at_distance_zero(name, form, scale):
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)) * scale
    values, gradient = FORMS[form](name, logits, logits.clone(), resolve(name, {}))
    tolerance = 2e-4 if name == "taid" and scale > 1 else 2e-6  # its target is rounded at 1e4
    assert values.abs().max() < tolerance
    assert gradient.abs().max() < tolerance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_finite_where_probabilities_underflow(name, form):
    """Logits of +-1e4, agreeing, disjoint and one-hot against flat."""
    peak = torch.full((1, 7), -1e4)
    peak[0, 2] = 1e4
    other = peak.roll(1, dims=1)
    flat = torch.zeros(1, 7)
    spread = torch.linspace(-1e4, 1e4, 7).unsqueeze(0)
    for student in (peak, other, flat, spread, -spread):
        for teacher in (peak, flat, spread):
            values, gradient = FORMS[form](name, student, teacher, resolve(name, {}))
            assert torch.isfinite(values).all() and (values > -1e-3).all()
            assert torch.isfinite(gradient).all()


def test_extreme_values_are_the_right_ones():
    """One token to each: KL is the distance of the logits, the skewed ones sit at their bound."""
    student = torch.tensor([[1e4, -1e4]])
    teacher = torch.tensor([[-1e4, 1e4]])
    for form in FORMS.values():
        assert form("fkl", student, teacher, {})[0].item() == pytest.approx(2e4)
        assert form("rkl", student, teacher, {})[0].item() == pytest.approx(2e4)
        for name in ("skewed-fkl", "skewed-rkl"):
            value, gradient = form(name, student, teacher, {"skew_lambda": 0.1})
            assert value.item() == pytest.approx(math.log(10))
            assert gradient.abs().max() == 0
        assert form("jsd", student, teacher, {"beta": 0.5})[0].item() == pytest.approx(math.log(2))
        assert form("total-variation", student, teacher, {})[0].item() == pytest.approx(1)


@pytest.mark.parametrize("name, limit", [("skewed-fkl", "fkl"), ("skewed-rkl", "rkl")])
def test_skewed_divergences_are_bounded_and_tend_to_the_plain_ones(name, limit):
    @quick
    @given(case(name))
    def check(drawn):
        student, teacher, params = drawn
        logps = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
        bound = oracle.skew_bound(params["skew_lambda"])
        assert (DIVERGENCES[name](*logps, **params) <= bound + 1e-12).all()
        nearly = DIVERGENCES[name](*logps, skew_lambda=1e-60)
        torch.testing.assert_close(nearly, DIVERGENCES[limit](*logps), rtol=1e-9, atol=1e-12)

    check()


@quick
@given(case("fkl"))
def test_special_cases(drawn):
    """ab at its corners is fkl and rkl; taid ends at fkl; jsd and symmetric-kl are symmetric."""
    student, teacher, _ = drawn
    q, p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    close = {"rtol": 1e-9, "atol": 1e-12}
    fkl, rkl = DIVERGENCES["fkl"](q, p), DIVERGENCES["rkl"](q, p)
    torch.testing.assert_close(DIVERGENCES["ab"](q, p, alpha=1, beta=0), fkl, **close)
    torch.testing.assert_close(DIVERGENCES["ab"](q, p, alpha=0, beta=1), rkl, **close)
    torch.testing.assert_close(DIVERGENCES["taid"](q, p, taid_t=1), fkl, **close)
    torch.testing.assert_close(rkl, DIVERGENCES["fkl"](p, q), **close)
    for name in ("jsd", "symmetric-kl", "total-variation"):
        torch.testing.assert_close(DIVERGENCES[name](q, p), DIVERGENCES[name](p, q), **close)
    assert (DIVERGENCES["total-variation"](q, p) <= 1 + 1e-12).all()


def test_ab_where_both_parameters_vanish():
    student, teacher = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = oracle.divergence("ab", student, teacher, {"alpha": 0, "beta": 0})
    for form in FORMS.values():
        found = form("ab", student, teacher, {"alpha": 0, "beta": 0})
        torch.testing.assert_close(found, expected)


def test_akl_by_hand():
    """Teacher 0.6, 0.3, 0.1; head of mu = 0.7: the first two; gaps 0.4 and 0.1, tail 0.3."""
    p, q = torch.tensor([[0.6, 0.3, 0.1]]).double(), torch.tensor([[0.2, 0.4, 0.4]]).double()
    fkl = (p * (p / q).log()).sum(-1)
    rkl = (q * (q / p).log()).sum(-1)
    expected = 0.5 / 0.8 * fkl + 0.3 / 0.8 * rkl
    torch.testing.assert_close(DIVERGENCES["akl"](q.log(), p.log(), mu=0.7), expected)


def test_half_precision_is_summed_in_fp32():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4096, generator=generator).bfloat16()
    value = DIVERGENCES["fkl"](student.log_softmax(-1), teacher.log_softmax(-1))
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name):
    good, bad = torch.zeros(2, 5), torch.zeros(2, 6)
    for student, teacher in ((good, bad), (good[0], good[0]), (good[None], good[None])):
        with pytest.raises(ValueError, match=rf"{name}: .*\[N, V\]"):
            DIVERGENCES[name](student, teacher)


def test_wrong_parameters_are_named():
    logp = torch.zeros(2, 5).log_softmax(-1)
    for value in (0, 1, -0.1, float("nan"), "0.1", True, None):
        with pytest.raises(ValueError, match=r"skewed-fkl: skew_lambda = .* is outside \(0, 1\)"):
            DIVERGENCES["skewed-fkl"](logp, logp, skew_lambda=value)
    with pytest.raises(ValueError, match="fkl has no parameter 'beta'; its parameters: none"):
        DIVERGENCES["fkl"](logp, logp, beta=0.5)
    with pytest.raises(ValueError, match="unknown divergence 'kl'; known: fkl, rkl"):
        resolve("kl", {})
    assert resolve("ab", {"alpha": 1}) == {"alpha": 1, "beta": PARAMETERS["ab"]["beta"].default}


def test_defaults_lie_in_their_ranges():
    for ranges in PARAMETERS.values():
        for range_ in ranges.values():
            assert isinstance(range_, Range) and range_.default in range_

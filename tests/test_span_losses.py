"""The losses across tokenizers: against the oracle, TRL's functions and the exact losses of one tokenizer."""

import types

import oracle
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdag.data.alignment import align, common_tokens, spelling, widths
from kdag.losses import divergences, fused_spans, spans
from kdag.losses.cap import capped
from kdag.losses.fused import distill_loss
from kdag.losses.fused_spans import Side, members, merged, span_distill_loss, span_values, token_logp
from kdag.losses.spans.uld import by_position

ULD, GOLD, LIKELIHOOD = (spans.load(name) for name in ("uld", "gold", "span-likelihood"))
FKL, JSD = divergences.load("fkl"), divergences.load("jsd")
quick = settings(derandomize=True, database=None, deadline=None, max_examples=25)
IGNORE = -100


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def logp(*shape, seed=0, scale=1.0):
    return (normal(*shape, seed=seed) * scale).log_softmax(-1)


def cut(tokens: int, lengths: list[int]) -> torch.Tensor:
    """Spans [K, 2] of so many tokens each, one behind the other."""
    ends = torch.tensor(lengths).cumsum(0)
    assert ends[-1] <= tokens
    return torch.stack([ends - torch.tensor(lengths), ends], 1)


def make(student=(1, 2, 1, 3), teacher=(1, 1, 2, 2), v_s=11, v_t=13, d_s=5, d_t=4, dtype=None, seed=0):
    """What span_distill_loss takes, in order; spans of so many tokens; the student's side has gradients."""
    sizes, dtype = (sum(student), sum(teacher)), dtype or torch.float64
    generator = torch.Generator().manual_seed(seed)
    return [
        normal(sizes[0], d_s, seed=seed, dtype=dtype).requires_grad_(),
        normal(v_s, d_s, seed=seed + 1, dtype=dtype).requires_grad_(),
        normal(sizes[1], d_t, seed=seed + 2, dtype=dtype),
        normal(v_t, d_t, seed=seed + 3, dtype=dtype),
        torch.randint(v_s, (sizes[0],), generator=generator),
        torch.randint(v_t, (sizes[1],), generator=generator),
        cut(sizes[0], list(student)),
        cut(sizes[1], list(teacher)),
    ]


def equal(inputs):
    """The same inputs with the student's tokens and spans for both: one tokenizer."""
    _, head, _, teacher_head, targets, _, student_spans, _ = inputs
    size = len(targets)
    teacher = normal(size, teacher_head.shape[1], seed=8), normal(len(head), teacher_head.shape[1], seed=9)
    return [*inputs[:2], *teacher, targets, targets, student_spans, student_spans]


COMMON = torch.tensor([2, 3, 5, 7, 10]), torch.tensor([0, 4, 5, 9, 12])
LOSSES = {
    "uld": (ULD, {}),
    "gold": (GOLD, {"common": COMMON, "divergence": JSD, "divergence_params": {"beta": 0.5}}),
    "gold-weights": (GOLD, {"common": COMMON, "divergence": FKL, "weights": (0.7, 2.0)}),
    "span-likelihood": (LIKELIHOOD, {"tau": 1.0}),
    "span-likelihood-100": (LIKELIHOOD, {"tau": 100.0}),
}


def run(inputs, name, **chosen):
    """(loss, gradient of the hidden states, gradient of the head), metrics."""
    loss, params = LOSSES[name]
    chosen = {"kl_weight": 0.5, "temperature": 2.0} | chosen
    for tensor in inputs[:2]:
        tensor.grad = None
    found, metrics = span_distill_loss(*inputs, loss=loss, loss_params=params, **chosen)
    found.backward()
    return (found.detach(), inputs[0].grad, inputs[1].grad), metrics


def same(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


# --- each by its definition ---------------------------------------------------------------------


@quick
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 99))
def test_uld_is_the_oracle_s(v_s, v_t, seed):
    student, teacher = logp(3, v_s, seed=seed, scale=2), logp(3, v_t, seed=seed + 100, scale=2)
    expected = [oracle.uld(p, q) for p, q in zip(teacher.exp(), student.exp(), strict=True)]
    torch.testing.assert_close(ULD(student, teacher), torch.tensor(expected, dtype=torch.float64))
    assert (ULD(student, teacher) <= 2).all()
    shuffled = student[:, torch.randperm(v_s, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(ULD(shuffled, student), torch.zeros(3, dtype=torch.float64))


def test_uld_by_position_leaves_out_what_the_longer_answer_has_more():
    assert by_position(2, 5).tolist() == by_position(5, 2).tolist() == [[0, 1], [1, 2]]
    assert by_position(0, 4).shape == (0, 2)
    inputs = make(student=(1,) * 3, teacher=(1,) * 5)
    paired = by_position(3, 5)
    found, metrics = span_distill_loss(
        *inputs[:6], paired, paired, loss=ULD, loss_params={}, kl_weight=1.0, temperature=1.0
    )
    student, teacher = (
        (hidden.detach() @ head.detach().t()).softmax(-1) for hidden, head in (inputs[:2], inputs[2:4])
    )
    expected = sum(oracle.uld(p, q) for p, q in zip(teacher[:3], student, strict=True)) / 3
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12) and metrics["spans"] == 3


@quick
@given(st.integers(0, 99), st.sampled_from([1.0, 3.0, 100.0]))
def test_span_likelihood_is_the_oracle_s(seed, tau):
    student, teacher = logp(4, 6, seed=seed, scale=2)[:, :3], logp(4, 5, seed=seed + 1, scale=2)[:, :2]
    expected = [
        oracle.span_likelihood(p.exp().tolist(), q.exp().tolist(), tau)
        for p, q in zip(teacher, student, strict=True)
    ]
    found = LIKELIHOOD(student.sum(-1), teacher.sum(-1), tau=tau)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_span_likelihood_of_certain_and_of_impossible_spans_is_finite(dtype):
    student = torch.tensor([0.0, -1e-9, -300.0, 0.0, -1e4], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([0.0, -2.0, -1e-9, -1e4, -1e4], dtype=dtype)
    for tau in (1.0, 100.0):
        values = LIKELIHOOD(student, teacher, tau=tau)
        (grad,) = torch.autograd.grad(values.sum(), student)
        assert values.isfinite().all() and grad.isfinite().all()
        assert values[0] == values[4] == 0 and (values >= 0).all()
        assert grad[1] > 0 and grad[2] < 0  # held too likely, held too unlikely


def test_span_likelihood_of_one_token_is_the_kl_of_it_and_all_others_and_never_above_fkl():
    student, teacher = logp(20, 9, seed=1, scale=3), logp(20, 9, seed=2, scale=3)
    said = torch.randint(9, (20, 1), generator=torch.Generator().manual_seed(0))
    coins = []
    for side in (student, teacher):
        p = side.exp().gather(1, said)
        coins.append(torch.cat([p, 1 - p], 1).log())
    found = LIKELIHOOD(student.gather(1, said)[:, 0], teacher.gather(1, said)[:, 0], tau=1.0)
    torch.testing.assert_close(found, FKL(*coins), rtol=1e-9, atol=1e-12)
    assert (found <= FKL(student, teacher) + 1e-12).all()


def test_the_gradient_of_span_likelihood_is_that_of_alm_s_cross_entropy():
    """As compute_alm_loss of bminixhofer/tokenkit writes it, with its 1e-6."""
    teacher, tau = torch.tensor([-0.5, -3.0, -11.0], dtype=torch.float64), 100.0
    grads = []
    for own in (True, False):
        student = torch.tensor([-1.0, -2.0, -20.0], dtype=torch.float64, requires_grad=True)
        y, x = teacher / tau - 1e-6, student / tau - 1e-6
        entropy = -(y.exp() * x - torch.expm1(y) * torch.log(-torch.expm1(x)))
        value = LIKELIHOOD(student, teacher, tau=tau) if own else entropy
        grads += torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=0)


# --- one tokenizer: the exact losses --------------------------------------------------------------


@pytest.mark.parametrize("name", divergences.NAMES)
@pytest.mark.parametrize("chunk_tokens", [None, 2])
def test_gold_of_one_tokenizer_is_the_exact_divergence(name, chunk_tokens):
    inputs = equal(make(student=(1,) * 7, teacher=(1,) * 7))
    size = torch.arange(len(inputs[1]))
    params = {"common": (size, size), "divergence": divergences.load(name)}
    settings_ = {"kl_weight": 0.3, "temperature": 2.0, "chunk_tokens": chunk_tokens}
    expected, reference = distill_loss(
        *inputs[:5], divergence=divergences.load(name), divergence_params={}, **settings_
    )
    wanted = torch.autograd.grad(expected, inputs[:2])
    found, metrics = span_distill_loss(*inputs, loss=GOLD, loss_params=params, **settings_)
    same([found, *torch.autograd.grad(found, inputs[:2])], [expected, *wanted], 1e-9)
    torch.testing.assert_close(metrics["divergence_sum"], reference["divergence_sum"])
    torch.testing.assert_close(metrics["ce_sum"], reference["ce_sum"])


def test_gold_of_two_tiny_tokenizers_that_are_one_is_exact_too():
    tokenizer = tiny.other_tokenizer([text for row in tiny.rows(100) for text in row.values()])
    spelt, text = spelling(tokenizer), "the river 201 \U0001f600"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = align(*[widths(spelt, ids, text)] * 2)
    runs = torch.from_numpy(found.student)
    common = tuple(torch.from_numpy(side) for side in common_tokens(spelt, spelt))
    student, teacher = (logp(len(ids), len(tokenizer), seed=seed) for seed in (1, 2))
    assert runs.tolist() == [[n, n + 1] for n in range(len(ids))]
    value = GOLD(student, teacher, common=common, divergence=JSD)
    torch.testing.assert_close(value, JSD(student, teacher))


def test_gold_without_a_common_token_is_uld():
    student, teacher = logp(4, 7, seed=1), logp(4, 9, seed=2)
    none = torch.zeros(0, dtype=torch.int64)
    found = GOLD(student, teacher, common=(none, none), divergence=FKL)
    torch.testing.assert_close(found, ULD(student, teacher))


# --- TRL's own functions ------------------------------------------------------------------------


class Named:
    """A tokenizer as far as TRL's loss asks."""

    def __init__(self, names):
        self.names = names

    def get_vocab(self):
        return {name: number for number, name in enumerate(self.names)}


def trl_loss(merge, hybrid, beta, weights, temperature, vocabularies):
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer")
    config = types.SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=temperature,
        uld_teacher_temperature=temperature,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy=merge,
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=weights and weights[0],
        uld_hybrid_unmatched_weight=weights and weights[1],
        beta=beta,
    )
    return gold.ULDLoss(config, *map(Named, vocabularies))


def trl_value(loss, inputs, sizes, shift):
    """TRL's value of one row: a token of a prompt, then the answer. shift: is row i that of token i + 1?"""
    hidden, head, teacher_hidden, teacher_head, targets, teacher_targets, *_ = inputs
    sides = []
    for states, weight, tokens, byte_sizes in (
        (hidden, head, targets, sizes[0]),
        (teacher_hidden, teacher_head, teacher_targets, sizes[1]),
    ):
        logits = states.detach() @ weight.detach().t()
        unused = torch.zeros_like(logits[:1])
        logits = torch.cat([logits, unused] if shift else [unused, logits])[None]
        ids = torch.cat([torch.zeros(1, dtype=torch.int64), tokens])[None]
        labels = ids.clone()
        labels[:, 0] = IGNORE
        end = torch.tensor(byte_sizes).cumsum(0)
        offsets = torch.stack([end - torch.tensor(byte_sizes), end], 1)
        offsets = torch.cat([torch.zeros(1, 2, dtype=torch.int64), offsets])
        sides.append((logits, labels, ids, offsets[None]))
    (s, t) = sides
    return loss(s[0], t[0], s[1], t[1], s[2], t[2], s[3], t[3])


SIZES = [2, 1, 2, 3, 2, 1, 1], [2, 3, 2, 1, 1, 3]  # bytes; spans of 1:1, 2:1, 1:2, 3:2 tokens


@pytest.mark.parametrize("merge", ["bayesian", "observed"])
@pytest.mark.parametrize(
    ("hybrid", "beta", "weights"),
    [(False, 0.5, None), (True, 0.5, None), (True, 0, (0.7, 2.0)), (True, 1, None), (True, 0.3, (1.0, 0.0))],
)
def test_uld_and_gold_are_trl_s_in_float64(merge, hybrid, beta, weights):
    """With logits that are where each of its merges takes them; the alignment on both sides as well."""
    inputs = make()
    found = align(*(torch.tensor(side).numpy() for side in SIZES))
    assert [found.student.tolist(), found.teacher.tolist()] == [side.tolist() for side in inputs[6:]]
    names = [f"s{n}" for n in range(11)], [f"t{n}" for n in range(13)]
    for s, t in zip(*COMMON, strict=True):
        names[0][s] = names[1][t] = f"both{s}"
    trl = trl_loss(merge, hybrid, beta, weights, 1.5, names)
    expected = trl_value(trl, inputs, SIZES, shift=merge == "bayesian")
    divergence, params = {0: (FKL, {}), 1: (divergences.load("rkl"), {})}.get(beta, (JSD, {"beta": beta}))
    chosen = {"common": COMMON, "divergence": divergence, "divergence_params": params, "weights": weights}
    loss, _ = span_distill_loss(
        *inputs,
        loss=GOLD if hybrid else ULD,
        loss_params=chosen if hybrid else {},
        **{"kl_weight": 1.0, "temperature": 1.5, "temperature_squared": False, "merge": merge},
    )
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-10, atol=1e-12)


def test_the_chain_rule_s_merge_is_a_joint_probability():
    first, second = logp(1, 5, seed=1), logp(1, 5, seed=2)
    found = merged(second, first[:, 3])
    torch.testing.assert_close(found[0, 1].exp(), first[0, 3].exp() * second[0, 1].exp())
    torch.testing.assert_close(found.exp().sum(), first[0, 3].exp())


# --- from hidden states -------------------------------------------------------------------------


@pytest.mark.parametrize("merge", spans.MERGES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_sum_of_its_spans_by_plain_loops(name, merge):
    inputs = make()
    hidden, head, teacher_hidden, teacher_head, targets, teacher_targets, runs, teacher_runs = inputs
    loss, params = LOSSES[name]
    sides = []
    for states, weight, tokens, side in (
        (hidden, head, targets, runs),
        (teacher_hidden, teacher_head, teacher_targets, teacher_runs),
    ):
        rows = ((states @ weight.t()) / 2).log_softmax(-1)
        own = [rows[n, tokens[n]] for n in range(len(tokens))]
        found = []
        for first, last in side.tolist():
            if not loss.distributions:
                found.append(sum(own[first:last]))
                continue
            kept = last - 1 if merge == "bayesian" else first
            found.append(rows[kept] + sum(own[n] for n in range(first, last) if n != kept))
        sides.append(torch.stack(found))
    expected = 0.5 * 4 * loss(*sides, **params).mean()
    expected = expected + 0.5 * torch.nn.functional.cross_entropy(hidden @ head.t(), targets)
    wanted = [expected.detach(), *torch.autograd.grad(expected, inputs[:2])]
    for chunk_tokens in (None, 1, 3):
        found, metrics = run(inputs, name, merge=merge, chunk_tokens=chunk_tokens)
        same(found, wanted)
        assert metrics["spans"] == 4 and metrics["tokens"] == 7


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_differences(name):
    inputs = make()
    loss, params = LOSSES[name]

    def function(hidden, head):
        both = hidden, head, *inputs[2:]
        chosen = {"kl_weight": 0.6, "temperature": 1.3, "chunk_tokens": 2, "student_cap": 3.0}
        return span_distill_loss(*both, loss=loss, loss_params=params, use_ce=False, **chosen)[0]

    assert torch.autograd.gradcheck(function, tuple(inputs[:2]))


@pytest.mark.parametrize("name", LOSSES)
def test_soft_caps_are_those_of_the_logits(name):
    inputs = make()
    found, _ = run(inputs, name, use_ce=False, student_cap=2.0, teacher_cap=1.5)
    rows = [(states.detach() @ head.detach().t()) for states, head in (inputs[:2], inputs[2:4])]
    loss, params = LOSSES[name]
    # Heads that are the identity take the logits as they are.
    eyes = [torch.eye(row.shape[1], dtype=torch.float64) for row in rows]
    plain = [capped(rows[0], 2.0), eyes[0], capped(rows[1], 1.5), eyes[1], *inputs[4:]]
    expected, _ = span_distill_loss(
        *plain, loss=loss, loss_params=params, kl_weight=0.5, temperature=2.0, use_ce=False
    )
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_has_no_gradient(name):
    inputs = make()
    for place in (2, 3):
        inputs[place].requires_grad_()
    run(inputs, name)
    assert inputs[2].grad is None and inputs[3].grad is None


def test_micro_batches_add_up():
    """Two rows at once and one after another, by the numbers of the whole."""
    first, second = make(seed=1), make(student=(2, 1), teacher=(1, 3), seed=5)
    second[1], second[3] = first[1], first[3]
    shift = torch.tensor(len(first[4])), torch.tensor(len(first[5]))
    whole = [
        torch.cat([first[0], second[0]]).detach().requires_grad_(),
        first[1],
        torch.cat([first[2], second[2]]),
        first[3],
        torch.cat([first[4], second[4]]),
        torch.cat([first[5], second[5]]),
        torch.cat([first[6], second[6] + shift[0]]),
        torch.cat([first[7], second[7] + shift[1]]),
    ]
    counts = {"num_items": len(whole[4]), "num_spans": len(whole[6])}
    (expected, hidden, head), _ = run(whole, "gold")
    head = head.clone()
    parts = [run(part, "gold", **counts)[0] for part in (first, second)]
    # The head is one tensor of both: `run` gave its gradient of each part apart.
    assert torch.allclose(parts[0][0] + parts[1][0], expected)
    assert torch.allclose(torch.cat([parts[0][1], parts[1][1]]), hidden)


def test_the_head_s_gradient_of_micro_batches_adds_up():
    inputs = make()
    whole, _ = run(inputs, "uld", use_ce=False)
    grads = []
    for some in (slice(0, 2), slice(2, 4)):
        part = [*inputs[:6], inputs[6][some], inputs[7][some]]
        grads.append(run(part, "uld", use_ce=False, num_spans=4)[0][2].clone())
    torch.testing.assert_close(sum(grads), run(inputs, "uld", use_ce=False)[0][2])


def test_ce_is_of_all_tokens_also_of_those_in_no_span():
    inputs = make()
    inputs[6], inputs[7] = inputs[6][1:], inputs[7][1:]
    inputs[4][0] = IGNORE
    found, metrics = run(inputs, "uld", kl_weight=0.0)
    expected = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].t(), inputs[4], ignore_index=IGNORE)
    torch.testing.assert_close(found[0], expected.detach())
    assert metrics["tokens"] == 6 and metrics["divergence_sum"] == 0


def test_without_a_span_there_is_ce_and_a_gradient_of_it():
    inputs = make()
    inputs[6] = inputs[7] = torch.zeros(0, 2, dtype=torch.int64)
    for name in LOSSES:
        (loss, grad, _), metrics = run(inputs, name)
        assert loss.isfinite() and grad.abs().sum() > 0 and metrics["spans"] == 0
        (loss, grad, _), _ = run(inputs, name, use_ce=False)
        assert loss == 0 and (grad is None or not grad.any())


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_states_give_float32_losses_near_those_of_float64(name):
    inputs, low = make(), make(dtype=torch.bfloat16)
    exact, _ = run(inputs, name)
    found, _ = run(low, name)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    assert abs(float(found[0] - exact[0])) < 0.05 * abs(float(exact[0])) + 0.02


@pytest.mark.parametrize("name", LOSSES)
def test_no_logits_of_all_tokens_are_held(name):
    """Neither forward nor backward, not even of one span that is the whole answer: the largest tensor of a
    width
    of a vocabulary that any operation makes has a chunk's rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    tokens, v_s, v_t = 64, 101, 103
    inputs = make(student=(1,) * 32 + (32,), teacher=(2,) * 32 + (1,), v_s=v_s, v_t=v_t, d_s=4, d_t=4)
    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types_, args=(), kwargs=None):
            nonlocal most
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                # A head [V, d] or its gradient is no row of logits.
                if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tensor.shape[1] in (v_s, v_t):
                    most = max(most, len(tensor) if len(tensor) != 4 else 0)
            return out

    loss, params = LOSSES[name]
    with Watch():
        value, _ = span_distill_loss(
            *inputs, loss=loss, loss_params=params, kl_weight=0.5, temperature=1.0, chunk_tokens=5
        )
        value.backward()
    assert tokens == len(inputs[0]) and most == 5


def test_memory_kept_for_backward_does_not_grow_with_the_vocabulary():
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    for v_s in (50, 5000):
        kept.clear()
        inputs = make(v_s=v_s, v_t=60)
        side = Side(inputs[0], inputs[1], inputs[4], inputs[6])
        other = Side(*inputs[2:4], inputs[5], inputs[7])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            span_values(side, other, loss=ULD, loss_params={}, chunk_tokens=2)
        # The head itself is kept, and nothing else of its width.
        assert max(kept) <= inputs[1].numel()
        assert sum(n for n in kept if n > 1000 and n != inputs[1].numel()) == 0


def test_members_are_the_rows_of_each_span():
    runs = torch.tensor([[1, 2], [2, 5], [7, 8]])
    rows, of = members(runs)
    assert rows.tolist() == [1, 2, 3, 4, 7] and of.tolist() == [0, 1, 1, 1, 2]
    empty = members(torch.zeros(0, 2, dtype=torch.int64))
    assert [len(part) for part in empty] == [0, 0]


def test_log_probs_of_tokens():
    hidden, head, targets = normal(5, 3), normal(7, 3, seed=1), torch.tensor([0, 6, 2, 2, 5])
    expected = (hidden @ head.t() / 3).log_softmax(-1)[torch.arange(5), targets]
    for chunk_tokens in (None, 1, 2):
        found = token_logp(hidden, head, targets, temperature=3.0, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(found, expected)
    assert token_logp(hidden[:0], head, targets[:0]).shape == (0,)


# --- what is refused ----------------------------------------------------------------------------


def test_names_and_shapes_that_do_not_fit_are_refused():
    assert spans.NAMES == ("gold", "span-likelihood", "uld")
    with pytest.raises(ValueError, match="unknown .*'x'; known: gold, span-likelihood, uld"):
        spans.load("x")
    with pytest.raises(ValueError, match=r"must be \[K, V\] of the same K"):
        ULD(logp(3, 5), logp(4, 5))
    with pytest.raises(ValueError, match=r"must be \[K\] of the same K"):
        LIKELIHOOD(logp(3, 5), logp(3, 5), tau=1.0)
    for wrong, message in (
        ({"kl_weight": 1.2}, "outside"),
        ({"temperature": 0}, "not positive"),
        ({"merge": "mean"}, "none of bayesian, observed"),
    ):
        with pytest.raises(ValueError, match=message):
            run(make(), "uld", **wrong)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (6, [[0, 1], [1, 3], [3, 4]], r"must be \[K, 2\]"),
        (6, [[0, 1], [1, 3], [3, 4], [4, 9]], "student: a span is empty or outside of the 7 tokens"),
        (6, [[0, 1], [1, 1], [3, 4], [4, 7]], "empty or outside"),
        (7, [[0, 1], [0, 2], [2, 4], [4, 6]], "teacher: spans are not in order, or one token is in two"),
    ],
)
def test_spans_that_do_not_fit_are_refused(place, value, message):
    inputs = make()
    inputs[place] = torch.tensor(value)
    with pytest.raises(ValueError, match=message):
        run(inputs, "uld")


def test_a_token_of_a_span_must_have_a_target():
    inputs = make()
    inputs[4][2] = IGNORE
    with pytest.raises(ValueError, match="student: a token of a span has no target"):
        run(inputs, "uld")
    assert fused_spans.IGNORE == IGNORE

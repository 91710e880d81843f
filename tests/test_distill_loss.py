"""The fused loss against the float64 oracle, itself in other chunks, TRL and Liger."""

import dataclasses

import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdag.losses import divergences, products
from kdag.losses import fused as module
from kdag.losses.compiling import Compiled, wanted
from kdag.losses.fused import distill_loss
from kdag.losses.parameters import PARAMETERS, resolve

NAMES = list(PARAMETERS)
FKL, RKL = divergences.load("fkl"), divergences.load("rkl")
quick = settings(derandomize=True, database=None, deadline=None, max_examples=25)
IGNORE = -100


def make(tokens=7, vocabulary=50, d_s=8, d_t=6, *, ignored=(), scale=1.0, dtype=torch.float64, seed=0):
    """student_hidden, student_head (both require grad), teacher_hidden, teacher_head, targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[list(ignored)] = IGNORE
    return (
        (normal(tokens, d_s) * scale).to(dtype).requires_grad_(),
        normal(vocabulary, d_s).to(dtype).requires_grad_(),
        (normal(tokens, d_t) * scale).to(dtype),
        normal(vocabulary, d_t).to(dtype),
        targets,
    )


def run(inputs, divergence="fkl", params=None, **settings_):
    """(loss, gradient of the hidden states, gradient of the head), metrics."""
    chosen = {"kl_weight": 0.5, "temperature": 2.0} | settings_
    for tensor in inputs[:2]:
        tensor.grad = None
    if isinstance(divergence, str):
        divergence = divergences.load(divergence)
    loss, metrics = distill_loss(*inputs, divergence=divergence, divergence_params=params or {}, **chosen)
    loss.backward()
    return (loss.detach(), inputs[0].grad, inputs[1].grad), metrics


def same(found, expected, tolerance=1e-9):
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_equal_the_oracle(name):
    """Random shapes, masks, chunks, weights and temperatures; CE alone, KL alone and both."""

    @quick
    @given(st.data())
    def check(data):
        draw = data.draw
        tokens = draw(st.integers(1, 9))
        shape = {"vocabulary": draw(st.integers(2, 60)), "d_s": draw(st.integers(1, 9))}
        ignored = draw(st.sets(st.integers(0, tokens - 1)))
        weight = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
        chosen = {
            "temperature": draw(st.sampled_from([1.0, 2.0, 0.7, 3.0])),
            "use_ce": draw(st.booleans()),
        }
        squared = draw(st.booleans())
        chunk_tokens = draw(st.sampled_from([None, 1, 2, 3, 5, 100]))
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
            seed = draw(st.integers(0, 99))
            inputs = make(tokens, ignored=ignored, dtype=dtype, seed=seed, **shape)
            expected = oracle.loss(*inputs, name, resolve(name, {}), weight=weight, squared=squared, **chosen)
            found, _ = run(
                inputs,
                name,
                kl_weight=weight,
                temperature_squared=squared,
                chunk_tokens=chunk_tokens,
                **chosen,
            )
            same(found, expected, tolerance)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_the_definition_by_autograd_gives_the_same(name):
    """What a divergence without an analytic gradient would go through."""
    inputs = make(ignored=[2])
    expected, expected_metrics = run(inputs, name)
    found, metrics = run(inputs, dataclasses.replace(divergences.load(name), gradient=None))
    same(found, expected)
    torch.testing.assert_close(metrics["divergence_sum"], expected_metrics["divergence_sum"])


@pytest.mark.parametrize("ignored", [(), (0, 1, 2), (3, 4, 5), (0, 2, 4, 6, 8, 10), (9, 10)])
def test_chunks_do_not_matter(ignored, monkeypatch):
    """Chunks that do not divide, hold one token or would be all masked; blocks likewise."""
    inputs = make(tokens=11, ignored=ignored)
    whole, whole_metrics = run(inputs, chunk_tokens=11)
    for chunk_tokens in range(1, 13):
        found, metrics = run(inputs, chunk_tokens=chunk_tokens)
        same(found, whole, 1e-12)
        assert metrics["tokens"] == whole_metrics["tokens"] == 11 - len(ignored)
    for elements in (1, 50, 100, 150):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": elements})
        same(run(inputs)[0], whole, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_begin_at_aligned_places_give_the_same_bits(name, dtype, monkeypatch):
    """As on a GPU, where a vocabulary of an odd number of tokens is no aligned row."""
    inputs = make(tokens=9, vocabulary=333, d_s=16, d_t=24, ignored=[2], dtype=dtype)
    expected, _ = run(inputs, name)
    expected = [tensor.clone() for tensor in expected]
    monkeypatch.setattr(module, "scratch", lambda _, shape, like, dtype=None: module.products.aligned(
        shape, like, dtype or like.dtype
    ))  # fmt: skip
    found, _ = run(inputs, name)
    assert all(map(torch.equal, found, expected))


def test_default_chunks_are_even_and_bounded():
    assert module.even_chunks(100, 1000) == 100
    assert module.even_chunks(0, 1000) == 1
    for tokens, vocabulary in ((2048, 49152), (2048, 151665), (4097, 151665)):
        size = module.even_chunks(tokens, vocabulary)
        assert size * vocabulary <= module.CHUNK_ELEMENTS
        chunks = -(-tokens // size)
        assert chunks * size - tokens < chunks


def test_ignored_rows_are_not_computed():
    """Not even NaN gets out of them, and their gradient is zero."""
    inputs = make(ignored=[1, 4])
    expected, _ = run(inputs)
    with torch.no_grad():
        inputs[0][[1, 4]] = float("nan")
        inputs[2][[1, 4]] = float("nan")
    found, metrics = run(inputs)
    same(found, expected)
    assert (found[1][[1, 4]] == 0).all() and metrics["tokens"] == 5


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_no_token_at_all(kl_weight):
    for inputs in (make(ignored=range(7)), make(tokens=0)):
        (loss, *gradients), metrics = run(inputs, kl_weight=kl_weight)
        assert loss == 0 and metrics["tokens"] == 0 and metrics["ce_sum"] == 0
        assert all((gradient == 0).all() for gradient in gradients)


@quick
@given(st.sets(st.integers(1, 11)), st.sets(st.integers(0, 11)), st.sampled_from(NAMES))
def test_micro_batches_add_up(cuts, ignored, name):
    """Given num_items, the effective batch may be split anyhow: same loss, same gradient."""
    inputs = make(tokens=12, ignored=ignored)
    num_items = max(12 - len(ignored), 1)
    expected, _ = run(inputs, name)
    hidden, head, teacher, teacher_head, targets = inputs
    hidden.grad = head.grad = None
    total = 0
    bounds = [0, *sorted(cuts), 12]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        rows = slice(start, stop)
        loss, _ = distill_loss(
            hidden[rows],
            head,
            teacher[rows],
            teacher_head,
            targets[rows],
            divergence=divergences.load(name),
            divergence_params={},
            kl_weight=0.5,
            temperature=2.0,
            num_items=torch.tensor(num_items),
        )
        loss.backward()
        total = total + loss.detach()
    same((total, hidden.grad, head.grad), expected, 1e-12)


def test_temperature_squared_scales_loss_and_gradient_but_not_the_metrics():
    inputs = make()
    for use_ce in (True, False):
        chosen = {"temperature": 3.0, "use_ce": use_ce, "kl_weight": 1.0}
        squared, squared_metrics = run(inputs, temperature_squared=True, **chosen)
        plain, plain_metrics = run(inputs, temperature_squared=False, **chosen)
        same(squared, [9 * part for part in plain], 1e-12)
        assert squared_metrics["divergence_sum"] == plain_metrics["divergence_sum"]


def test_metrics_are_plain_sums():
    inputs = make(ignored=[0])
    (loss, *_), metrics = run(inputs, kl_weight=0.3)
    assert not metrics["ce_sum"].requires_grad and not metrics["divergence_sum"].requires_grad
    expected = (0.7 * metrics["ce_sum"] + 0.3 * 4 * metrics["divergence_sum"]) / metrics["tokens"]
    torch.testing.assert_close(loss, expected)


def test_ce_alone_is_cross_entropy_and_needs_no_teacher():
    hidden, head, _, _, targets = inputs = make(ignored=[3])
    expected = F.cross_entropy(hidden @ head.t(), targets, ignore_index=IGNORE)
    expected_gradients = torch.autograd.grad(expected, (hidden, head))
    for teacher in ((None, None), inputs[2:4]):
        found, metrics = run((hidden, head, *teacher, targets), kl_weight=0.0)
        same(found, (expected.detach(), *expected_gradients), 1e-12)
        assert metrics["divergence_sum"] == 0


def test_ce_alone_does_not_touch_the_teacher():
    inputs = list(make())
    inputs[3] = torch.zeros(1, 1)  # would be refused
    run(inputs, kl_weight=0.0)


def test_kl_alone_ignores_weight_and_targets():
    inputs = make()
    first, metrics = run(inputs, use_ce=False, kl_weight=0.1)
    inputs[4].fill_(1)
    same(run(inputs, use_ce=False, kl_weight=0.9)[0], first, 1e-12)
    assert metrics["ce_sum"] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 1.5])
def test_huge_logits_stay_finite(name, temperature):
    """Logits around +-1e4 in fp32, teacher and student disagreeing about everything."""
    inputs = make(tokens=4, dtype=torch.float32, scale=3e3)
    parts, metrics = run(inputs, name, temperature=temperature)
    assert (inputs[0] @ inputs[1].t()).abs().max() > 1e4
    assert all(torch.isfinite(part).all() for part in parts)
    assert torch.isfinite(metrics["divergence_sum"]) and torch.isfinite(metrics["ce_sum"])


@pytest.mark.parametrize("name", NAMES)
def test_bf16_differs_by_the_rounding_of_its_products_alone(name):
    inputs = make(tokens=20, vocabulary=300, dtype=torch.bfloat16, d_s=32)
    params = resolve(name, {})
    expected = oracle.loss(*inputs, name, params, weight=0.5, temperature=2.0)
    found, _ = run(inputs, name)
    assert found[1].dtype == found[2].dtype == torch.bfloat16
    assert found[0].item() == pytest.approx(expected[0].item(), rel=5e-3)
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert (a.double() - b).norm() < 2e-2 * b.norm()


def test_gradients_only_where_they_are_wanted():
    hidden, head, teacher, teacher_head, targets = make()
    teacher.requires_grad_(), teacher_head.requires_grad_()
    full, _ = run((hidden, head, teacher, teacher_head, targets))
    assert teacher.grad is None and teacher_head.grad is None
    found, _ = run((hidden, head.detach(), teacher, teacher_head, targets))
    same(found[:2], full[:2])
    assert found[2] is None
    found, _ = run((hidden.detach(), head, teacher, teacher_head, targets))
    same((found[0], found[2]), (full[0], full[2]))
    with torch.no_grad():
        loss, _ = distill_loss(
            hidden, head, teacher, teacher_head, targets,
            divergence=FKL, divergence_params={}, kl_weight=0.5, temperature=2.0,
        )  # fmt: skip
    assert not loss.requires_grad
    same([loss], full[:1])


def test_backward_takes_a_scaled_loss_and_may_run_twice():
    inputs = make()
    (_, expected, _), _ = run(inputs)
    loss, _ = distill_loss(*inputs, divergence=FKL, divergence_params={}, kl_weight=0.5, temperature=2.0)
    inputs[0].grad = None
    (loss * 1024).backward(retain_graph=True)
    loss.backward()
    same([inputs[0].grad], [1025 * expected])


def test_hidden_states_of_another_layer_get_their_gradient():
    """Through a module in front, under autocast, with fp32 parameters: mixed precision."""
    inputs = make(tokens=6, dtype=torch.float32)
    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = distill_loss(
            layer(inputs[0]), *inputs[1:],
            divergence=RKL, divergence_params={}, kl_weight=0.5, temperature=2.0,
        )  # fmt: skip
    loss.backward()
    assert loss.dtype == torch.float32
    gradients = [layer.weight.grad, inputs[1].grad]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    plain, _ = distill_loss(
        layer(inputs[0]), *inputs[1:],
        divergence=RKL, divergence_params={}, kl_weight=0.5, temperature=2.0,
    )  # fmt: skip
    expected = torch.autograd.grad(plain, (layer.weight, inputs[1]))
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() < 3e-2 * b.norm()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"student_head": torch.zeros(49, 8)}, "student head has 49 rows, teacher head 50"),
        ({"student_head": torch.zeros(50, 9)}, r"student: hidden \[7, 8\] and head \[50, 9\]"),
        ({"teacher_hidden": torch.zeros(6, 6)}, r"targets \[7\] must be \[N\] of teacher hidden"),
        ({"targets": torch.zeros(7, 1)}, r"targets \[7, 1\] must be \[N\] of student hidden"),
        ({"teacher_head": None}, "needs a teacher"),
        ({"kl_weight": 1.5}, r"kl_weight = 1.5 is outside \[0, 1\]"),
        ({"temperature": 0.0}, "temperature = 0.0 is not positive"),
        ({"divergence_params": {"beta": 1}}, "fkl has no parameter 'beta'"),
    ],
)
def test_mistakes_are_named(change, message):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "targets")
    arguments = dict(zip(names, make(dtype=torch.float32), strict=True)) | {
        "divergence": FKL,
        "divergence_params": {},
        "kl_weight": 0.5,
        "temperature": 2.0,
    }
    with pytest.raises(ValueError, match=message):
        distill_loss(**arguments | change)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_trl(beta, temperature, monkeypatch):
    """GKDTrainer.generalized_jsd_loss is this jsd with use_ce=False and temperature_squared=False.

    The same: the direction of beta (beta = 1 is all teacher in the mixture), the mean over unmasked
    tokens, num_items. Different: TRL has no T^2, no CE in the same call, does not shift (nor does
    this function: both leave it to the caller), works in the logits' own dtype where this works in
    fp32, and returns fkl at beta = 0 and rkl at beta = 1, where the formula tends to 0 and this
    refuses: fkl and rkl have names.
    """
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd")
    hidden, head, teacher, teacher_head, targets = inputs = make(ignored=[0, 5])

    def theirs(beta, **extra):
        loss = gkd.GKDTrainer.generalized_jsd_loss(
            (hidden @ head.t())[None],
            (teacher @ teacher_head.t())[None],
            labels=targets[None],
            beta=beta,
            temperature=temperature,
            **extra,
        )
        return loss.detach(), *torch.autograd.grad(loss, (hidden, head))

    chosen = {"use_ce": False, "temperature_squared": False, "temperature": temperature}
    # TRL holds beta in a tensor of the logits' dtype: float64 here, so equal to the last digits
    same(run(inputs, "jsd", {"beta": beta}, **chosen)[0], theirs(beta), 1e-9)
    same(
        run(inputs, "jsd", {"beta": beta}, num_items=40, **chosen)[0],
        theirs(beta, num_items_in_batch=40),
        1e-9,
    )
    same(run(inputs, "fkl", **chosen)[0], theirs(0), 1e-9)
    same(run(inputs, "rkl", **chosen)[0], theirs(1), 1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_liger(beta, temperature):
    """LigerFusedLinearJSDLoss with hard and soft weights 1 - w and w is this jsd without T^2.

    The same: the direction of beta, CE at temperature 1, the mean over unmasked tokens. Different:
    Liger has no T^2 and no num_items (it divides by the tokens of the call, so micro-batches do not
    add up); it pads a shorter student head with zero logits, where this refuses; it always computes
    the head's gradient; beta = 0 and 1 as in TRL. Its chunks take masked rows along.
    """
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    inputs = make(ignored=[0, 5], dtype=torch.float32)
    hidden, head, teacher, teacher_head, targets = inputs
    loss = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.7,
        weight_soft_loss=0.3,
        beta=beta,
        temperature=temperature,
        compiled=False,
        chunk_size=3,
    )(hidden, head, teacher, teacher_head, targets)
    expected = loss.detach(), *torch.autograd.grad(loss, (hidden, head))
    found, _ = run(
        inputs,
        "jsd",
        {"beta": beta},
        kl_weight=0.3,
        temperature=temperature,
        temperature_squared=False,
    )
    same(found, expected, 1e-5)


def test_where_liger_pads_this_refuses():
    """Two zero logits for tokens that the student lacks change Liger's loss, silently."""
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    hidden, head, teacher, teacher_head, targets = make(dtype=torch.float32)
    soft = chunked.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
    shorter = head[:48].detach().requires_grad_()
    targets = targets.clamp(max=47)
    cut = soft(hidden, shorter, teacher, teacher_head[:48], targets)
    padded = soft(hidden, shorter, teacher, teacher_head, targets)
    assert abs(cut.item() - padded.item()) > 5e-4
    with pytest.raises(ValueError, match="cut both to the tokenizer's length"):
        run((hidden, shorter, teacher, teacher_head, targets))


# --- as on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def last_tokens_apart(monkeypatch):
    """Products as a GPU has them: 50 tokens are 48 and 2."""
    monkeypatch.setattr(products, "MULTIPLE", 16)
    whole = products.parts
    monkeypatch.setattr(products, "parts", lambda vocabulary, device: whole(vocabulary, torch.device("meta")))


@pytest.mark.parametrize("vocabulary", [5, 48, 50])
def test_products_in_two_parts_are_the_whole_ones(vocabulary, last_tokens_apart):
    hidden, head, *_ = make(tokens=7, vocabulary=vocabulary)
    hidden, head = hidden.detach(), head.detach()
    logits = hidden @ head.t()
    assert products.aligned(logits.shape, logits, logits.dtype).stride() == (-(-vocabulary // 16) * 16, 1)
    out = products.aligned(logits.shape, logits, logits.dtype)
    torch.testing.assert_close(products.to_logits(hidden, head, out=out), logits)
    torch.testing.assert_close(products.to_hidden(out, head, torch.empty_like(hidden)), logits @ head)
    torch.testing.assert_close(products.to_head(out, hidden, torch.empty_like(head)), logits.t() @ hidden)


def test_the_last_tokens_apart_change_no_loss_and_no_gradient(last_tokens_apart):
    inputs = make(tokens=9, ignored=[2])
    found, _ = run(inputs, "skewed-rkl", chunk_tokens=4)
    found = [tensor.clone() for tensor in found]
    products.MULTIPLE = 1
    same(found, run(inputs, "skewed-rkl")[0], 1e-12)


def warnings_of(caplog):
    return [record for record in caplog.records if "the loss is not compiled" in record.getMessage()]


@pytest.fixture
def compiles(monkeypatch):
    """Blocks are compiled as on a GPU, by the same compiler; what fails to compile would be a warning."""
    monkeypatch.setattr(module, "wanted", lambda device: True)
    return module.compiled_block


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in [*NAMES, None]),
        *((name, torch.bfloat16) for name in ("jsd", None)),
    ],
)
def test_compiled_blocks_are_the_others(name, dtype, compiles, monkeypatch, caplog):
    inputs = make(tokens=9, vocabulary=333, d_s=16, d_t=24, ignored=[2], dtype=dtype)
    goal = {"student_cap": 5.0} if name in ("fkl", None) else {}
    goal |= {"kl_weight": 0.0} if name is None else {"params": {key: 0.3 for key in PARAMETERS[name]}}
    found, metrics = run(inputs, name, chunk_tokens=5, **goal)
    found = [tensor.clone() for tensor in found]
    assert not compiles.failed and not warnings_of(caplog)
    monkeypatch.setattr(module, "wanted", lambda device: False)
    expected, plain = run(inputs, name, chunk_tokens=5, **goal)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    same(found, expected, tolerance)
    assert metrics["ce_sum"] == pytest.approx(plain["ce_sum"].item(), rel=1e-5)
    assert float(metrics["divergence_sum"]) == pytest.approx(float(plain["divergence_sum"]), rel=1e-5)


def test_another_number_of_rows_is_not_compiled_anew_and_settings_that_move_are_not_at_all(compiles, caplog):
    from torch._dynamo.utils import counters

    def graphs(*sizes, temperature=2.0, **how):
        for tokens in sizes:
            run(make(tokens=tokens, vocabulary=64, dtype=torch.float32), temperature=temperature, **how)
        return counters["stats"]["unique_graphs"]

    caplog.set_level("INFO")
    before = graphs(9, 5, 30, 7, chunk_tokens=8)
    assert graphs(8, 6, 23, 11, 29, chunk_tokens=7) == before
    compiles.seen.clear()
    compiles.moving.clear()
    two = [graphs(7, temperature=temperature) for temperature in (1.5, 1.6)][-1]
    assert two > before
    for temperature in (1.7, 1.8, 1.9, 1.7):
        assert graphs(7, temperature=temperature) == two
    assert caplog.text.count("its settings move from step to step") == 1


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(caplog):
    def function(logits, targets, **settings):
        print("no graph holds this")
        return logits + targets

    compiled = Compiled(function)
    for _ in range(2):
        found = compiled(torch.ones(3), torch.ones(3), gradient=None, params={}, goal={})
        assert found.tolist() == [2, 2, 2]
    assert len(warnings_of(caplog)) == 1


def test_kernels_that_cannot_be_built_are_done_without_and_no_memory_is_another_matter(caplog, monkeypatch):
    """Triton needs a C compiler, and notices so when a kernel first runs."""

    def function(logits, **settings):
        return logits.add_(1)

    def broken(error):
        def run(logits, **settings):
            logits.zero_()
            raise error

        return run

    given = {"gradient": None, "params": {}, "goal": {}}
    compiled = Compiled(function)
    monkeypatch.setattr(
        compiled, "compiled", broken(RuntimeError("Failed to find C compiler")), raising=False
    )
    logits = torch.ones(3)
    assert compiled(logits, **given).tolist() == [2, 2, 2] and compiled(logits, **given).tolist() == [3, 3, 3]
    assert [record.getMessage() for record in warnings_of(caplog)] == [
        "the loss is not compiled, and slower: RuntimeError: Failed to find C compiler"
    ]
    full = Compiled(function)
    monkeypatch.setattr(full, "compiled", broken(torch.OutOfMemoryError("full")), raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        full(torch.ones(3), **given)
    later = Compiled(function)
    later(torch.ones(3), **given)
    monkeypatch.setattr(later, "compiled", broken(RuntimeError("a fault of its own")), raising=False)
    with pytest.raises(RuntimeError, match="a fault of its own"):
        later(torch.ones(3), **given)


def test_blocks_are_compiled_on_a_gpu_alone_and_not_where_it_is_off(monkeypatch):
    assert wanted(torch.device("cuda")) and not wanted(torch.device("cpu"))
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # TORCH_COMPILE_DISABLE=1
    assert not wanted(torch.device("cuda"))

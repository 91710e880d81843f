"""What a GPU must do as a CPU does: loss, training, caching, decoding. `make test-gpu`.

Runs where neither pydantic nor datasets nor lm-eval is installed. KDAG_GPU_TESTS_ON=cpu runs the tests
without a GPU, to see that the tests themselves work.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import steps
import torch

from kdag.losses.divergences import load
from kdag.losses.fused import distill_loss
from kdag.losses.parameters import PARAMETERS

DEVICE = os.environ.get("KDAG_GPU_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU is visible (torch.cuda)"
    ),
]
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="measures a GPU's memory")
ALL = sorted(oracle.DIVERGENCES)
GOAL = {"kl_weight": 0.5, "temperature": 2.0}


def parameters(divergence):
    """A value inside every parameter's range."""
    return {name: 0.3 for name in PARAMETERS[divergence]}


def inputs(count, vocabulary, d_student=32, d_teacher=48, dtype=torch.float32):
    """On the CPU: hidden states and heads whose logits have a spread of about two, and targets."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    return {
        "student_hidden": normal(count, d_student),
        "student_head": normal(vocabulary, d_student, scale=2 * d_student**-0.5),
        "teacher_hidden": normal(count, d_teacher),
        "teacher_head": normal(vocabulary, d_teacher, scale=2 * d_teacher**-0.5),
        "targets": torch.randint(vocabulary, (count,), generator=generator),
    }


def loss_and_gradients(given, device, divergence, **how):
    """(loss, gradient of the student's hidden states, of its head), as float64 on the CPU."""
    given = {name: tensor.to(device, copy=True) for name, tensor in given.items()}
    trained = [given[name].requires_grad_() for name in ("student_hidden", "student_head")]
    loss, _ = distill_loss(**given, divergence=load(divergence), **GOAL, **how)
    loss.backward()
    return loss.item(), *(tensor.grad.double().cpu() for tensor in trained)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_loss_and_gradients_are_the_oracles(divergence, dtype, tolerance):
    params, given = parameters(divergence), inputs(9, 311, dtype=dtype)
    given["targets"][2] = -100
    wanted = oracle.loss(
        *given.values(), divergence, params, weight=GOAL["kl_weight"], temperature=GOAL["temperature"]
    )
    found = loss_and_gradients(given, DEVICE, divergence, divergence_params=params, chunk_tokens=4)
    assert found[0] == pytest.approx(wanted[0].item(), rel=tolerance)
    assert distance(found[1], wanted[1]) < tolerance
    assert distance(found[2], wanted[2]) < tolerance


@pytest.mark.parametrize("divergence", ["fkl", "skewed-rkl"])
def test_the_real_vocabulary_in_several_chunks_and_blocks(divergence):
    given, params = inputs(450, 151_665, dtype=torch.float32), parameters(divergence)
    wanted = loss_and_gradients(given, "cpu", divergence, divergence_params=params)
    found = loss_and_gradients(given, DEVICE, divergence, divergence_params=params)
    assert found[0] == pytest.approx(wanted[0], rel=1e-4)
    assert distance(found[1], wanted[1]) < 1e-3 and distance(found[2], wanted[2]) < 1e-3


@on_cuda
def test_the_loss_needs_little_memory():
    """Against the textbook form, which has all logits of both models at once."""
    import torch.nn.functional as F

    given = inputs(2048, 151_665, 256, 256, dtype=torch.bfloat16)
    given = {name: tensor.cuda() for name, tensor in given.items()}
    given["student_hidden"].requires_grad_()

    def ours():
        distill_loss(**given, divergence=load("fkl"), divergence_params={}, **GOAL)[0].backward()

    def dense():
        student = (given["student_hidden"] @ given["student_head"].t()).float()
        teacher = (given["teacher_hidden"] @ given["teacher_head"].t()).float()
        log_q, log_p = (F.log_softmax(logits / 2, dim=-1) for logits in (student, teacher))
        ce = F.cross_entropy(student, given["targets"])
        (ce + 2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)).backward()

    def extra(function):
        given["student_hidden"].grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before

    extra(ours)  # libraries take their workspace at the first call
    assert extra(ours) < 0.25 * extra(dense)


# --- caching and training -------------------------------------------------------------------------


def step(device, *arguments):
    """steps.py in a process that sees a GPU or none; what it prints."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, steps.__file__, *map(str, arguments)],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def cached(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """The cache made by a CPU in float32 and by the device in float32 and bfloat16."""
    folder, made = tmp_path_factory.mktemp("caches"), {}
    for name, device, dtype in (
        ("cpu", "cpu", "float32"),
        ("float32", DEVICE, "float32"),
        ("bfloat16", DEVICE, "bfloat16"),
    ):
        made[name] = folder / name
        step(device, "cache", tiny_models, made[name], dtype)
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 6e-2)])
def test_cached_states_are_a_cpus(cached, dtype, tolerance):
    ours, wanted = steps.opened(cached[dtype]), steps.opened(cached["cpu"])
    assert ours.head.dtype == getattr(torch, dtype)
    for row in range(len(steps.frame())):
        found, exact = (cache.row(row)["hidden"].double() for cache in (ours, wanted))
        assert found.shape == exact.shape and distance(found, exact) < tolerance, row


def test_distilling_in_bf16_has_a_cpus_losses(cached, tiny_models):
    """Of the untrained student, and of one that has been trained for three steps."""
    found, wanted = (
        json.loads(step(device, "train", tiny_models, cached["bfloat16"]).splitlines()[-1])
        for device in (DEVICE, "cpu")
    )
    assert len(found) == len(wanted) == 4
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours["answer_tokens"] == theirs["answer_tokens"]
        tolerance = 0.02 if number == 0 else 0.05
        for measure in ("loss", "ce", "divergence"):
            assert ours[measure] == pytest.approx(theirs[measure], rel=tolerance), (number, measure)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_transformers_own(tiny_models, penalty):
    from transformers import AutoModelForCausalLM

    from kdag.evaluation import decoding

    folder, cap = tiny_models / "student", 24
    model, tokenizer = decoding.load_model(folder, "float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    plain = plain.to(DEVICE).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in (3, 17, 8, 30, 5)]

    def ours(eos_ids):
        return decoding.decode_greedily(
            model,
            prompts,
            vocabulary=len(tokenizer),
            eos_ids=eos_ids,
            max_new_tokens=cap,
            repetition_penalty=penalty,
        )

    def theirs(ids, eos_ids):
        with torch.inference_mode():
            output = plain.generate(
                torch.tensor([ids], device=DEVICE),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=DEVICE),
                do_sample=False,
                max_new_tokens=cap,
                repetition_penalty=penalty,
                suppress_tokens=list(range(len(tokenizer), plain.config.vocab_size)),
                eos_token_id=eos_ids,
            )[0, len(ids) :].tolist()
        return output[:-1] if output[-1] in eos_ids else output

    free, _ = ours([])
    eos_ids = [free[0][3], free[2][7]]  # a random model never says its end token; these it does say
    answers, cut_off = ours(eos_ids)
    assert answers == [theirs(ids, eos_ids) for ids in prompts]
    assert cut_off == [len(answer) == cap for answer in answers]


def test_decoding_in_bf16_stays_within_the_vocabulary(tiny_models):
    from kdag.evaluation import decoding

    model, tokenizer = decoding.load_model(tiny_models / "teacher", "bfloat16")
    answers, cut_off = decoding.decode_greedily(
        model, [[5, 6, 7], [8]], vocabulary=len(tokenizer), eos_ids=[], max_new_tokens=40
    )
    assert cut_off == [True, True] and all(0 <= i < len(tokenizer) for row in answers for i in row)


@on_cuda
def test_steps_are_graphs_and_say_what_a_growing_cache_says(tiny_models, monkeypatch):
    """In float32, with rows that end at different times, so that the batch is halved and the cache moves."""
    from kdag.evaluation import batch, decoding, static

    monkeypatch.setattr(batch, "ROOM", 64)
    captured, capture = [], static.Graphs.capture
    monkeypatch.setattr(
        static.Graphs, "capture", lambda self, step: captured.append(1) or capture(self, step)
    )
    model, tokenizer = decoding.load_model(tiny_models / "teacher", "float32")
    assert decoding.cache_of(model) == "static"
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in (3, 17, 8, 30, 5, 9, 2)]

    def answers(eos_ids, penalty, **how):
        return decoding.decode_greedily(
            model,
            prompts,
            vocabulary=len(tokenizer),
            eos_ids=eos_ids,
            max_new_tokens=150,
            repetition_penalty=penalty,
            **how,
        )

    for penalty in (1.0, 1.3):
        free, _ = answers([], penalty, cache="dynamic", halving=False)
        eos_ids = [free[0][3], free[2][40]]
        expected = answers(eos_ids, penalty, cache="dynamic", halving=False)
        assert answers(eos_ids, penalty) == expected
        assert captured, "no step was a graph"


@on_cuda
def test_answers_in_bf16_do_not_depend_on_whether_steps_are_graphs(tiny_models, monkeypatch):
    from kdag.evaluation import decoding, static

    model, tokenizer = decoding.load_model(tiny_models / "teacher", "bfloat16")
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv(static.SWITCH, switch)
        found.append(
            decoding.decode_greedily(
                model, [[5, 6, 7], [8]], vocabulary=len(tokenizer), eos_ids=[], max_new_tokens=300
            )
        )
    assert found[0] == found[1]

"""What a GPU must do as a CPU does: loss, caching, training by every backend, decoding. `make test-gpu`.

Runs where neither pydantic nor datasets nor lm-eval is installed. KDAG_GPU_TESTS_ON=cpu runs the tests
without a GPU, to see that the tests themselves work.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import steps
import tiny
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


def needs(*packages, only_cuda=False):
    """Skips where a package is missing, or where what it does needs a GPU and the tests run on a CPU."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if only_cuda and DEVICE != "cuda":
        return pytest.mark.skip(reason=f"{packages[0]} needs a GPU")
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


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


def trained(device, folder, made, **options) -> list[dict]:
    """The log of steps.train, the last line that it prints."""
    printed = step(device, "train", folder, made, json.dumps(options))
    return json.loads(printed.splitlines()[-1])


def assert_alike(found, wanted, first, later, measures=("loss", "ce", "divergence")):
    """first: the tolerance of the untrained student's step; later: of those that training has moved."""
    assert len(found) == len(wanted) == 4
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours["answer_tokens"] == theirs["answer_tokens"]
        for measure in measures:
            tolerance = later if number else first
            assert ours[measure] == pytest.approx(theirs[measure], rel=tolerance), (number, measure)


def test_distilling_in_bf16_has_a_cpus_losses(cached, tiny_models):
    """Of the untrained student, and of one that has been trained for three steps."""
    found, wanted = (trained(device, tiny_models, cached["bfloat16"]) for device in (DEVICE, "cpu"))
    assert_alike(found, wanted, 0.02, 0.05)


@needs("unsloth", only_cuda=True)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_unsloth_trains_and_saves_in_bf16_as_transformers_does(cached, tiny_models, tmp_path, checkpointing):
    from kdag.models.load import load_model

    logs, logits = [], []
    ids = torch.tensor([steps.frame()["input_ids"][0].tolist()])
    for backend in ("unsloth", "transformers"):
        options = {"backend": backend, "gradient_checkpointing": checkpointing}
        output = tmp_path / backend
        logs.append(
            trained(DEVICE, tiny_models, cached["bfloat16"], output=str(output), lora_rank=4, **options)
        )
        with torch.no_grad():
            logits.append(load_model(output, "float32", to_device=False)(input_ids=ids).logits)
    assert_alike(*logs, 0.02, 0.05)
    assert_alike(*logs, 0.05, 0.15, ["grad_norm"])
    assert distance(*logits) < 0.05


@needs("bitsandbytes")
def test_four_bits_train_as_on_a_cpu_and_merge_into_the_weights_as_they_were(cached, tiny_models, tmp_path):
    from kdag.models.load import load_model

    start, merged = "teacher", tmp_path / "model"  # as wide as a block of four-bit weights is long
    options = {"start": start, "load_in_4bit": True, "dtype": "float32", "lora_rank": 4}
    found = trained(DEVICE, tiny_models, cached["bfloat16"], output=str(merged), **options)
    assert_alike(found, trained("cpu", tiny_models, cached["bfloat16"], **options), 0.02, 0.05)
    ours, base = (
        dict(load_model(folder, "float32", to_device=False).named_parameters())
        for folder in (merged, tiny_models / start)
    )
    changes = [weight - base[name] for name, weight in ours.items() if not torch.equal(weight, base[name])]
    assert changes and all(torch.linalg.matrix_rank(change, atol=1e-5) <= 4 for change in changes)


@needs("unsloth", "bitsandbytes", only_cuda=True)
def test_four_bits_by_unsloth_are_those_of_transformers(cached, tiny_models):
    options = {"start": "teacher", "load_in_4bit": True, "lora_rank": 4}
    found, wanted = (
        trained(DEVICE, tiny_models, cached["bfloat16"], backend=backend, **options)
        for backend in ("unsloth", "transformers")
    )
    assert_alike(found, wanted, 0.03, 0.06)


@needs("bitsandbytes")
def test_the_eight_bit_optimiser_follows_the_other(cached, tiny_models):
    options = {"start": "teacher", "dtype": "float32", "lora_rank": 64}  # bitsandbytes leaves smaller ones be
    eight, whole = (
        trained(DEVICE, tiny_models, cached["bfloat16"], optimizer=optimizer, **options)
        for optimizer in ("adamw_8bit", "adamw")
    )
    assert_alike(eight, whole, 1e-5, 0.02)
    assert eight[-1]["loss"] != whole[-1]["loss"]


# --- decoding -------------------------------------------------------------------------------------


def random_prompts(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, steps.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def greedy(plain, ids, eos_ids, cap, penalty=1.0):
    """(what transformers answers, by how much the closest of its choices was the first)."""
    with torch.inference_mode():
        output = plain.generate(
            torch.tensor([ids], device=plain.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=plain.device),
            do_sample=False,
            max_new_tokens=cap,
            repetition_penalty=penalty,
            suppress_tokens=list(range(steps.VOCABULARY, plain.config.vocab_size)),
            eos_token_id=eos_ids,
            output_scores=True,
            return_dict_in_generate=True,
        )
    first, second = torch.cat(output.scores).topk(2).values.T
    answer = output.sequences[0, len(ids) :].tolist()
    return answer[:-1] if answer[-1] in eos_ids else answer, (first - second).min().item()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_transformers_own(tiny_models, penalty):
    from transformers import AutoModelForCausalLM

    from kdag.models import decoding

    folder, cap = tiny_models / "student", 24
    model, tokenizer = decoding.load_model(folder, "float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    theirs = functools.partial(greedy, plain.to(DEVICE).eval(), cap=cap, penalty=penalty)
    prompts = random_prompts(3, 17, 8, 30, 5)

    def ours(eos_ids):
        return decoding.decode_greedily(
            model,
            prompts,
            vocabulary=len(tokenizer),
            eos_ids=eos_ids,
            max_new_tokens=cap,
            repetition_penalty=penalty,
        )

    free, _ = ours([])
    eos_ids = [free[0][3], free[2][7]]  # a random model never says its end token; these it does say
    answers, cut_off = ours(eos_ids)
    assert answers == [theirs(ids, eos_ids)[0] for ids in prompts]
    assert cut_off == [len(answer) == cap for answer in answers]


def test_decoding_in_bf16_stays_within_the_vocabulary(tiny_models):
    from kdag.models import decoding

    model, tokenizer = decoding.load_model(tiny_models / "teacher", "bfloat16")
    answers, cut_off = decoding.decode_greedily(
        model, [[5, 6, 7], [8]], vocabulary=len(tokenizer), eos_ids=[], max_new_tokens=40
    )
    assert cut_off == [True, True] and all(0 <= i < len(tokenizer) for row in answers for i in row)


@needs("vllm", "lm_eval", "datasets", "pydantic", only_cuda=True)
def test_vllm_answers_as_transformers_does(tiny_models, tmp_path):
    """Where one token leads clearly at every step, so that rounding decides nothing."""
    from kdag.models.load import load_tokenizer

    # Heads of 64, which every attention of vLLM takes, and rows without a token that are louder than tokens.
    model = tiny.model(steps.VOCABULARY + 8, hidden=256, layers=2, tied=False, seed=3).eval()
    with torch.no_grad():
        model.lm_head.weight[steps.VOCABULARY :] *= 3
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tiny_models / "student")
    assert len(tokenizer) == steps.VOCABULARY
    tokenizer.save_pretrained(tmp_path)
    prompts = random_prompts(*range(3, 43))
    ends = sorted({2, *(greedy(model, ids, [], steps.ANSWER)[0][3] for ids in prompts[:3])})
    wanted = {tuple(ids): greedy(model, ids, ends, steps.ANSWER) for ids in prompts}
    clear = [ids for ids in prompts if wanted[tuple(ids)][1] > 0.05]
    assert len(clear) >= 5
    torch.cuda.empty_cache()  # vLLM takes nine tenths of the whole GPU
    printed = step(DEVICE, "answer", tmp_path, json.dumps(clear), json.dumps(ends)).splitlines()
    answers = json.loads(next(line for line in reversed(printed) if line.startswith("[[")))
    assert [ids for ids, _ in answers] == [wanted[tuple(ids)][0] for ids in clear]
    assert [cut_off for _, cut_off in answers] == [len(ids) == steps.ANSWER for ids, _ in answers]
    assert len({len(ids) for ids, _ in answers}) > 1


@on_cuda
def test_steps_are_graphs_and_say_what_a_growing_cache_says(tiny_models, monkeypatch):
    """In float32, with rows that end at different times, so that the batch is halved and the cache moves."""
    from kdag.models import batch, decoding, static

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
    from kdag.models import decoding, static

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

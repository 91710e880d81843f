"""Unsloth's own code on a CPU, its kernels interpreted in float32, against transformers. `make test-unsloth`.

Each training is a process of its own: Unsloth patches transformers for as long as a process lives.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import interpreted
import pytest
import tiny
import torch
from conftest import ROOT
from test_training import write_cache

from kdag.data.rows import read_rows
from kdag.files.hashes import sha256_text
from kdag.files.manifest import read_manifest, write_manifest
from kdag.models import load

pytestmark = [pytest.mark.unsloth, pytest.mark.timeout(3000)]

SCRIPTS = ROOT / "workflow" / "scripts"
# What importing Unsloth needs besides the tests' environment. Its torchvision and xformers are for CUDA.
FURTHER = (
    *("cut_cross_entropy==25.1.1", "docstring_parser==0.18.0", "hf_transfer==0.1.9", "msgspec==0.22.0"),
    *("typeguard==4.6.1", "tyro==1.0.17"),
)
VOCABULARY = {"vocabulary_hash": "of a vocabulary", "template_hash": "of a template"}
LORA = {
    "divergence": "fkl",
    "dtype": "float32",
    "epochs": 1,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 1e-3,
    "lora_rank": 4,
}


@pytest.fixture(scope="session")
def packages() -> Path:
    """Unsloth as it is pinned, installed once next to nothing else; it stays for the next time."""
    pins = re.findall(r"^unsloth\S*", (ROOT / "envs" / "requirements-unsloth.txt").read_text(), re.M)
    wanted = [*pins, *FURTHER]
    folder = Path(tempfile.gettempdir()) / f"kdag-unsloth-{sha256_text(' '.join(wanted))[:12]}"
    if not (folder / "installed").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
        done = subprocess.run([*pip, "--target", folder, *wanted], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Unsloth cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return folder


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Path:
    """teacher/model, student, data, chat.json and the teacher's cache: what the stages are given."""
    folder = tmp_path_factory.mktemp("unsloth")
    tiny.save_models(folder)
    (folder / "teacher").rename(folder / "model")
    (folder / "teacher").mkdir()
    (folder / "model").rename(folder / "teacher" / "model")
    tokenizer = load.load_tokenizer(folder / "student")
    (folder / "data").mkdir()
    tiny.encoded(tiny.rows(14), tokenizer, folder / "data", train_rows=12, heldout_rows=2)
    tiny.chat_file(folder / "student", folder)
    bare = {"params": {}, "inputs": {}}
    write_manifest(
        folder / "data" / "manifest.json",
        stage="subset",
        outputs=[folder / "data" / "train.parquet"],
        vocabulary_size=len(tokenizer),
        **bare,
        **VOCABULARY,
    )
    write_manifest(folder / "manifest.json", stage="fetch_model", outputs=[folder / "student"], **bare)
    model = folder / "teacher" / "model"
    write_manifest(folder / "teacher" / "manifest.json", stage="sft", outputs=[model], **bare)
    frame = read_rows(folder / "data" / "train.parquet")
    write_cache(folder / "cache", frame, load.load_model(model, "float32"), len(tokenizer))
    return folder


@pytest.fixture(scope="session")
def stage(packages, experiment):
    """stage(name, backend, words): the log of a stage, run as on a GPU with Unsloth or as on a CPU."""

    def run(name, backend, *words):
        start = [interpreted.__file__, name] if backend == "unsloth" else [SCRIPTS / f"{name}.py"]
        environment = {**os.environ, "PYTHONPATH": str(packages)} if backend == "unsloth" else os.environ
        done = subprocess.run(
            [*map(str, [sys.executable, *start, *words])], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stderr

    return run


@pytest.fixture(scope="session")
def distilled(stage, experiment):
    """distilled(backend, settings): the folder of a student and the log of its training."""
    done = {}

    def run(backend, **settings):
        key = json.dumps({"backend": backend, **settings}, sort_keys=True)
        if key not in done:
            folder = experiment / f"distilled{len(done)}"
            teacher = "teacher" if "teacher_dtype" in settings else "cache"
            words = ["--config", json.dumps({**LORA, "backend": backend, **settings})]
            words += ["--model", experiment / "student", "--train", experiment / "data" / "train.parquet"]
            words += ["--chat", experiment / "chat.json", "--output", folder / "model"]
            words += ["--teacher", experiment / teacher / "manifest.json"]
            words += ["--log", folder / "training.jsonl", "--manifest", folder / "manifest.json"]
            done[key] = folder, stage("distill", backend, *words)
        return done[key]

    return run


def steps(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 60).reshape(3, 19)).logits


def assert_same_training(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    assert len(steps(ours)) == len(steps(theirs)) == 2
    for found, wanted in zip(steps(ours), steps(theirs), strict=True):
        assert found == pytest.approx(wanted, rel=tolerance)


WAYS = [
    {"gradient_checkpointing": False},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": False, "tokens_per_pass": 150},
]


@pytest.mark.parametrize("settings", WAYS, ids=["several rows", "checkpoints", "by tokens"])
def test_losses_and_gradients_are_those_of_transformers(distilled, settings):
    ours, log = distilled("unsloth", **settings)
    assert "backend: unsloth 20" in log and read_manifest(ours / "manifest.json")["backend"] == "unsloth"
    assert_same_training(ours, distilled("transformers", **settings)[0])


def test_the_fused_kernels_of_adapters_are_right_to_half_precision(distilled):
    """Which Unsloth takes where the frozen weights have 16 bits. Interpreted, bfloat16 gives no numbers."""
    ours, log = distilled("unsloth", **WAYS[0], dtype="float16")
    assert "patched 2 layers with 2 QKV layers, 2 O layers and 2 MLP layers" in log
    assert_same_training(ours, distilled("transformers", **WAYS[0], dtype="float16")[0], 5e-3)


def test_what_is_saved_is_what_was_trained(distilled, experiment):
    """By transformers without Unsloth: the merged model, and the adapter on the untrained student."""
    from peft import PeftModel

    ours, theirs = (distilled(backend, **WAYS[0])[0] / "model" for backend in ("unsloth", "transformers"))
    student = load.load_model(experiment / "student", "float32")
    before, merged = logits(student), logits(load.load_model(ours, "float32"))
    adapted = logits(PeftModel.from_pretrained(student, ours / "adapter"))
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert torch.allclose(merged, logits(load.load_model(theirs, "float32")), atol=1e-3)
    assert (merged - before).abs().max() > 0.1
    files = [sorted(file.relative_to(model) for file in model.rglob("*")) for model in (ours, theirs)]
    assert files[0] == files[1]
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        found, wanted = (json.loads((model / name).read_text()) for model in (ours, theirs))
        found.pop("unsloth_version", None)
        assert found == wanted, name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tuning": "full"}, "tuning: full trains every weight in float32"),
        ({"teacher_dtype": "float32"}, "the teacher is online"),
    ],
)
def test_what_unsloth_does_not_take_is_trained_by_transformers(distilled, settings, reason):
    ours, log = distilled("unsloth", **settings)
    assert f"backend: transformers, since {reason}" in log
    assert read_manifest(ours / "manifest.json")["backend"] == "transformers"
    assert_same_training(ours, distilled("transformers", **settings)[0])

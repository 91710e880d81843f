"""Training in two processes on the CPU, through the real scripts: as in one, and gone when it is killed."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_training import write_cache

import distill
import distill_on_policy
import sft
from kdag.config.training import DistillationJob
from kdag.data import rows
from kdag.files.manifest import write_manifest
from kdag.job import launching
from kdag.job.errors import UserError
from kdag.models import load

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
ROWS = 21  # with two rows per pass and two processes: the last pass of the second has nothing to learn
SETTINGS = {
    "dtype": "float32",
    "epochs": 2,
    "batch_size": 2,
    "gradient_accumulation": 4,
    "learning_rate": 1e-3,
    "gradient_checkpointing": False,
    "seed": 0,
}
LORA = SETTINGS | {"lora_rank": 4, "lora_dropout": 0.0}
SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 6,
    "refresh": 1,
    "replay": 0,
    "batch_size": 64,
}
ON_POLICY = LORA | {
    "divergence": "rkl",
    "use_ce_loss": False,
    "teacher_dtype": "float32",
    "answers": {"student": 1.0},
    "sampling": SAMPLING,
}


@pytest.fixture(scope="module")
def home(tiny_models, tmp_path_factory) -> Path:
    """data/, student/model, cache/: what the training stages read."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = load.load_tokenizer(tiny_models / "student")
    (folder / "data").mkdir()
    tiny.encoded(tiny.rows(ROWS + 2), tokenizer, folder / "data", train_rows=ROWS, heldout_rows=2)
    said = {
        "vocabulary_size": len(tokenizer),
        "vocabulary_hash": "of a vocabulary",
        "template_hash": "of a template",
    }
    manifest(folder / "data", "train.parquet", **said)
    (folder / "student").mkdir()
    (folder / "student" / "model").symlink_to(tiny_models / "student")
    manifest(folder / "student", "model")
    teacher = load.load_model(tiny_models / "teacher", "float32")
    frame = rows.read_rows(folder / "data" / "train.parquet")
    write_cache(folder / "cache", frame, teacher, len(tokenizer))
    (folder / "teacher").mkdir()
    (folder / "teacher" / "model").symlink_to(tiny_models / "teacher")
    manifest(folder / "teacher", "model")
    tiny.chat_file(tiny_models / "student", folder / "data")
    return folder


def manifest(folder: Path, output: str, **said) -> None:
    write_manifest(
        folder / "manifest.json", stage="test", params={}, inputs={}, outputs=[folder / output], **said
    )


def arguments(home: Path, target: Path, config: dict, teacher: bool) -> list[str]:
    given = {
        "config": json.dumps(config),
        "model": home / "student" / "model",
        "train": home / "data" / "train.parquet",
        "output": target / "model",
        "log": target / "training.jsonl",
        "manifest": target / "manifest.json",
    } | ({"teacher": home / "cache" / "manifest.json"} if teacher else {})
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


def on_policy(home: Path, target: Path, config: dict) -> list[str]:
    given = arguments(home, target, config, teacher=False)
    return [
        *given,
        "--teacher",
        f"{home / 'teacher' / 'manifest.json'}",
        "--chat",
        f"{home / 'data' / 'chat.json'}",
    ]


def start(script: str, *given: str, scripts: Path = SCRIPTS) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(scripts / f"{script}.py"), "--gpus", "2", *given],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(job: subprocess.Popen) -> str:
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 0, out
    return out


def check_same(one: Path, other: Path) -> None:
    """Log and weights of two runs."""
    logs = [[json.loads(line) for line in (run / "training.jsonl").open()] for run in (one, other)]
    assert len(logs[0]) == len(logs[1]) > 2
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"epoch"}:  # of a process's own passes, with those that have nothing to learn
            value, exact = a[key], key in ("step", "answer_tokens", "learning_rate")
            assert b[key] == (
                value if exact else pytest.approx(value, rel=1e-4 if key == "grad_norm" else 1e-5)
            )
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        # Adam's first steps divide by the gradient itself, so rounding of a tiny one shows.
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=3e-5)


def test_two_processes_tune_every_weight_as_one(home, tmp_path):
    config = SETTINGS | {"tuning": "full"}
    two = start("sft", *arguments(home, tmp_path / "two", config, teacher=False))
    sft.main(sft.arguments().parse_args(arguments(home, tmp_path / "one", config, teacher=False)))
    out = finish(two)
    assert "2 processes" in out
    assert len(re.findall(r"step 1/6", out)) == 1  # the first process speaks for all
    check_same(tmp_path / "one", tmp_path / "two")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert [m["device"] for m in manifests] == ["cpu", "2 x cpu"]
    assert manifests[0]["params"] == manifests[1]["params"]
    assert not list((tmp_path / "two").glob(".checkpoints-*"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Running, and not merely waiting for somebody to collect its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def saving_each_step(scripts: Path) -> Path:
    """A copy of the scripts with a checkpoint at every step."""
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    file = scripts / "kdag" / "training" / "checkpoints.py"
    text = file.read_text()
    assert "SECONDS_BETWEEN_CHECKPOINTS = 120" in text
    file.write_text(text.replace("SECONDS_BETWEEN_CHECKPOINTS = 120", "SECONDS_BETWEEN_CHECKPOINTS = -1"))
    return scripts


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and the kernel's signal at a parent's death")
def test_a_killed_launcher_takes_its_workers_along_and_training_goes_on(home, tmp_path):
    """Distilled with adapters in two processes, killed, gone on with: what one process makes of it."""
    scripts = saving_each_step(tmp_path / "scripts")
    config = LORA | {"divergence": "fkl"}
    given = arguments(home, tmp_path / "two", config, teacher=True)
    job = start("distill", *given, scripts=scripts)
    for line in job.stdout:
        if "step 3/6" in line:
            break
    workers = children(job.pid)
    assert len(workers) >= 2
    job.kill()
    job.wait()
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)]
    assert not (tmp_path / "two" / "manifest.json").exists()

    out = finish(start("distill", *given, scripts=scripts))
    assert re.search(r"going on from .*checkpoint-[2345]\b", out), out
    assert "step 2/6" not in out
    distill.main(distill.arguments().parse_args(arguments(home, tmp_path / "one", config, teacher=True)))
    check_same(tmp_path / "one", tmp_path / "two")


def test_two_processes_learn_from_the_answers_of_one_and_a_killed_run_goes_on_with_them(home, tmp_path):
    """Each answers its own rows, by the rows' own seeds; killed in the middle, the same in the end."""
    scripts = saving_each_step(tmp_path / "scripts")
    given = on_policy(home, tmp_path / "two", ON_POLICY)
    job = start("distill_on_policy", *given, scripts=scripts)
    for line in job.stdout:
        if "step 3/6" in line:
            break
    job.kill()
    job.communicate()
    out = finish(start("distill_on_policy", *given, scripts=scripts))
    assert "going on from" in out and "step 2/6" not in out
    parser = distill_on_policy.arguments()
    distill_on_policy.main(parser.parse_args(on_policy(home, tmp_path / "one", ON_POLICY)))
    check_same(tmp_path / "one", tmp_path / "two")
    said = [(tmp_path / name / "answers.jsonl").read_text() for name in ("one", "two")]
    assert len(said[0].splitlines()) == 2 * ROWS
    entries = [[json.loads(line) for line in text.splitlines()] for text in said]
    assert [e["tokens"] for e in entries[0]] == [e["tokens"] for e in entries[1]]
    costs = [json.loads((tmp_path / name / "manifest.json").read_text())["cost"] for name in ("one", "two")]
    assert costs[0] == costs[1] and costs[0]["sampled_tokens"] == sum(len(e["tokens"]) for e in entries[0])


def test_a_sharded_student_does_not_answer_itself(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("KDAG_SHARD", "1")
    given = distill_on_policy.arguments().parse_args(on_policy(home, tmp_path, ON_POLICY))
    with pytest.raises(UserError, match="has to fit on one GPU"):
        distill_on_policy.main(given)


def test_passes_that_cannot_be_shared_out_are_refused_before_anything_starts(monkeypatch):
    begun = []
    monkeypatch.setattr(launching, "launch", begun.append)
    monkeypatch.delenv(launching.LAUNCHER, raising=False)
    stage = launching.one_process_per_gpu(begun.append, DistillationJob)
    config = {"divergence": "fkl", "gradient_accumulation": 4}
    with pytest.raises(UserError, match="4 forward passes cannot be shared out evenly to 3 processes"):
        stage(argparse.Namespace(config=config, gpus=3))
    assert not begun
    stage(argparse.Namespace(config=config, gpus=2))
    assert begun == [2]


def test_a_fault_is_said_once_and_ends_all_processes(home, tmp_path):
    given = arguments(home, tmp_path, SETTINGS, teacher=False)
    given[given.index("--model") + 1] = str(home / "student" / "gone")
    job = start("sft", *given)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert out.count("error: ") == 1 and "gone is not there" in out
    assert "Traceback" not in out

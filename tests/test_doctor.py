"""`make doctor`: what it says of machines that lack one thing or another, also under a bare Python."""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny
import yaml
from conftest import ROOT

from kdag.config import yaml_file
from kdag.operate import doctor

SCRIPT = ROOT / "workflow" / "scripts" / "doctor.py"
TORCH = {"build": "2.13.0", "gpus": 1, "bf16": True}
NO_GPU = {"build": "2.13.0", "cuda": None, "gpus": 0, "bf16": False}
REACHED = {"hub": None, "package index": None}
NEEDED = {"hub": True, "package index": True}


def levels(findings) -> list[str]:
    return [f.level for f in findings]


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (doctor.python((3, 11, 7)), "ok", "3.11.7"),
        (doctor.python((3, 13, 0)), "problem", "make PYTHON=python3.11 install"),
        (doctor.python((3, 8, 1)), "problem", "Python 3.11 or 3.12 is needed"),
        (doctor.packages({"torch": "2.13.0"}, {}), "problem", "make install"),
        (doctor.packages({"a": "1", "b": "2"}, {"a": "1"}), "problem", "not installed: b"),
        (doctor.packages({"a": "1"}, {"a": "1.5"}), "warning", "a 1.5 (pinned 1)"),
        (doctor.packages({"torch": "2.13.0"}, {"torch": "2.13.0+cpu"}), "ok", "1 as pinned"),
        (doctor.disk(1e9, "here"), "problem", "make clean"),
        (doctor.disk(50e9, "here"), "warning", "50 GB free in here"),
        (doctor.disk(500e9, "here"), "ok", "500 GB"),
        (doctor.memory(2e9), "problem", "2 GB"),
        (doctor.memory(16e9), "warning", "enough for the demo"),
        (doctor.memory(64e9), "ok", "64 GB"),
        (doctor.cores(1), "warning", "1"),
        (doctor.slurm({"sbatch": False, "squeue": False}), "ok", "jobs run on this machine"),
        (doctor.slurm({"sbatch": True, "squeue": False}), "warning", "squeue not found"),
        (doctor.slurm({"sbatch": True, "squeue": True}), "ok", "profiles/slurm"),
        (doctor.locks(["0.input.lock"]), "warning", "snakemake --unlock"),
    ],
)
def test_finding(finding, level, words):
    assert finding.level == level
    assert words in doctor.table([finding])


@pytest.mark.parametrize(
    ("listed", "torch", "expected", "words"),
    [
        (None, None, ["warning"], "profiles/cpu"),
        ([], None, ["warning"], "nvidia-smi lists none"),
        (["H200, 143771 MiB"], None, ["ok"], "H200"),
        (["H200, 143771 MiB"], TORCH, ["ok", "ok"], "sees 1"),
        (["V100, 16384 MiB"], TORCH | {"bf16": False}, ["ok", "ok", "warning"], "dtype: float16 or float32"),
        (["H200"], NO_GPU, ["ok", "problem"], "is a build without CUDA"),
        (["H200, 143771 MiB, 535.54"], NO_GPU | {"cuda": "13.0"}, ["ok", "problem"], "driver 580 or newer"),
        (["A", "A"], TORCH | {"gpus": 2}, ["ok", "ok", "ok"], "snakemake --resources gpu=2"),
    ],
)
def test_gpu(listed, torch, expected, words):
    findings = doctor.gpu(listed, torch)
    assert levels(findings) == expected
    assert words in doctor.table(findings)


def test_network_is_a_problem_only_where_something_is_to_come_from_it():
    assert levels(doctor.network(REACHED, NEEDED)) == ["ok", "ok"]
    away = {"hub": "timed out", "package index": "timed out"}
    assert levels(doctor.network(away, NEEDED)) == ["problem", "problem"]
    assert levels(doctor.network(away, {"hub": False, "package index": False})) == ["warning", "warning"]


def test_sources_that_are_fetched_need_no_hub():
    source = {"source": "hub", "id": "a/b", "revision": None, "path": None, "package": None, "file": None}
    findings, needed = doctor.sources({"teacher": source}, [])
    assert needed and "fetched by the first run" in findings[0].found
    findings, needed = doctor.sources({"teacher": source}, [{"params": 1}, dict(source)])
    assert not needed and "in resources/" in findings[0].found


def test_pins():
    text = "# a\nlm-eval[hf,ifeval]==0.4.13\n\ntorch==2.13.0  # why\n"
    assert doctor.parse_pins(text) == {"lm-eval": "0.4.13", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: {d\n", "line 3: no YAML"),
        ("a: 1\n\tb: 2\n", "line 2: no YAML"),
        ("- a\n", "keys with values are needed at the top"),
        ("", "keys with values are needed at the top"),
        ("s:\n  fkl: {a: 1}\n  rkl: {a: 1}\n  fkl: {a: 2}\n", "line 4: `fkl` stands in line 2 already"),
        ("a: \x07\n", "no YAML"),
    ],
)
def test_yaml_mistakes_have_their_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    (problem,) = yaml_file.problems(file)
    assert problem.startswith(f"{file}") and message in problem
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("name", ["config.yaml", "experiments/demo.yaml"])
def test_yaml_of_the_project_has_none(name):
    assert yaml_file.problems(ROOT / name) == []


@pytest.mark.parametrize("name", ["doctor.py", "kdag/operate/doctor.py", "kdag/__init__.py"])
def test_old_pythons_can_read_it(name):
    """Whoever has 3.8 is told that 3.11 is needed, and not shown a syntax error."""
    ast.parse((ROOT / "workflow" / "scripts" / name).read_text(), feature_version=(3, 8))


def told(folder, *arguments, bare=False, **environment):
    command = [sys.executable, *(["-S"] if bare else []), str(SCRIPT), *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120, env=env)


def test_bare_python_is_told_to_install(tmp_path):
    """Without site-packages, as before `make install`."""
    done = told(tmp_path, "--no-network", bare=True)
    assert done.returncode == 1 and not done.stderr
    assert "none of the pinned packages is installed here" in done.stdout
    assert "-> make install" in done.stdout


@pytest.fixture
def experiment(tmp_path, tiny_models):
    for name in ("rows.jsonl", "prompts.jsonl"):
        (tmp_path / name).touch()
    for name in ("teacher", "student"):
        (tmp_path / name).symlink_to(tiny_models / name)
    raw = tiny.configuration(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    return raw


def test_a_machine_with_everything_has_no_problem(tmp_path, experiment):
    """A fake nvidia-smi and SLURM; addresses that do not answer, which this experiment does not need."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (programs / name).write_text("#!/bin/sh\n")
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    for file in programs.iterdir():
        file.chmod(0o755)
    done = told(
        *(tmp_path, "--config", "mine.yaml"),
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        HF_ENDPOINT="http://127.0.0.1:9",
        PIP_INDEX_URL="http://name:secret@127.0.0.1:9/simple",
        HF_TOKEN="hf_secret",
    )
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    assert all("that torch does not see" in line for line in problems), "torch is real, the GPU is not"
    assert "NVIDIA H200" in done.stdout and "found; profiles/slurm" in done.stdout
    assert "hub            out of reach" in done.stdout
    assert "there is one for the hub" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_a_bad_configuration_and_a_held_lock_are_told(tmp_path, experiment):
    raw = experiment | {"strategies": {"x": {"divergence": "klf"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw) + "\nseeds: [0]\nseeds: [1]\n")
    (tmp_path / ".snakemake" / "locks").mkdir(parents=True)
    (tmp_path / ".snakemake" / "locks" / "0.output.lock").touch()
    (tmp_path / "resources" / "models" / "half").mkdir(parents=True)
    (tmp_path / "resources" / "models" / "half" / "manifest.json").write_text("{")
    done = told(tmp_path, "--config", "mine.yaml", "--no-network")
    assert done.returncode == 1
    assert "problem  configuration  strategies.x.divergence: Input should be 'fkl'" in done.stdout
    assert "`seeds` stands in line" in done.stdout
    assert "snakemake --unlock" in done.stdout
    assert "Traceback" not in done.stderr


def test_models_that_would_be_refused_are_told(tmp_path, experiment, tiny_models):
    (tmp_path / "student").unlink()
    shutil.copytree(tiny_models / "student", tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    (tmp_path / "teacher").unlink()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    done = told(tmp_path, "--config", "mine.yaml", "--no-network")
    assert done.returncode == 1
    assert "an adapter without the model that it adapts (some/base)" in done.stdout
    assert "the tokenizer has 400 tokens and its model only 300" in done.stdout


def test_a_derived_student_with_few_steps_is_warned_of(tmp_path, experiment):
    raw = experiment | {"student": {"derive": {"from": "teacher", "keep_layers": 2}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    done = told(tmp_path, "--config", "mine.yaml", "--no-network")
    assert done.returncode == 0, done.stdout
    assert "warning  steps          students cut from their teacher get 3 optimiser steps each" in done.stdout
    assert "-> raise distillation.epochs or data.train_rows" in done.stdout


def test_what_is_fetched_is_found(tmp_path, experiment):
    source = {"source": "hub", "id": "a/b", "revision": None, "path": None, "package": None, "file": None}
    raw = experiment | {"teacher": {"source": "hub", "id": "a/b"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    assert told(tmp_path, "--config", "mine.yaml", **away).returncode == 1
    folder = tmp_path / "resources" / "models" / "b-12345678"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"params": source}))
    done = told(tmp_path, "--config", "mine.yaml", **away)
    assert done.returncode == 0, done.stdout
    assert "teacher        a/b: in resources/" in done.stdout

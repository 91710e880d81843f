"""The line of a job that is far slower than planned: when it is said, and what the rules tell each job."""

import json
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import yaml
from conftest import ROOT, Project
from test_workflow import edit, planned

from kdag.config.load import load_config
from kdag.config.stages import stage_params
from kdag.data.rows import EncodedRows
from kdag.job import progress
from kdag.models.decoding import GenerationProgress
from kdag.planning import devices, expected
from kdag.teacher import cache
from kdag.training.checkpoints import Follow

SAID = "this job will take about"


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plan(monkeypatch):
    """Sets how long the plan says that this job takes."""
    monkeypatch.setattr(progress.Pace, "planned", 0.0)
    return lambda seconds: monkeypatch.setattr(progress.Pace, "planned", seconds)


def lines(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if SAID in r.getMessage()]


# --- the rule -------------------------------------------------------------------------------------


def test_a_job_far_slower_than_planned_says_so_once_with_what_to_look_at(clock, plan, caplog):
    plan(250)
    pace, other = progress.Pace(90, clock), progress.Pace(90, clock)
    clock.seconds += 120
    pace.add(2)
    (line,) = lines(caplog)
    assert "about 1:30:00, the plan said 0:04:10: `make doctor` says" in line and "`make plan`" in line
    assert caplog.records[0].levelno == logging.WARNING
    pace.add(1)
    other.add(1)
    assert len(lines(caplog)) == 1, "once a job, however many loops it has"


@pytest.mark.parametrize(
    ("planned_seconds", "after", "done", "expected"),
    [
        (250, 59, 1, False),  # the first minute is not over
        (250, 61, 1, True),  # 5,490 s of 2,500
        (250, 61, 2, True),
        (250, 61, 3, False),  # 1,830 s
        (20, 61, 9, True),  # 610 s: a short plan counts as a minute
        (20, 61, 10, False),  # 549 s
        (0, 9999, 1, False),  # no plan is known
        (250, 9999, 0, False),  # nothing is done, so nothing is known
        (250, 9999, 90, False),  # all is done
    ],
)
def test_ten_times_the_plan_after_a_minute(clock, plan, caplog, planned_seconds, after, done, expected):
    plan(planned_seconds)
    pace = progress.Pace(90, clock)
    clock.seconds += after
    pace.reach(done)
    assert bool(lines(caplog)) is expected


def test_a_job_that_slows_down_later_says_so_then(clock, plan, caplog):
    plan(60)
    pace = progress.Pace(100, clock)
    for seconds, expected_lines in ((60, 0), (60, 0), (600, 1)):
        clock.seconds += seconds
        pace.add(10)
        assert len(lines(caplog)) == expected_lines


# --- what the stages count ------------------------------------------------------------------------


def steps(follow, count: int, seconds: list[float], clock, most: int) -> None:
    state = SimpleNamespace(global_step=0, max_steps=most)
    control, arguments = SimpleNamespace(should_save=False), SimpleNamespace()
    follow.on_train_begin(arguments, state, control)
    for length in seconds[:count]:
        clock.seconds += length
        state.global_step += 1
        follow.on_step_end(arguments, state, control)


def test_training_is_judged_by_its_steps_after_the_first(clock, plan, caplog):
    plan(250)
    steps(Follow(clock), 3, [300, 30, 31], clock, 100)
    (line,) = lines(caplog)
    assert "about 0:50:20" in line, "99 steps of 30.5 s"


def test_a_first_step_that_compiles_is_no_measure(clock, plan, caplog):
    plan(250)
    steps(Follow(clock), 30, [300, *[3] * 29], clock, 100)
    assert not lines(caplog)


def test_a_training_of_one_step_says_nothing(clock, plan, caplog):
    plan(1)
    steps(Follow(clock), 1, [9999], clock, 1)
    assert not lines(caplog)


def test_generation_takes_a_running_answer_to_be_half_done(clock, plan, caplog):
    """Two batches of 4. Nobody knows which answer will reach the cap, so a high cap alone is no alarm."""
    plan(60)
    progress = GenerationProgress(8, 4096, clock)
    clock.seconds += 140
    progress.step([[7] * 10] * 4, [0, 1, 2, 3])  # by token slots 32 hours would be left
    assert not lines(caplog), "half of a batch in 140 s makes 560 s"
    clock.seconds += 20
    progress.step([[7] * 11] * 4, [0, 1, 2, 3])
    (line,) = lines(caplog)
    assert "about 0:10:40" in line


def test_generation_counts_the_answers_that_are_there(clock, plan, caplog):
    plan(60)
    progress = GenerationProgress(8, 4096, clock)
    clock.seconds += 260
    progress.step([[7] * 10] * 4, [3])
    assert not lines(caplog), "3.5 answers of 8 in 260 s make 594 s"
    clock.seconds += 10
    progress.step([[7] * 11] * 4, [3])
    assert "about 0:10:17" in lines(caplog)[0]


def test_caching_counts_the_tokens_of_all_its_files(clock, plan, caplog, monkeypatch, tmp_path):
    """Long rows come first in every file, so that rows would tell too little of what is done."""
    import numpy as np
    import torch

    plan(60)
    monkeypatch.setattr(cache, "hidden_states", lambda model, ids, mask: torch.zeros(*ids.shape, 2))
    monkeypatch.setattr(cache, "device", lambda: torch.device("cpu"))
    rows = [np.arange(length) for length in (90, 10, 50, 50)]
    frame = EncodedRows.of(rows, [np.ones(len(row)) for row in rows])
    assert cache.count_tokens(frame) == 200
    pace, seen = progress.Pace(200, clock), []
    monkeypatch.setattr(
        progress.Pace, "reach", lambda self, done: seen.append(done) or setattr(self, "done", done)
    )
    cache.write_part(
        None,
        frame,
        tmp_path,
        unit="rows",
        batch_tokens=100,
        rows_per_shard=2,
        encode=lambda hidden, row: {"hidden": hidden},
        pace=pace,
    )
    assert seen == [90, 100, 200]


# --- what the plan is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("h100", "H100"),
        ("a100", "A100-40GB"),
        ("a100_80gb", "A100-80GB"),
        ("nvidia_h100_80gb_hbm3", "H100"),
        ("rtx_3090", "RTX-3090"),
        ("v100", "V100-32GB"),
        ("a10", "A10"),
        ("l40s", "L40S"),
        ("cpu", None),
        ("gtx1080", None),
        ("", None),
    ],
)
def test_device_of_a_cluster_s_gpu_model(name, device):
    found = devices.of_model(name)
    assert (found and found.name) == device


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts one that lists these GPUs first on PATH."""

    def put(*names: str, status: int = 0):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{n}'\n" for n in names) + f"exit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        expected.device_here.cache_clear()

    yield put
    expected.device_here.cache_clear()


@pytest.mark.parametrize(
    ("names", "status", "device"),
    [
        (["NVIDIA H100 80GB HBM3"], 0, "H100"),
        (["NVIDIA H100 80GB HBM3", "Tesla T4"], 0, "T4"),
        (["NVIDIA GeForce GTX 1080"], 0, None),
        ([], 0, "cpu"),
        (["Failed to initialize NVML: no driver"], 9, "cpu"),
    ],
)
def test_device_of_this_machine(nvidia_smi, names, status, device):
    nvidia_smi(*names, status=status)
    found = expected.device_here()
    assert (found and found.name) == device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny experiment's models and configuration."""
    made = tmp_path_factory.mktemp("tiny")
    tiny.write_experiment(made)
    return made


def seconds(folder, device="cpu", results="results", **changes) -> dict:
    config = load_config(yaml.safe_load((folder / "config.yaml").read_text()) | changes)
    return expected.seconds(
        config, device and devices.DEVICES[device], folder / "teacher", folder / "student", folder / results
    )


def test_every_stage_of_the_planner_has_its_seconds(folder):
    found = seconds(folder)
    assert set(found) == {
        *("sft_teacher", "cache_teacher", "sft_student", "distill", "generate", "measure_fidelity")
    }
    assert all(isinstance(value, int) and value >= devices.START_SECONDS for value in found.values())
    assert seconds(folder, student={"derive": {"from": "teacher", "keep_layers": 2}}).keys() == found.keys()


def test_counted_rows_make_the_seconds(folder, tmp_path):
    config = load_config(yaml.safe_load((folder / "config.yaml").read_text()))
    rows = {"rows": 24, "tokens": 10**10, "answer_tokens": 10**10}
    data = tmp_path / "results" / "tiny" / "data"
    data.mkdir(parents=True)
    manifest = {"params": stage_params(config, "subset"), "report": {"train": rows, "heldout": rows}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert seconds(folder, results=tmp_path / "results")["distill"] > 10 * seconds(folder)["distill"]


def test_where_nothing_can_be_planned_nothing_is_said(folder, tmp_path):
    assert seconds(folder, device=None) == {}
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert seconds(tmp_path) == {}, "no models yet"
    for side in ("teacher", "student"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert seconds(tmp_path) == {}


def test_a_stage_takes_the_plan_as_an_argument():
    code = (
        "from kdag.job import cli, progress;"
        "cli.run(lambda args: print(progress.Pace.planned), cli.parser('x', gpus=True))"
    )
    for arguments, rank, said in (
        (["--planned", "90"], "0", "90.0"),
        ([], "0", "0"),
        (["--planned", "9"], "1", "0.0"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT / "workflow" / "scripts",
            env={**os.environ, "RANK": rank},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == said, "the first of several processes speaks for all"


# --- the rules ------------------------------------------------------------------------------------

GPU_RULES = ("sft_teacher", "cache_teacher", "sft_student", "distill", "generate", "measure_fidelity")


def told(project, *arguments, what=r" --planned (\S+)") -> dict[str, set[str]]:
    """{rule: what it would be told with --planned} of a dry run in which all of these rules run."""
    out = project.snakemake("-n", "-p", *arguments, "--forcerun", *GPU_RULES).stdout
    found = {}
    for rule, text in re.findall(r"^rule (\w+):\n(.*?)(?=^(?:local)?rule |\Z)", out, re.M | re.S):
        found.setdefault(rule, set()).update(re.findall(what, text))
    return {rule: found[rule] for rule in GPU_RULES}


def asked(project, *arguments) -> dict[str, set[str]]:
    """{rule: the GPU memory that it would take, in MB}."""
    return told(project, *arguments, what=r"(?m)^    resources: .*\bgpu_mb=(\S+?)(?:,|$)")


def test_each_job_is_told_what_the_planner_says_of_its_stage(finished):
    config = load_config(yaml.safe_load((finished.folder / "config.yaml").read_text()))
    wanted = expected.seconds(
        config,
        expected.device_here(),
        finished.folder / "tiny" / "teacher",
        finished.folder / "tiny" / "student",
        finished.folder / "results",
    )
    assert told(finished) == {rule: {str(wanted[rule])} for rule in GPU_RULES}


def test_a_dry_run_before_the_models_are_there_shows_what_is_to_be_determined(tmp_path):
    found = told(Project(tmp_path))
    assert found == {rule: {"<TBD>"} for rule in GPU_RULES}


def test_on_a_cluster_the_card_is_that_of_gpu_model(finished):
    known = told(finished, "--default-resources", "gpu_model=t4")
    assert all(int(*values) > 0 for values in known.values())
    unknown = told(finished, "--default-resources", "gpu_model=gtx1080")
    assert unknown == {rule: {"0"} for rule in GPU_RULES}


def test_a_job_asks_for_the_gpu_memory_that_the_planner_says(finished, nvidia_smi):
    nvidia_smi("NVIDIA H200")
    config = load_config(yaml.safe_load((finished.folder / "config.yaml").read_text()))
    models = (finished.folder / "tiny" / side for side in ("teacher", "student"))
    plan = expected.stages(config, devices.DEVICES["H200"], *models, finished.folder / "results")
    found = asked(finished)
    for rule in GPU_RULES:
        kinds = {expected.gpu_mb(plan[rule], kind) for kind in plan[rule]["gpu_bytes_of"]}
        assert found[rule] == set(map(str, kinds)), rule
        assert max(kinds) == expected.gpu_mb(plan[rule])
    assert len(found["generate"]) == 2, "a student's answers take less than the teacher's"


def test_a_job_that_nobody_can_plan_takes_all_that_there_is(finished, nvidia_smi):
    nvidia_smi("NVIDIA GeForce GTX 1080")
    limit = ("--resources", "gpu_mb=8000")
    assert asked(finished, *limit) == {rule: {"8000"} for rule in GPU_RULES}
    assert not planned(finished, *limit)[0], "asking for memory runs nothing again"


def test_without_a_gpu_no_job_asks_for_its_memory(finished):
    assert asked(finished) == {rule: {"0"} for rule in GPU_RULES}


def test_another_card_runs_nothing_again(finished, nvidia_smi):
    before = told(finished)
    nvidia_smi("NVIDIA GeForce GTX 1080")
    assert told(finished) == {rule: {"0"} for rule in GPU_RULES} != before
    assert not planned(finished)[0]


def test_an_edit_of_the_planner_remakes_the_page_alone(finished):
    for module in ("planner", "needs", "devices", "shapes", "expected"):
        edit(finished, f"kdag/planning/{module}.py", '"""', '"""Edited. ', {"write_report": 1})

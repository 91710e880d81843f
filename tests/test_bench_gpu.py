"""bench/gpu.py on a machine without a GPU: the whole program at tiny shapes, and what it reckons with."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def bench():
    """bench/ as where modules come from."""
    sys.path.insert(0, str(ROOT / "bench"))
    yield
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON of a run of every part, and what it printed."""
    file = tmp_path_factory.mktemp("bench") / "gpu.json"
    options = ["--device", "cpu", "--shapes", "tiny", "--quick", "--minutes", "4", "--json", file]
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu.py", *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(file.read_text()) | {"printed": done.stdout}


def test_every_part_is_measured(result):
    import gpu

    assert list(result["parts"]) == [*gpu.UNASKED, "experiment"]
    for name, part in result["parts"].items():
        if name == "unsloth":
            assert part["status"] == "skipped" and part["notes"] == ["unsloth is not installed"]
            continue
        assert part["status"] == "done", name
        assert part["rows"] and not [note for note in part["notes"] if "Error" in note], part["notes"]
        for row in part["rows"]:
            assert math.isfinite(row["value"]), row
            if " / " in row["figure"]:
                assert row["value"] > 0, row
    assert result["environment"]["packages"]["torch"] == torch.__version__


def test_every_target_is_listed_with_its_verdict(result):
    import gpu

    assert {row["figure"] for row in result["targets"]} == set(gpu.TARGETS)
    for row in result["targets"]:
        assert row["met"] in (True, False) and row["target"].startswith(("at most", "at least"))
        assert ("met" if row["met"] else "MISSED") in result["printed"]


def test_the_sum_is_that_of_the_stages(result):
    rows = {row["figure"]: row["value"] for row in result["parts"]["experiment"]["rows"]}
    total = rows["the whole default experiment, minutes"]
    stages = ("sft_teacher", "cache_teacher", "sft_student", "distill", "generate", "measure_fidelity")
    assert math.isclose(total, sum(rows[f"{stage}, minutes"] for stage in stages))
    assert rows["both of these, minutes"] > 0


def test_a_part_that_takes_too_long_is_ended_and_keeps_what_it_measured():
    import gpu

    args = Namespace(device="cpu", shapes="tiny", quick=True)
    part = gpu.run_part("loss", args, 0.01)
    assert part["status"] == "stopped after 0 s" and part["rows"] == []


def test_what_was_not_measured_is_said():
    import gpu

    parts = {"experiment": gpu.experiment({})}
    assert parts["experiment"]["status"] == "skipped"
    assert "step: distillation, s per row" in parts["experiment"]["notes"][0]
    assert all(row["met"] is None for row in gpu.targets(parts))


@pytest.mark.parametrize(("name", "weights"), [("teacher", 7_615_616_512), ("student", 3_085_938_688)])
def test_shapes_have_the_published_number_of_weights(monkeypatch, name, weights):
    import gpu_shapes

    from kdag.models import load

    monkeypatch.setattr(load, "device", lambda: torch.device("meta"))
    shape = gpu_shapes.SHAPES["qwen2.5"][name]
    assert sum(p.numel() for p in gpu_shapes.model(shape).parameters()) == weights
    assert math.isclose(gpu_shapes.all_weights(shape), weights, rel_tol=1e-3)


def test_settings_are_those_of_the_stages():
    """gpu_shapes reads config.yaml without pydantic; kdag.config reads it with every check and default."""
    import gpu_shapes

    from kdag.config.load import load_config
    from kdag.planning import devices, planner

    whole = load_config(yaml.safe_load((ROOT / "config.yaml").read_text()))
    for section in ("teacher_training", "teacher_cache", "distillation", "evaluation"):
        wanted = planner.with_dtype(getattr(whole, section), devices.DEVICES["H200"])
        wanted = wanted.model_dump(exclude={"prompts"})
        ours = vars(gpu_shapes.settings(section))
        for key in set(wanted) - {"epochs"}:
            assert ours[key] == wanted[key], f"{section}.{key}"


def test_rows_have_the_measured_lengths():
    import gpu_shapes

    shapes = gpu_shapes.SHAPES["qwen2.5"]
    assert sorted(gpu_shapes.lengths(shapes, 64)) == sorted(gpu_shapes.ROWS)
    frame = gpu_shapes.rows(shapes, 3)
    for ids, mask, targets in zip(frame["input_ids"], frame["response_mask"], frame["targets"], strict=True):
        assert len(ids) == len(mask) and (targets != -100).sum() == mask.sum()
        assert ids.max() < shapes["vocabulary"]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_stand_in_for_trl_is_its_arithmetic(beta):
    pytest.importorskip("trl")
    import gpu_run

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 11)
    labels = torch.tensor([[-100, 1, 2, -100, 3, 4]])
    theirs, whose = gpu_run.gkd_loss()
    assert whose.startswith("TRL")
    for items in (None, 9):
        given = (student, teacher, labels, beta, 2.0, items)
        assert torch.allclose(theirs(*given), gpu_run.generalized_jsd(*given))


def test_the_longest_of_several_answers():
    from gpu_experiment import longest

    assert longest([5, 5, 5], 16) == 5
    assert math.isclose(longest([1, 2], 2), 1.75)  # of four equally likely pairs one has no 2

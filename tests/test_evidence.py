"""Small simulations through the report's own code, by bench/evidence.py: what its tests find and hold.

The large ones stand in docs/statistics.md.
"""

import importlib
import sys

import numpy as np
import pytest
from conftest import ROOT

from kdag.report import pool, power

RUNS = 100
SIX = {"sds": {"d": 0.6}}


@pytest.fixture(scope="module")
def evidence():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("evidence")
    sys.path.remove(str(ROOT / "bench"))


def test_three_seeds_find_ten_points(evidence, monkeypatch):
    found = evidence.found(RUNS, 3, 10)
    assert found["found alone, of the untrained student"] >= 0.88
    assert found["found in the family, of the untrained student"] >= 0.6
    monkeypatch.setattr(pool, "SEEDS", 99)
    apart = evidence.found(RUNS // 4, 3, 10)
    assert apart["found in the family, of the untrained student"] < 0.35, "each pair by itself finds little"


def test_equal_students_give_few_false_findings(evidence):
    held = evidence.held(RUNS, 3)
    assert held["false findings in the family"] <= 0.05
    assert held["coverage"] >= 0.94
    assert held["intervals against their test"] == 0
    assert 0.6 < held["pooled, of the odd one"] < 0.98, "one in ten is left out by chance"


def test_a_student_six_times_as_unstable_is_met(evidence, monkeypatch):
    held = evidence.held(RUNS, 3, **SIX)
    assert held["coverage, of the odd one"] >= 0.9  # 0.94, with a standard error of 0.02
    assert held["false findings in the family"] <= 0.09
    assert held["pooled, of the odd one"] < 0.25
    monkeypatch.setattr(pool, "LEVEL", 0.0)  # nobody is left out
    assert evidence.held(RUNS, 3, **SIX)["coverage, of the odd one"] < held["coverage, of the odd one"] - 0.04


def test_two_seeds_and_one(evidence):
    held = evidence.held(RUNS // 2, 2)
    assert held["pooled, of the odd one"] == 0 and held["coverage"] >= 0.95
    alike = evidence.held(RUNS // 2, 1, sds=dict.fromkeys(("sft", *"abcd"), 0.0))
    assert alike["false findings in the family"] <= 0.1 and alike["coverage"] >= 0.93


def test_what_several_seeds_could_have_detected_is_found_four_times_in_five(evidence):
    printed = evidence.power_at_printed(RUNS, 3)
    assert printed["share of runs that print a number"] > 0.7
    assert printed["5 % more"] < 2 * printed["5 % print less"], "one truth, and numbers that are alike"
    assert 0.7 <= printed["power at half's"] <= 0.9  # a standard error is 0.04


@pytest.mark.parametrize("n", [64, 541])
def test_coverage_of_the_interval_at_prompt_level(evidence, n):
    for part in (0.0, 0.5):
        assert evidence.coverage(n, 0.2, part * 0.2) >= 0.94


def test_a_run_makes_every_figure_once(evidence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--quick", "--runs", "1"])
    monkeypatch.setattr(evidence, "power_at_printed", lambda *_: {"half": power.POWER})
    evidence.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({line[:69] for line in lines}) > 150


def test_equal_arguments_give_equal_figures(evidence):
    first, second = (evidence.held(2, 3) for _ in range(2))
    assert first == second and np.isfinite(list(first.values())).all()

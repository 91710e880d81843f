"""What `make demo` promises, checked: eight rows, students that answer and learned, nothing left to do.

The rule by which the demo's settings are judged stands in docs/performance.md.
"""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "demo"
MOST_KL_LEFT = 0.6  # of the untrained student's forward KL to the teacher on held-out rows
MORE_THAN_TEACHER = 0.10  # of a student's answers may be cut off, or repeat themselves
MOST_OF_SFT = 0.85  # of sft's held-out divergence, in the direction that a strategy trains on
WON_BACK = 0.5  # more than this share of the strict accuracy that the cut lost, by sft


def answers() -> None:
    scores = {path.parent.name: json.loads(path.read_text()) for path in RESULTS.glob("eval/*/scores.json")}
    teacher = scores["teacher"]["answers"]
    for model, score in scores.items():
        if model.endswith("-seed0"):
            for kind in ("cut_off_share", "repeated_share"):
                most = teacher[kind] + MORE_THAN_TEACHER
                assert score["answers"][kind] <= most, f"{model}: {kind} {score['answers'][kind]:.2f}"
    strict = {model: score["prompt_level_strict_accuracy"] for model, score in scores.items()}
    lost = strict["teacher"] - strict["student-untrained"]
    won = strict["sft-seed0"] - strict["student-untrained"]
    assert won > WON_BACK * lost, f"sft wins back {won:.3f} of {lost:.3f}"


def fidelity() -> None:
    measured = pd.read_csv(RESULTS / "report" / "fidelity.csv").set_index("model")
    strategies = yaml.safe_load((ROOT / "experiments" / "demo.yaml").read_text())["strategies"]
    sft = measured.loc["student - sft"]
    for name, strategy in strategies.items():
        student = measured.loc[f"student - {name}"]
        kind = "forward_kl" if strategy["divergence"].endswith("fkl") else "reverse_kl"
        assert student["forward_kl_ratio"] <= MOST_KL_LEFT, f"{name}: {student['forward_kl_ratio']:.3f}"
        assert student[kind] <= MOST_OF_SFT * sft[kind], f"{name}: {kind} {student[kind] / sft[kind]:.3f}"


def main():
    table = pd.read_csv(RESULTS / "report" / "table.csv")
    assert len(table) == 8 and set(table["n_prompts"]) == {64}, table
    answers()
    fidelity()
    again = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr, again.stderr
    checks = 4
    print(f"demo: {checks} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())

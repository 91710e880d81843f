"""What `make demo` promises, checked: eight rows, students that learned, nothing left to do."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "results" / "demo" / "report"
MOST_KL_LEFT = 0.6  # of the untrained student's forward KL to the teacher on held-out rows


def main():
    table = pd.read_csv(REPORT / "table.csv")
    assert len(table) == 8 and set(table["n_prompts"]) == {64}, table
    fidelity = pd.read_csv(REPORT / "fidelity.csv").set_index("model")["forward_kl_ratio"]
    distilled = fidelity.drop(["student, untrained", "student - sft"])
    assert len(distilled) == 4 and (distilled <= MOST_KL_LEFT).all(), distilled
    again = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr, again.stderr
    checks = 3
    print(f"demo: {checks} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())

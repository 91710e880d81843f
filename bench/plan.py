"""The planner's host memory against what finished CPU jobs took.

    make demo && python bench/plan.py        seconds
    python bench/plan.py --results results/mine --config mine.yaml

Measured: max_rss of benchmarks/*.tsv, the largest of a stage's jobs. Target: within 25 % for every stage.
"""

import csv
import json
import sys
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "workflow" / "scripts"))
import plan as command
from kdag.config import yaml_file
from kdag.planning import devices, planner

MIB = 2**20
TARGET = 0.25


def measured(results: Path, stage: str) -> list[float]:
    """max_rss in MiB (psutil's RSS / 2^20, which Snakemake writes as MB) of each of a stage's jobs."""
    folder = results / "benchmarks"
    files = [folder / f"{stage}.tsv", *sorted((folder / stage).glob("**/*.tsv"))]
    found = []
    for file in files:
        if file.is_file():
            with open(file, encoding="utf-8") as lines:
                found += [float(row["max_rss"]) for row in csv.DictReader(lines, delimiter="\t")]
    return found


def main():
    made = common.parser(__doc__)
    made.add_argument("--config", type=Path, default=common.ROOT / "experiments" / "demo.yaml")
    made.add_argument("--results", type=Path, default=common.ROOT / "results" / "demo")
    made.add_argument("--models", type=Path, default=common.ROOT / "resources" / "models")
    args = made.parse_args()
    config = yaml_file.read_config(args.config)
    teacher = command.shape_of(config, "teacher", None, args.models)
    derive = config.student.derive
    student = (
        teacher.with_layers(len(derive.kept(teacher.layers)))
        if derive
        else command.shape_of(config, "student", None, args.models)
    )
    tokens = command.counted(config, args.results.parent)
    figures = []
    print(f"{'stage':18} {'jobs':>4} {'predicted MiB':>14} {'measured MiB':>20} {'off':>6}")
    for entry in planner.plan(config, teacher, student, devices.DEVICES["cpu"], tokens):
        found = measured(args.results, entry["stage"])
        if not found:
            print(f"{entry['stage']:18}    -  no benchmark in {args.results}")
            continue
        predicted = entry["host_bytes"] / MIB
        off = predicted / max(found) - 1
        between = f"{min(found):,.0f} to {max(found):,.0f}" if len(found) > 1 else f"{found[0]:,.0f}"
        word = "" if abs(off) <= TARGET else "   MISSED"
        print(f"{entry['stage']:18} {len(found):>4} {predicted:>14,.0f} {between:>20} {off:>+6.0%}{word}")
        figures.append(
            {"case": entry["stage"], "predicted": predicted, "measured": max(found), "off": round(off, 3)}
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

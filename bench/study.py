"""Draw docs/study.png from the report of a finished experiments/study.yaml.

python bench/study.py --report results/study/report --output docs/study.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml

METRIC = "prompt_level_strict_accuracy"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=Path("results/study/report"), help="its folder")
    parser.add_argument("--config", type=Path, default=Path("experiments/study.yaml"))
    parser.add_argument("--output", type=Path, default=Path("docs/study.png"))
    return parser


def main(args):
    closeness = pd.read_csv(args.report / "closeness.csv")
    pairs = pd.read_csv(args.report / "comparisons.csv").query("metric == @METRIC and family == 'untrained'")
    kl = closeness[closeness["family"] == "untrained"].set_index("a").sort_values("kl_a")
    order, places = list(kl.index), range(len(kl))
    score = pairs.set_index("a").loc[order]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 5.2), sharey=True, layout="constrained")
    study = yaml.safe_load(args.config.read_text())
    default, strategies = study["distillation"]["learning_rate"], study["strategies"]
    rates = [strategies.get(name, {}).get("learning_rate", default) for name in order]
    for rate, colour in zip(sorted(set(rates)), ("#88ccee", "#4477aa"), strict=True):
        some = [place for place in places if rates[place] == rate]
        left.barh(some, kl["kl_a"].iloc[some], color=colour, height=0.6, label=f"learning rate {rate:g}")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    left.set_xlabel("forward KL to the teacher, nats per token")
    left.axvline(kl["kl_a"]["sft"], color="#bbbbbb", linewidth=1, zorder=0)
    points = score["difference"]
    right.errorbar(
        points,
        places,
        xerr=[points - score["low"], score["high"] - points],
        fmt="o",
        color="#aa3377",
        capsize=2,
    )
    right.axvline(0, color="#bbbbbb", linewidth=1, zorder=0)
    right.set_xlabel("IFEval, points from the untrained student")
    left.set_yticks(places, order)
    left.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main(arguments().parse_args())

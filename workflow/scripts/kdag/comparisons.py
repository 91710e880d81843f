"""Which models differ: every pair of the declared family, tested on the same prompts.

`rows` are `config.table_rows`, `scores` {model id: scores.json}; nothing here reads a file. Accuracies are
fractions as in the table, differences are in points (100 x the difference of two fractions), a minus b.
"""

import numpy as np
import pandas as pd

from kdag.errors import UserError

METRICS = [f"{level}_level_{mode}_accuracy" for mode in ("strict", "loose") for level in ("prompt", "inst")]
PRIMARY = "prompt_level_strict_accuracy"
# Against whom: {name in statistics.family: model or strategy}; `strategies` is each against each.
BASELINES = {"untrained": "student-untrained", "sft": "sft", "teacher": "teacher"}
FAMILY = (*BASELINES, "strategies")


def verdicts(scores: dict, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(0/1 per item, prompt number per item) of one model; an item is a prompt or an instruction."""
    level, _, mode, _ = metric.split("_")
    lists = [prompt[mode] for prompt in scores["prompts"]]
    if level == "prompt":
        return np.array([all(v) for v in lists], dtype=float), np.arange(len(lists))
    sizes = [len(v) for v in lists]
    return np.array([v for each in lists for v in each], dtype=float), np.repeat(np.arange(len(lists)), sizes)


def groups(rows: list[dict]) -> dict[str, dict]:
    """{name: {seed: model id}}: the seeds of a strategy or of sft together, a baseline alone ({None: id})."""
    found = {}
    for row in rows:
        name = row["strategy"] if row["role"] == "student" else row["model"]
        found.setdefault(name, {})[row.get("seed")] = row["model"]
    return found


def pairs(rows: list[dict], family: list[str]) -> list[tuple[str, str, str]]:
    """(member of the family, a, b) of every comparison that the family declares."""
    if unknown := [name for name in family if name not in FAMILY]:
        raise UserError(f"statistics.family: {', '.join(unknown)} is not one of {', '.join(FAMILY)}")
    students = [row["strategy"] for row in rows if row["role"] == "student"]
    students = list(dict.fromkeys(students))
    strategies = [name for name in students if name != "sft"]
    known = groups(rows)
    found = []
    for member in dict.fromkeys(family):
        if member == "strategies":
            found += [(member, a, b) for i, a in enumerate(strategies) for b in strategies[i + 1 :]]
            continue
        baseline = BASELINES[member]
        if baseline not in known:
            raise UserError(f"statistics.family: {member} needs the row {baseline}, which the table lacks")
        found += [(member, a, baseline) for a in (strategies if member == "sft" else students)]
    return found


def compare(
    rows: list[dict],
    scores: dict[str, dict],
    family: list[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> pd.DataFrame:
    """comparisons.csv: a row per pair and metric; p, p_holm and what was detectable on PRIMARY alone.

    One seed: p is McNemar's exact test, the interval a bootstrap over prompts. Several: `a` and `b` are
    strategies, answers are averaged over seeds and paired by seed; p and interval are `stats.crossed_test`,
    prompts and seeds both random, so p is that of no difference between the *methods* on such prompts.
    bootstrap_low and bootstrap_high resample prompts, and seeds where there are several. only_a and only_b
    count items that one alone got right, summed over seeds. p_holm is over the pairs of the whole family.
    The other metrics are descriptive: they have intervals and no p, so that nobody picks the smallest.
    """
    _check_same_prompts(rows, scores)
    known, declared = groups(rows), pairs(rows, family)
    table = pd.DataFrame(
        [
            {"family": member, "a": a, "b": b, "metric": metric}
            | _compare_pair(known[a], known[b], scores, metric, draws, seed)
            | (_detectable(known[a], known[b], scores, alpha, len(declared), power, seed, draws))
            for metric in METRICS
            for member, a, b in declared
        ]
    )
    return table

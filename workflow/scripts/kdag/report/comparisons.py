"""Which models differ: every pair of the declared family, tested on the same prompts.

`rows` are `config.table_rows`, `scores` is {model id: scores.json}; nothing here reads a file. Accuracies
are fractions as in the table; differences are in points, 100 x (accuracy of a - accuracy of b).
"""

import math

import numpy as np
import pandas as pd

from kdag.job.errors import UserError
from kdag.report import stats

METRICS = [f"{level}_level_{mode}_accuracy" for mode in ("strict", "loose") for level in ("prompt", "inst")]
PRIMARY = "prompt_level_strict_accuracy"
# What `statistics.family` may name, and the row that each trained student then meets.
BASELINES = {"untrained": "student-untrained", "sft": "sft", "teacher": "teacher"}
FAMILY = (*BASELINES, "strategies")
POWER = 0.8  # of what is called detectable


# --- who and what ---------------------------------------------------------------------------------


def groups(rows: list[dict]) -> dict[str, dict]:
    """{name: {seed: model id}}: all seeds of a strategy or of sft; a baseline is {None: model id}."""
    found = {}
    for row in rows:
        name = row["strategy"] if row["role"] == "student" else row["model"]
        found.setdefault(name, {})[row.get("seed")] = row["model"]
    return found


def pairs(rows: list[dict], family: list[str]) -> list[tuple[str, str, str]]:
    """(member of the family, a, b) of every comparison it declares: who is tested against whom."""
    if unknown := [name for name in family if name not in FAMILY]:
        raise UserError(f"statistics.family: no {', '.join(unknown)}; known are {', '.join(FAMILY)}")
    students = list(dict.fromkeys(row["strategy"] for row in rows if row["role"] == "student"))
    strategies = [name for name in students if name != "sft"]
    found = []
    for member in dict.fromkeys(family):
        if member == "strategies":
            found += [(member, a, b) for i, a in enumerate(strategies) for b in strategies[i + 1 :]]
            continue
        baseline = BASELINES[member]
        if baseline not in groups(rows):
            raise UserError(f"statistics.family: {member} needs the row {baseline}, which is missing")
        found += [(member, a, baseline) for a in (strategies if member == "sft" else students)]
    return found


def verdicts(scores: dict, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(0/1 per item, number of its prompt) of one model; an item is a prompt or an instruction."""
    level, _, mode, _ = metric.split("_")
    lists = [prompt[mode] for prompt in scores["prompts"]]
    if level == "prompt":
        return np.array([all(each) for each in lists], dtype=float), np.arange(len(lists))
    sizes = [len(each) for each in lists]
    return np.array([v for each in lists for v in each], dtype=float), np.repeat(np.arange(len(lists)), sizes)


def check_same_prompts(rows: list[dict], scores: dict[str, dict]) -> None:
    """UserError unless all rows answered the same prompts, in one order: pairs are made by position."""
    asked = {
        row["model"]: [(p["key"], len(p["strict"])) for p in scores[row["model"]]["prompts"]] for row in rows
    }
    first = rows[0]["model"]
    if other := [model for model in asked if asked[model] != asked[first]]:
        raise UserError(f"{', '.join(other)}: scored on other prompts than {first}; nothing can be paired")


def _stacked(group: dict, seeds: list, scores: dict, metric: str) -> np.ndarray:
    """[seeds, items], or [1, items] of a baseline."""
    models = [group[None]] if None in group else [group[seed] for seed in seeds]
    return np.stack([verdicts(scores[model], metric)[0] for model in models])


# --- every pair -----------------------------------------------------------------------------------


def compare(
    rows: list[dict],
    scores: dict[str, dict],
    family: list[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """comparisons.csv: a row per pair and metric.

    One training seed: p is McNemar's exact test, low and high a bootstrap over prompts; the claim is about
    two models. Several: a and b are strategies, paired by seed, and p, low and high are
    `stats.crossed_test`, where prompts and seeds are both random; the null is that the two methods are
    equally good on such prompts. bootstrap_low and bootstrap_high resample prompts, and seeds if several.
    only_a and only_b count the items that one alone got right, summed over seeds.

    p, p_holm (over all pairs of the family) and detectable (points, this test alone; _family: at Holm's
    strictest step, alpha / pairs) stand at PRIMARY alone. The other metrics describe: an interval and no
    p, so that nobody can pick the smallest.
    """
    check_same_prompts(rows, scores)
    declared = pairs(rows, family)
    alphas = {"detectable": alpha, "detectable_family": alpha / max(1, len(declared))}
    known = groups(rows)
    found = [
        {"family": member, "a": a, "b": b, "metric": metric}
        | _compare_pair(known[a], known[b], scores, metric, draws, seed, alphas)
        for metric in (PRIMARY, *(m for m in METRICS if m != PRIMARY))
        for member, a, b in declared
    ]
    table = pd.DataFrame(found, columns=COLUMNS)
    tested = table["metric"] == PRIMARY
    table.loc[tested, "p_holm"] = stats.holm(table.loc[tested, "p"].astype(float))
    return table


COLUMNS = [
    *("family", "a", "b", "metric", "seeds", "n", "accuracy_a", "accuracy_b", "only_a", "only_b"),
    *("difference", "low", "high", "bootstrap_low", "bootstrap_high", "difference_sd", "by_seed"),
    *("test", "p", "p_holm", "detectable", "detectable_family"),
]


def _compare_pair(group_a, group_b, scores, metric, draws, seed, alphas) -> dict:
    seeds = sorted((group_a.keys() | group_b.keys()) - {None})
    for group in (group_a, group_b):
        if None not in group and sorted(group) != seeds:
            raise UserError(f"{', '.join(group.values())}: not trained with all of the seeds {seeds}")
    a, b = (_stacked(group, seeds, scores, metric) for group in (group_a, group_b))
    clusters = verdicts(scores[next(iter(group_a.values()))], metric)[1]
    by_seed = 100 * (a - b).mean(axis=1)
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    if len(seeds) < 2:
        resampled = stats.paired_bootstrap(a[0], b[0], clusters, draws, seed)
        interval, test, p = resampled, "McNemar, exact", stats.mcnemar_exact(only_a, only_b)
    else:
        resampled = stats.seed_bootstrap(a, b, clusters, draws, seed)
        interval = stats.crossed_test(a, b, clusters)
        test, p = "prompts x seeds, t and sign-flip", interval.p
    result = {
        "seeds": " ".join(map(str, seeds)),
        "n": len(clusters),
        "accuracy_a": a.mean(),
        "accuracy_b": b.mean(),
        "only_a": only_a,
        "only_b": only_b,
        "difference": 100 * interval.difference,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "bootstrap_low": 100 * resampled.low,
        "bootstrap_high": 100 * resampled.high,
        "difference_sd": by_seed.std(ddof=1) if len(seeds) > 1 else math.nan,
        "by_seed": ", ".join(f"{s}: {d:+.2f}" for s, d in zip(seeds, by_seed, strict=True)),
    }
    if metric != PRIMARY:
        return result
    for name, alpha in alphas.items():
        discordance = (only_a + only_b) / (len(seeds) * len(clusters))
        found = (
            stats.minimal_detectable_difference(len(clusters), discordance, alpha, POWER)
            if len(seeds) < 2
            else stats.crossed_detectable(interval, alpha, POWER)
        )
        result[name] = 100 * found
    return result | {"test": test, "p": p}


# --- one row --------------------------------------------------------------------------------------


def intervals(
    rows: list[dict], scores: dict[str, dict], *, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """The 95 % interval of every cell: Wilson where items are prompts, else resampled by prompt.

    Where all instructions or none were followed no resample differs: then Wilson's over the prompts.
    """
    found = []
    for row in rows:
        for metric in METRICS:
            values, clusters = verdicts(scores[row["model"]], metric)
            correct, n = int(values.sum()), len(values)
            if metric.startswith("prompt"):
                low, high = stats.wilson(correct, n)
            elif correct in (0, n):
                prompts = len(set(clusters))
                low, high = stats.wilson(prompts if correct else 0, prompts)
            else:
                low, high = stats.bootstrap_interval(values, clusters, draws, seed)
            cell = {"accuracy": correct / n, "low": low, "high": high, "correct": correct, "n": n}
            found.append({"model": row["model"], "metric": metric} | cell)
    return pd.DataFrame(found)


def over_seeds(rows: list[dict], scores: dict[str, dict]) -> pd.DataFrame:
    """What the seeds of a strategy say, per metric: mean, standard deviation, lowest, highest, each.

    The standard deviation is between seeds, on the same prompts; empty where one seed was run.
    """
    found = []
    for name, group in groups(rows).items():
        if None in group:
            continue
        for metric in METRICS:
            each = {seed: verdicts(scores[group[seed]], metric)[0].mean() for seed in sorted(group)}
            values = list(each.values())
            found.append(
                {
                    "strategy": name,
                    "metric": metric,
                    "seeds": len(each),
                    "mean": np.mean(values),
                    "sd": np.std(values, ddof=1) if len(each) > 1 else math.nan,
                    "lowest": min(values),
                    "highest": max(values),
                    "by_seed": ", ".join(f"{seed}: {value:.4f}" for seed, value in each.items()),
                }
            )
    return pd.DataFrame(found)

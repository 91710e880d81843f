"""Which models differ: every pair of the declared family, tested on the same prompts.

`rows` are `roster.table_rows`, `measures` is {metric: {model id: Items}} of measures.py; nothing here reads a
file or knows a task. Accuracies are fractions as in the table; differences are in points, 100 x (accuracy of
a - accuracy of b).
"""

import math

import numpy as np
import pandas as pd

from kdag.config.roster import FAMILY, OPPONENTS, SFT
from kdag.job.errors import UserError
from kdag.report import stats
from kdag.report.measures import Items

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
    strategies = [name for name in students if name != SFT]
    found = []
    for member in dict.fromkeys(family):
        if member == "strategies":
            found += [(member, a, b) for i, a in enumerate(strategies) for b in strategies[i + 1 :]]
            continue
        baseline = OPPONENTS[member]
        if baseline not in groups(rows):
            raise UserError(f"statistics.family: {member} needs the row {baseline}, which is missing")
        found += [(member, a, baseline) for a in (strategies if baseline == SFT else students)]
    return found


def _stacked(group: dict, seeds: list, items: dict[str, Items]) -> np.ndarray:
    """[seeds, items], or [1, items] of a baseline."""
    models = [group[None]] if None in group else [group[seed] for seed in seeds]
    return np.stack([items[model].values for model in models])


# --- every pair -----------------------------------------------------------------------------------


def compare(
    rows: list[dict],
    measures: dict[str, dict[str, Items]],
    family: list[str],
    *,
    primary: str,
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
    strictest step, alpha / pairs) stand at the metric `primary` alone. The other metrics describe: an
    interval and no p, so that nobody can pick the smallest.
    """
    declared = pairs(rows, family)
    alphas = {"detectable": alpha, "detectable_family": alpha / max(1, len(declared))}
    known = groups(rows)
    levels = {primary: alphas, **{metric: None for metric in measures if metric != primary}}
    found = [
        {"family": member, "a": a, "b": b, "metric": metric}
        | _compare_pair(known[a], known[b], measures[metric], draws, seed, level)
        for metric, level in levels.items()
        for member, a, b in declared
    ]
    table = pd.DataFrame(found, columns=COLUMNS)
    tested = table["metric"] == primary
    table.loc[tested, "p_holm"] = stats.holm(table.loc[tested, "p"].astype(float))
    return table


COLUMNS = [
    *("family", "a", "b", "metric", "seeds", "n", "accuracy_a", "accuracy_b", "only_a", "only_b"),
    *("difference", "low", "high", "bootstrap_low", "bootstrap_high", "difference_sd", "by_seed"),
    *("test", "p", "p_holm", "detectable", "detectable_family"),
]


def _compare_pair(group_a, group_b, items, draws, seed, alphas) -> dict:
    """alphas: {column: level} of a metric that is tested; None for one that only describes."""
    seeds = sorted((group_a.keys() | group_b.keys()) - {None})
    for group in (group_a, group_b):
        if None not in group and sorted(group) != seeds:
            raise UserError(f"{', '.join(group.values())}: not trained with all of the seeds {seeds}")
    a, b = (_stacked(group, seeds, items) for group in (group_a, group_b))
    clusters = items[next(iter(group_a.values()))].documents
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
    if alphas is None:
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
    rows: list[dict], measures: dict[str, dict[str, Items]], *, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """The 95 % interval of every cell: Wilson where an item is a document, else resampled by document.

    Where all items or none were right no resample differs: then Wilson's over the documents.
    """
    found = []
    for row in rows:
        for metric, items in measures.items():
            values, documents = items[row["model"]]
            correct, n, prompts = int(values.sum()), len(values), len(set(documents))
            if n == prompts:
                low, high = stats.wilson(correct, n)
            elif correct in (0, n):
                low, high = stats.wilson(prompts if correct else 0, prompts)
            else:
                low, high = stats.bootstrap_interval(values, documents, draws, seed)
            cell = {"accuracy": correct / n, "low": low, "high": high, "correct": correct, "n": n}
            found.append({"model": row["model"], "metric": metric} | cell)
    return pd.DataFrame(found)


def over_seeds(rows: list[dict], measures: dict[str, dict[str, Items]]) -> pd.DataFrame:
    """What the seeds of a strategy say, per metric: mean, standard deviation, lowest, highest, each.

    The standard deviation is between seeds, on the same prompts; empty where one seed was run.
    """
    found = []
    for name, group in groups(rows).items():
        if None in group:
            continue
        for metric, items in measures.items():
            each = {seed: items[group[seed]].values.mean() for seed in sorted(group)}
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

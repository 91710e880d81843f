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
from kdag.report import power, stats
from kdag.report.measures import Items
from kdag.report.pool import Pool, pool

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

    One training seed: p, low and high are `stats.paired_test`; the claim is about two models. Several: a and
    b are strategies, paired by seed, and p, low and high are `stats.crossed_test`, where prompts and seeds
    are both random; the null is that the two methods are equally good on such prompts. seed_variance says
    whether how much seeds vary is `pooled` over all students or the pair's `own`, seed_df how many degrees of
    freedom know it, left_out which of the two varied too much to be pooled.
    n counts items, prompts what they belong to; only_a and only_b count the items that one alone got right,
    summed over seeds.

    p, p_holm (over all pairs of the family) and detectable (points, this test alone; _family: at Holm's
    strictest step, alpha / pairs, with its 95 % limits _low and _high, as far as the seeds tell) stand at
    the metric `primary` alone. inf: no difference could have been; empty: the seeds do not tell. The other
    metrics describe: an interval and no p, so that nobody can pick the smallest.
    """
    declared = pairs(rows, family)
    alphas = (alpha, alpha / max(1, len(declared)))
    known = groups(rows)
    found = []
    for metric in (primary, *(metric for metric in measures if metric != primary)):
        together = pool_of(known, {model: items.values.mean() for model, items in measures[metric].items()})
        found += [
            {"family": member, "a": a, "b": b, "metric": metric}
            | _compare_pair(
                a, b, known, measures[metric], together, alphas if metric == primary else None, draws, seed
            )
            for member, a, b in declared
        ]
    table = pd.DataFrame(found, columns=COLUMNS)
    tested = table["metric"] == primary
    table.loc[tested, "p_holm"] = stats.holm(table.loc[tested, "p"].astype(float))
    return table


COLUMNS = [
    *("family", "a", "b", "metric", "seeds", "n", "prompts", "accuracy_a", "accuracy_b", "only_a", "only_b"),
    *("difference", "low", "high", "difference_sd", "by_seed", "seed_variance", "seed_df", "left_out"),
    *("test", "p", "p_holm", "detectable"),
    *("detectable_family", "detectable_family_low", "detectable_family_high"),
]


def pool_of(known: dict[str, dict], means: dict[str, float]) -> Pool | None:
    """The pool of all students that have seeds; None where it cannot be. known: of `groups`; means: of each
    model."""
    students = {name: group for name, group in known.items() if None not in group}
    if not students:
        return None
    return pool(
        {name: np.array([means[group[seed]] for seed in sorted(group)]) for name, group in students.items()}
    )


def _compare_pair(a, b, known, items, together: Pool | None, alphas, draws, seed) -> dict:
    """One line. alphas: the levels of the test alone and in the family; None of a metric that describes."""
    both = known[a], known[b]
    seeds = sorted((both[0].keys() | both[1].keys()) - {None})
    for group in both:
        if None not in group and sorted(group) != seeds:
            raise UserError(f"{', '.join(group.values())}: not trained with all of the seeds {seeds}")
    right_a, right_b = (_stacked(group, seeds, items) for group in both)
    documents = items[next(iter(both[0].values()))].documents
    by_seed = 100 * (right_a - right_b).mean(axis=1)
    only_a, only_b = int((right_a > right_b).sum()), int((right_a < right_b).sum())
    if len(seeds) < 2:
        result = stats.paired_test(right_a[0], right_b[0], documents, draws, seed)
        clustered = len(set(documents)) < len(documents)
        test = "sign-flip of prompts, exact" if clustered else "McNemar, exact"
        between, shown = {}, _shown_by_one(result, only_a + only_b, documents, alphas)
    else:
        pooled = together and together.of_mean(a, b)
        result = stats.crossed_test(right_a, right_b, documents, pooled=pooled)
        test = "prompts x seeds, t and sign-flip"
        left_out = [side for side, name in (("a", a), ("b", b)) if together and name in together.left_out]
        between = {
            "seed_variance": "own" if left_out or not pooled else "pooled",
            "seed_df": " and ".join(str(df) for _, df in result.parts[1:]),
            "left_out": " ".join(left_out),
        }
        students = sum(None not in group for group in known.values())
        runs = power.Runs(students, len(seeds), sum(None not in group for group in both))
        shown = {} if left_out else _shown_by_several(result, together, runs, alphas)
    line = {
        "seeds": " ".join(map(str, seeds)),
        "n": len(documents),
        "prompts": len(set(documents)),
        "accuracy_a": right_a.mean(),
        "accuracy_b": right_b.mean(),
        "only_a": only_a,
        "only_b": only_b,
        "difference": 100 * result.difference,
        "low": 100 * result.low,
        "high": 100 * result.high,
        "difference_sd": by_seed.std(ddof=1) if len(seeds) > 1 else math.nan,
        "by_seed": ", ".join(f"{s}: {d:+.2f}" for s, d in zip(seeds, by_seed, strict=True)),
        **between,
    }
    return line if alphas is None else line | shown | {"test": test, "p": result.p}


def _shown_by_one(result: stats.Difference, differing: int, documents, alphas) -> dict:
    """What one seed could have detected, in points."""
    if alphas is None:
        return {}
    n, prompts = len(documents), len(set(documents))
    if n == prompts:
        alone, family = (power.detectable(n, differing / n, alpha) for alpha in alphas)
    else:  # the interval's half-width stands for 1.96 standard errors
        variance = ((result.high - result.low) / (2 * 1.96)) ** 2
        alone, family = (power.detectable_by_prompts(variance, prompts, alpha) for alpha in alphas)
    return {"detectable": 100 * alone, "detectable_family": 100 * family}


def _shown_by_several(result: stats.Crossed, together: Pool | None, runs: power.Runs, alphas) -> dict:
    """The same of several seeds."""
    if alphas is None:
        return {}
    (v_prompts, prompts_df), (own, own_df) = result.parts
    known = (together.variance, together.df) if together else (own * runs.n_seeds / runs.with_seeds, own_df)
    alone, family = (
        power.detectable_over_seeds(v_prompts, *known, runs, prompts_df + 1, alpha) for alpha in alphas
    )
    line = {"detectable": 100 * alone.size} if alone else {}
    if family:
        line |= {
            "detectable_family": 100 * family.size,
            "detectable_family_low": 100 * family.low,
            "detectable_family_high": 100 * family.high,
        }
    return line


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

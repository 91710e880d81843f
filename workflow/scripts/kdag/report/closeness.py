"""Which student is closest to its teacher: a second question, tested apart from the scores.

The units are the held-out rows, each with the mean forward KL of its answer tokens, teacher to student, in
nats (of a teacher with another tokenizer, to which none is defined: the answers' negative log-likelihood
in nats per byte). A few dozen rows tell students apart whose scores a few hundred prompts do not: a KL is a
number, and a score is right or wrong. It is no substitute for them, since a closer student need not score
higher.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as distributions
from statsmodels.stats.power import TTestPower

from kdag.job.errors import UserError
from kdag.report import letters, stats
from kdag.report.comparisons import groups, pairs, pool_of
from kdag.report.words import listed, named, p_value

COLUMNS = ["family", "a", "b", "seeds", "rows", "kl_a", "kl_b", "difference", "low", "high"]
COLUMNS += ["seed_variance", "p", "p_holm", "detectable"]
POWER = 0.8


@dataclass(frozen=True)
class Question:
    """What is compared on the held-out rows, and how it is said. measure: its key in a fidelity.json; axis:
    of a picture."""

    measure: str
    axis: str
    asks: str
    first: str
    order: str
    tested: str
    unit: str
    caveat: str


KL = Question(
    "forward_kl",
    "held-out forward KL to the teacher, nats",
    "Which student is closest to its teacher?",
    "is closer to the teacher than",
    "From the closest to the furthest, in nats",
    "forward KL to {teacher}, in nats per answer token",
    "nats",
    "A closer student need not score higher.",
)
LIKELIHOOD = Question(
    "nats_per_byte",
    "negative log-likelihood of the held-out answers, nats per byte",
    "Which student holds the held-out answers likeliest?",
    "holds the held-out answers likelier than",
    "From the likeliest to the least likely, in nats per byte",
    "negative log-likelihood of the answers, in nats per byte of their text (a divergence from {teacher} is "
    "not defined, since it has another tokenizer)",
    "nats per byte",
    "A student that holds them likelier need not score higher.",
)


def asked(fidelity: dict[str, dict]) -> Question:
    """What all of these fidelity.json can be asked."""
    return LIKELIHOOD if any(LIKELIHOOD.measure in each for each in fidelity.values()) else KL


def rows_of(fidelity: dict[str, dict]) -> dict[str, np.ndarray]:
    """{model: its measure on each held-out row}, without rows on which one of them has none."""
    measure = asked(fidelity).measure
    found = {model: np.array(each["by_row"][measure], dtype=float) for model, each in fidelity.items()}
    if len({len(each) for each in found.values()}) > 1:
        return found  # which `compare` refuses
    whole = np.isfinite(list(found.values())).all(axis=0) if found else []
    return {model: each[whole] for model, each in found.items()}


def compare(rows: list[dict], by_row: dict[str, np.ndarray], family: list[str], alpha: float) -> pd.DataFrame:
    """closeness.csv: a line per pair of the family. by_row: of `rows_of`.

    One training seed: a paired t-test over the rows. Several: rows and seeds are both random, as in
    `stats.crossed_test`, the variance between seeds pooled over the students where it can be. difference is
    a - b in nats: below 0 a is closer. p_holm is over this family alone. detectable: the smallest difference
    that one seed's test would have found with 80 % power at Holm's strictest step.
    """
    declared = pairs(rows, family) if family else []
    known = groups(rows)
    means = {model: each.mean() for model, each in by_row.items()}
    together = pool_of(known, means) if declared else None
    found = [
        {"family": member, "a": a, "b": b}
        | _compare_pair(known, by_row, a, b, together and together.of_mean(a, b), alpha / len(declared))
        for member, a, b in declared
    ]
    table = pd.DataFrame(found, columns=COLUMNS)
    table["p_holm"] = stats.holm(table["p"].astype(float))
    return table


def _compare_pair(known, by_row, a: str, b: str, pooled, alpha: float) -> dict:
    """One line. pooled: of `Pool.of_mean`; alpha: of Holm's first step."""
    one, other = (
        np.stack([by_row[group[seed]] for seed in sorted(group, key=str)]) for group in (known[a], known[b])
    )
    if one.shape[1] != other.shape[1] or one.shape[1] < 2:
        raise UserError(f"{a} and {b}: two held-out rows at least, and the same for both, are needed")
    seeds = sorted((known[a].keys() | known[b].keys()) - {None})
    line = {"seeds": " ".join(map(str, seeds)), "rows": one.shape[1]}
    line |= {"kl_a": one.mean(), "kl_b": other.mean(), "difference": one.mean() - other.mean()}
    if len(seeds) < 2:
        found = distributions.ttest_rel(one[0], other[0])
        low, high = found.confidence_interval(0.95)
        sd = float((one[0] - other[0]).std(ddof=1))
        size = TTestPower().solve_power(nobs=one.shape[1], alpha=alpha, power=POWER)
        p = 1.0 if math.isnan(found.pvalue) else float(found.pvalue)  # nan: no row differs at all
        return line | {"low": low, "high": high, "p": p, "detectable": float(size) * sd}
    found = stats.crossed_means(one, other, np.arange(one.shape[1]), pooled)
    half = found.reach(0.05)
    between = "pooled" if pooled and len(pooled.parts) == 1 else "own"
    return line | {
        **{"low": found.mean - half, "high": found.mean + half, "p": found.level()},
        "seed_variance": between,
    }


def words(
    table: pd.DataFrame, alpha: float, teacher: str = "the fine-tuned teacher", question: Question = KL
) -> str:
    """Markdown, to stand behind the verdict; empty if nothing was tested. teacher: what it is called."""
    if table.empty:
        return ""
    first = table.iloc[0]
    seeds = first["seeds"].split()
    rest, many = table[table["p_holm"] > alpha], letters.wanted(table)
    found = [_order(table, alpha, question)] if many else _found(table, alpha, question)
    lines = [f"- {said}" for said in found]
    if not rest.empty:
        lines.append(f"- {_not_found(rest, len(table), many, question.unit)}")
    how = "a paired t-test" if len(seeds) == 1 else "a test with rows and seeds both random"
    whose = "One training seed: of these models, not of the methods. " if len(seeds) == 1 else ""
    family = f"{len(table)} comparisons in a family of their own, Holm's correction"
    return "\n\n".join(
        [
            f"{question.asks} A second question, asked apart from the scores.",
            "\n".join(lines),
            f"Tested: {question.tested.format(teacher=teacher)}, on {first['rows']:,} "
            f"held-out rows by {how}, {'one comparison' if len(table) == 1 else family}, {100 * alpha:g} %. "
            f"{whose}{question.caveat}",
        ]
    )


def _found(table: pd.DataFrame, alpha: float, question: Question) -> list[str]:
    """A sentence for each student that is closer than others, the closest first."""
    closer = {}
    for row in table[table["p_holm"] <= alpha].to_dict("records"):
        near, far = (row["a"], row["b"]) if row["difference"] < 0 else (row["b"], row["a"])
        low, high = sorted(abs(end) for end in (row["low"], row["high"]))
        text = (
            f"{named(far)} by {abs(row['difference']):.3f} {question.unit} (95 % interval {low:.3f} to "
            f"{high:.3f}, adjusted p {p_value(row['p_holm'])})"
        )
        kl = row["kl_a"] if near == row["a"] else row["kl_b"]
        closer.setdefault((kl, near), []).append(text)
    return [f"{named(near)} {question.first} {listed(texts)}." for (_, near), texts in sorted(closer.items())]


def _order(table: pd.DataFrame, alpha: float, question: Question) -> str:
    """All of them on one line, the closest first."""
    kl = dict(zip(table["a"], table["kl_a"], strict=True)) | dict(zip(table["b"], table["kl_b"], strict=True))
    values = {name: f"{kl[name]:.3f}" for name in sorted(kl, key=kl.get)}
    differ = letters.differing(table, alpha)
    return (
        f"{question.order}: {letters.line(values, differ)}. Two that share a letter "
        f"do not differ significantly; {len(differ)} of {len(table)} pairs do. Each pair with its interval: "
        "report/closeness.csv."
    )


def _not_found(rest: pd.DataFrame, tested: int, many: bool, unit: str) -> str:
    pairs_ = [f"{named(a)} and {named(b)}" for a, b in zip(rest["a"], rest["b"], strict=True)]
    if len(rest) == tested > 1:
        which = "any two of them"
    else:
        which = f"the other {len(rest)} pairs" if many and len(rest) > 1 else listed(pairs_)
    text = f"No significant difference between {which}"
    if rest["detectable"].notna().all():
        size, count = rest["detectable"].max(), rest["rows"].iloc[0]
        text += f"; with {count:,} rows we could have detected {size:.3f} {unit} or more (80 % power)"
    most = max(-rest["low"].min(), rest["high"].max())
    allowed = "The 95 % intervals allow" if len(rest) > 1 else "The 95 % interval allows"
    return f"{text}. {allowed} differences of up to {most:.3f} {unit}; that is not evidence of equality."

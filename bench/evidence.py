"""What the tests and intervals of the report hold and find: simulated experiments, put through its own code.

    python bench/evidence.py --json build/evidence.json        about 25 minutes
    python bench/evidence.py --quick                           to see that it runs

An experiment has 541 prompts. Prompt i has a difficulty h_i ~ N(0, 2) and is harder or easier for student s
by o_si ~ N(0, 0.8); seed k moves student s by l_sk ~ N(0, seed sd) on all prompts (the second argument is a
standard deviation). Answers are right with probability logistic(h_i + o_si + l_sk + shift_s), drawn for each
model and seed. Two students then differ on 32 % of the prompts, and a seed sd of 0.1 is 1.5 points, next to
1.6 points of drawing. Baselines have no seeds.
Each experiment goes through kdag.report.comparisons.compare with the default family; with sft and four
strategies it has 20 comparisons.

  alone       p <= 0.05 of one comparison, with no correction
  family      p <= 0.05 after Holm's correction over the whole family
  false       the share of experiments without any difference in which the family holds a finding
  covered     the share of 95 % intervals that hold the truth, over all comparisons; and over those of the
              one student that varies more than the others
  detectable  the power at the difference that the report calls detectable
"""

import gc
import itertools
import math

import common
import numpy as np
from scipy import optimize, stats

from kdag.config.metrics import PRIMARY
from kdag.config.roster import FAMILY, SFT, STUDENT_UNTRAINED
from kdag.report import comparisons, power
from kdag.report import stats as report_stats
from kdag.report.measures import Items

DIFFICULTY, OWN, SEED = 2.0, 0.8, 0.1  # standard deviations, on the logit scale
PROMPTS = 541
ODD = "d"  # the strategy that is better, or varies more


def logistic(x):
    return 1 / (1 + np.exp(-x))


def shift(points: float) -> float:
    """What a student gets on the logit scale to be so many points better, on average over prompts."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    at = nodes * math.hypot(DIFFICULTY, OWN)

    def better(by):
        return (logistic(at + by) - logistic(at)) @ weights / weights.sum() - points / 100

    return optimize.brentq(better, -10, 10)


def experiment(rng, seeds: int, *, prompts=PROMPTS, names="abcd", sds=None, shifts=None, shared=0.0):
    """(rows, {PRIMARY: items}) of one experiment. sds, shifts: {student: of its seeds, of itself}.

    shared: which part of a seed's variance all students have in common, as far as they train in one order.
    """
    hard, common_part = rng.normal(0, DIFFICULTY, prompts), rng.normal(size=(seeds, 1))
    documents = np.arange(prompts)
    rows, items = [], {}
    for model, role in (("teacher", "teacher"), (STUDENT_UNTRAINED, "untrained")):
        right = rng.random(prompts) < logistic(hard + rng.normal(0, OWN, prompts))
        rows.append({"model": model, "label": model, "role": role})
        items[model] = Items(right.astype(float), documents)
    for name in (SFT, *names):
        moved = math.sqrt(shared) * common_part + math.sqrt(1 - shared) * rng.normal(size=(seeds, 1))
        level = (sds or {}).get(name, SEED) * moved + (shifts or {}).get(name, 0.0)
        right = rng.random((seeds, prompts)) < logistic(hard + rng.normal(0, OWN, prompts) + level)
        for seed in range(seeds):
            model = f"{name}-seed{seed}"
            rows.append({"model": model, "label": model, "role": "student", "strategy": name, "seed": seed})
            items[model] = Items(right[seed].astype(float), documents)
    return rows, {PRIMARY: items}


def compared(rng, seeds: int, **how):
    rows, items = experiment(rng, seeds, **how)
    return comparisons.compare(rows, items, list(FAMILY), primary=PRIMARY, draws=1000)


def found(runs: int, seeds: int, points: float, seed: int = 1, **how) -> dict:
    """Power: the student that is better by so many points, against the untrained one and against sft."""
    rng, by = np.random.default_rng([seed, seeds, int(points)]), shift(points)
    counted = dict.fromkeys(
        itertools.product(("the untrained student", "sft"), ("alone", "in the family")), 0
    )
    for _ in range(runs):
        table = compared(rng, seeds, shifts={ODD: by}, **how).set_index(["family", "a", "b"])
        for member, b, said in (
            ("untrained", STUDENT_UNTRAINED, "the untrained student"),
            (SFT, SFT, SFT),
        ):
            row = table.loc[(member, ODD, b)]
            right = row["difference"] > 0
            counted[said, "alone"] += right and row["p"] <= 0.05
            counted[said, "in the family"] += right and row["p_holm"] <= 0.05
    return {f"found {where}, of {said}": float(n / runs) for (said, where), n in counted.items()}


def held(runs: int, seeds: int, seed: int = 2, **how) -> dict:
    """Nothing differs: false findings, coverage, and how often ODD and the other of a pair were pooled."""
    rng = np.random.default_rng([seed, seeds])
    false, covered, of_odd, alone, pooled, disagree = 0, [], [], [], [], 0
    for _ in range(runs):
        table = compared(rng, seeds, **how)
        odd = ((table["a"] == ODD) | (table["b"] == ODD)).to_numpy()
        inside = ((table["low"] <= 0) & (table["high"] >= 0)).to_numpy()
        false += bool((table["p_holm"] <= 0.05).any())
        covered.append(inside.mean())
        of_odd.append(inside[odd].mean())
        alone.append((table["p"] <= 0.05).to_numpy()[odd].mean())
        pooled.append((table["seed_variance"] == "pooled").to_numpy()[odd].mean())
        disagree += int((~inside & (table["p"] > 0.05)).sum() + (table["low"] == table["high"]).sum())
    return {
        "false findings in the family": false / runs,
        "coverage": float(np.mean(covered)),
        "coverage, of the odd one": float(np.mean(of_odd)),
        "p <= 0.05 alone, of the odd one": float(np.mean(alone)),
        "pooled, of the odd one": float(np.mean(pooled)),
        "intervals against their test": disagree,
    }


def power_at_printed(runs: int, seeds: int, seed: int = 3) -> dict:
    """Several seeds: what one run prints, against the power of other runs at the true printed difference.

    The pair is ODD against the untrained student, alone; `median` is what half of the runs print less than.
    """
    rng = np.random.default_rng([seed, seeds])
    printed = [
        compared(rng, seeds).set_index(["family", "a"]).loc[("untrained", ODD), "detectable"]
        for _ in range(runs)
    ]
    known = [value for value in printed if not math.isnan(value)]
    share = {"share of runs that print a number": len(known) / runs}
    if len(known) < runs / 2:
        return share
    low, median, high = (float(value) for value in np.percentile(known, [5, 50, 95]))
    reached = found(runs, seeds, median, seed=4)["found alone, of the untrained student"]
    return share | {"5 % print less": low, "half": median, "5 % more": high, "power at half's": reached}


# --- one seed, exactly ----------------------------------------------------------------------------


def coverage(n: int, discordance: float, difference: float) -> float:
    """How often the interval of `paired_test` holds the difference, over all outcomes but the rarest."""
    total = mass = 0.0
    share = (1 + difference / discordance) / 2
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], n, discordance).astype(int)
    for m in range(low, high + 1):
        few, many = stats.binom.ppf([1e-5, 1 - 1e-5], m, share).astype(int) if m else (0, 0)
        for only_a in range(few, many + 1):
            weight = stats.binom.pmf(m, n, discordance) * stats.binom.pmf(only_a, m, share)
            ends = report_stats.paired_interval(only_a, m - only_a, n)
            mass += weight
            total += weight * (ends[0] - 1e-12 <= difference <= ends[1] + 1e-12)
    return total / mass


def one_seed(figures):
    for n, psi in itertools.product((64, 541), (0.05, 0.2, 0.4)):
        size = power.detectable(n, psi)
        figures.add(
            f"{n} prompts, {psi:.0%} differ",
            **{f"coverage at {part:.0%} of that": coverage(n, psi, part * psi) for part in (0.0, 0.5, 0.9)},
            **{"detectable, points": 100 * size, "its power": power.mcnemar_power(n, max(psi, size), size)},
        )


# --- all of it ------------------------------------------------------------------------------------

ODD_SDS = {  # {what is said of it: {student: sd of its seeds}}; a student that is not named has SEED
    "equal": {},
    "one 2 x": {ODD: 2 * SEED},
    "one 3 x": {ODD: 3 * SEED},
    "one 6 x": {ODD: 6 * SEED},
    "two 6 x": {"c": 6 * SEED, ODD: 6 * SEED},
    "all 3 x": dict.fromkeys((SFT, *"abcd"), 3 * SEED),
    "two 3 x, others 0.5 x": {**dict.fromkeys((SFT, *"ab"), SEED / 2), "c": 3 * SEED, ODD: 3 * SEED},
}


# 1 seed is McNemar's exact test, whose coverage is that of its interval: `one_seed`.
TARGETS = {
    "found alone, of the untrained student": ("at least", 0.9),
    "found in the family, of the untrained student": ("at least", 0.6),
    "found alone, of sft": ("at least", 0.9),
    "found in the family, of sft": ("at least", 0.6),
    "false findings in the family": ("at most", 0.05),
    "coverage": ("at least", 0.93),
    "coverage, of the odd one": ("at least", 0.93),
    "intervals against their test": ("at most", 0),
}


def main():
    made = common.parser(__doc__)
    made.add_argument("--runs", type=int, help="experiments of a setting; default 1000, with --quick 4")
    args = made.parse_args()
    runs = args.runs or (4 if args.quick else 1000)
    gc.collect()
    gc.freeze()  # statsmodels collects garbage in each correction
    goal, rest = common.Figures(TARGETS), common.Figures({})
    if not args.quick:
        one_seed(rest)
    for seeds, points in itertools.product((1, 2, 3, 5), (5, 10, 20)):
        aimed = (
            goal if (seeds, points) == (3, 10) else rest
        )  # the target stands at ten points and three seeds
        aimed.add(f"{points} points, {seeds} seeds", **found(runs, seeds, points))
    settings = [(seeds, said, {"sds": sds}) for seeds in (2, 3, 5) for said, sds in ODD_SDS.items()]
    settings += [
        (1, "no spread", {"sds": dict.fromkeys((SFT, *"abcd"), 0.0)}),
        (3, "equal, half of it shared", {"shared": 0.5}),
    ]
    for said, names in {"two": "d", "three": "ad", "nine": "abcdefgh"}.items():
        settings += [(3, f"{said} students, equal", {"names": names})]
        settings += [(3, f"{said} students, one 6 x", {"names": names, "sds": {ODD: 6 * SEED}})]
    for seeds, said, how in settings:
        goal.add(f"{seeds} seeds, {said}", **held(runs, seeds, **how))
    for seeds in (2, 3, 5):
        rest.add(f"detectable, {seeds} seeds", **power_at_printed(runs // 2, seeds))
    goal.rows += rest.rows
    goal.write(args.json)


if __name__ == "__main__":
    main()

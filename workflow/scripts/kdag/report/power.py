"""Which difference a test could have detected: the power of the very test that is used, solved for its size.

Differences are fractions of the items. inf: no difference reaches the power. None: the seeds tell too little.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from kdag.report import pool

POWER = 0.8  # of what is called detectable
SPREAD = 2.0  # a number whose 95 % limits are further apart, by this factor, is not worth printing
REPLAYS = 2000  # runs that are drawn to see what a test would take the seeds for


# --- one seed: McNemar's exact test ---------------------------------------------------------------


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = 0.05) -> float:
    """The chance that `mcnemar_exact` of n prompts gives p <= alpha.

    discordance: the share of prompts on which the two models differ. How many do is Binomial(n, discordance),
    and of these a alone has a share of (1 + difference / discordance) / 2.
    """
    if not 0 <= abs(difference) <= discordance <= 1:
        raise ValueError(f"no difference of {difference} at a discordance of {discordance}")
    if discordance == 0:
        return 0.0
    fewest, most = stats.binom.ppf([1e-12, 1 - 1e-12], n, discordance)
    m = np.arange(int(fewest), int(most) + 1)
    share = (1 + abs(difference) / discordance) / 2
    worst = _largest_rejected(n, alpha)[m]
    rejected = stats.binom.cdf(worst, m, share) + stats.binom.sf(m - worst - 1, m, share)
    return float(stats.binom.pmf(m, n, discordance) @ np.where(worst < 0, 0.0, rejected))


@functools.lru_cache(maxsize=8)
def _largest_rejected(n: int, alpha: float) -> np.ndarray:
    """[n + 1]: of m discordant prompts, the largest smaller count with p <= alpha; -1 if there is none."""
    m = np.arange(n + 1)
    near = stats.binom.ppf(alpha / 2, m, 0.5)
    return np.where(stats.binom.cdf(near, m, 0.5) <= alpha / 2, near, near - 1).astype(int)


@functools.lru_cache(maxsize=1024)
def detectable(n: int, discordance: float, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest difference that McNemar's exact test finds with this power; inf if there is none.

    No difference is larger than the discordance it comes from: where that is too small for the power, it is
    taken as large as the difference. So two models that agree everywhere are no infinitely sharp measurement.
    """
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance is a share, got {discordance}")

    def missing(difference: float) -> float:
        return mcnemar_power(n, max(discordance, difference), difference, alpha) - power

    return math.inf if missing(1.0) < 0 else float(optimize.brentq(missing, 1e-9, 1.0, xtol=1e-7))


def detectable_by_prompts(
    variance: float, n_prompts: int, alpha: float = 0.05, power: float = POWER
) -> float:
    """The same where a prompt has several items: for this variance of the difference, by t."""
    t = stats.t.isf(alpha / 2, max(n_prompts - 1, 1)) + stats.norm.ppf(power)
    size = max(t * math.sqrt(variance), detectable(n_prompts, 0.0, alpha, power))
    return size if size <= 1 else math.inf


# --- several seeds: stats.crossed_test ------------------------------------------------------------


class Detectable(NamedTuple):
    """A difference, and its limits by the 95 % interval of the variance between seeds."""

    size: float
    low: float
    high: float


class Runs(NamedTuple):
    """Students and seeds of a table, and how many of a pair have seeds: 2, or 1 next to a baseline."""

    n_students: int
    n_seeds: int
    with_seeds: int


def detectable_over_seeds(
    v_prompts: float,
    v_seeds: float,
    df: int,
    runs: Runs,
    n_prompts: int,
    alpha: float = 0.05,
    power: float = POWER,
) -> Detectable | None:
    """The smallest difference that `stats.crossed_test` finds with this power in such runs.

    v_prompts: what the prompts give the variance of the difference; v_seeds: the variance between seeds of
    one student as the pool says, or the pair if there is no pool, known by df degrees of freedom. Other runs
    estimate it anew, and by chance leave a student out of the pool: that belongs to the power, and a pool
    without those that vary most is too small (`_shown`). None if the limits are more than SPREAD apart.
    """
    least = detectable(n_prompts, 0.0, alpha, power)  # of variances that are 0 the sign-flip test decides
    of_prompts, squares = v_prompts * pool.t(alpha, n_prompts - 1) ** 2, _squares(runs, alpha)
    v_seeds /= _shown(runs)

    def solved(variance: float) -> float:
        halves = np.sqrt(of_prompts + variance * squares)
        sd = math.sqrt(v_prompts + variance * runs.with_seeds / runs.n_seeds)

        def missing(size: float) -> float:
            return float(np.mean(special.ndtr((size - halves) / sd))) - power

        if sd == 0 or missing(min(least, 1.0)) >= 0:
            return least
        return math.inf if missing(1.0) < 0 else float(optimize.brentq(missing, 0.0, 1.0, xtol=1e-7))

    low, high = (solved(v_seeds * df / float(stats.chi2.isf(chance, df))) for chance in (0.025, 0.975))
    return None if high > SPREAD * low and low < math.inf else Detectable(solved(v_seeds), low, high)


@functools.lru_cache(maxsize=64)
def _squares(runs: Runs, alpha: float) -> np.ndarray:
    """[REPLAYS]: the seeds' part of the half-width squared, if each student's variance is 1."""
    found = []
    for students, together in _replayed(runs.n_students, runs.n_seeds):
        pair = students[0] - students[1] if runs.with_seeds == 2 else students[0]
        pooled = together and together.of_mean("0", "1" if runs.with_seeds == 2 else "")
        own = float(np.var(pair, ddof=1)) / runs.n_seeds
        found.append(pool.known_by(own, runs.n_seeds, pooled).square(alpha))
    return np.array(found)


@functools.lru_cache(maxsize=16)
def _shown(runs: Runs) -> float:
    """The mean variance of pools that hold the pair, if each student's variance is 1."""
    pair = {"0", "1"} if runs.with_seeds == 2 else {"0"}
    pools = [together for _, together in _replayed(runs.n_students, runs.n_seeds) if together]
    return float(np.mean([each.variance for each in pools if pair <= set(each.students)])) if pools else 1.0


@functools.lru_cache(maxsize=8)
def _replayed(n_students: int, n_seeds: int) -> list[tuple[np.ndarray, pool.Pool | None]]:
    """(seeds of each student, the pool of them) in REPLAYS runs whose students all vary alike."""
    drawn = np.random.default_rng(0).normal(size=(REPLAYS, n_students, n_seeds))
    return [
        (students, pool.pool({str(number): each for number, each in enumerate(students)}))
        for students in drawn
    ]

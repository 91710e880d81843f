"""Which difference a test could have detected: the power of the very test that is used, solved for its size.

Differences are fractions of the items. inf: no difference reaches the power. None: the seeds tell too little.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

POWER = 0.8  # of what is called detectable
SPREAD = 2.0  # a number whose 95 % limits are further apart, by this factor, is not worth printing
NODES = 64  # equally likely values of an estimated variance
STRIDE = 27  # which of them of two variances meet: all of the one spread evenly over the other


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


def detectable_over_seeds(
    v_prompts: float,
    seeds: tuple[tuple[float, int], ...],
    own_df: int | None,
    n_prompts: int,
    alpha: float = 0.05,
    power: float = POWER,
) -> Detectable | None:
    """The smallest difference that `stats.crossed_test` finds with this power, if its variances are these.

    seeds: ((variance, df), ...) of the seeds; own_df: those of the pair itself if the larger of its own and
    the pool's variance counts. None if the limits are more than SPREAD apart.
    """

    def solved(chance: float | None) -> float:
        """With each variance at a limit of its interval, or as estimated."""
        at = tuple((v if chance is None else v * df / stats.chi2.isf(chance, df), df) for v, df in seeds)
        return _solved(v_prompts, at, own_df, n_prompts, alpha, power)

    low, size, high = solved(0.025), solved(None), solved(0.975)
    return None if high > SPREAD * low and low < math.inf else Detectable(size, low, high)


def _solved(v_prompts, seeds, own_df, n_prompts, alpha, power) -> float:
    least = detectable(n_prompts, 0.0, alpha, power)  # of variances that are 0 the sign-flip test decides
    squares = np.full(NODES, v_prompts * stats.t.isf(alpha / 2, n_prompts - 1) ** 2)
    for part, (variance, df) in enumerate(seeds):
        estimates = _estimates(df, own_df)[np.arange(NODES) * STRIDE**part % NODES]
        squares += variance * estimates * stats.t.isf(alpha / 2, df) ** 2
    halves, sd = np.sqrt(squares), math.sqrt(v_prompts + sum(variance for variance, _ in seeds))

    def missing(size: float) -> float:
        return float(np.mean(special.ndtr((size - halves) / sd))) - power

    if sd == 0 or missing(least if least < math.inf else 1.0) >= 0:
        return least
    return math.inf if missing(1.0) < 0 else float(optimize.brentq(missing, 0.0, 1.0, xtol=1e-7))


@functools.lru_cache(maxsize=16)
def _estimates(df: int, own_df: int | None) -> np.ndarray:
    """[NODES] equally likely estimates of a variance of 1: the larger of the pool's and the pair's own."""
    shares = (np.arange(NODES) + 0.5) / NODES
    if own_df is None:
        return stats.chi2.ppf(shares, df) / df
    grid = np.geomspace(1e-4, 50, 2000)
    below = stats.chi2.cdf(grid * df, df) * stats.chi2.cdf(grid * own_df, own_df)
    return np.interp(shares, below, grid)

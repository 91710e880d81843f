"""Intervals, paired tests and the correction for many tests. Pure functions of arrays and counts.

Accuracies and differences are fractions, not points; intervals hold 95 % unless told otherwise. A
difference is always a minus b. Prompts are the sampling unit: `clusters` names the prompt of each item,
so that for instructions those of one prompt are drawn together, and for prompts it names each item apart.
Equal arguments give equal results to the bit: what is resampled are whole numbers, summed exactly.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


class Difference(NamedTuple):
    """a minus b, its interval, and the two-sided p of there being none."""

    difference: float
    low: float
    high: float
    p: float


class Crossed(NamedTuple):
    """A `Difference` over prompts and seeds, with its standard error and degrees of freedom."""

    difference: float
    low: float
    high: float
    p: float
    standard_error: float
    df: float


# --- counts ---------------------------------------------------------------------------------------


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a proportion: Wilson's score interval, J. Am. Stat. Assoc. 22 (1927) 209."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be 0 to n and n above 0, got {successes} of {n}")
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: given their sum, only_a is Binomial(sum, 1/2) under the null.

    The arguments count the prompts that a alone and that b alone got right. None at all: p is 1.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts cannot be negative, got {only_a} and {only_b}")
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(int(only_a), int(only_a + only_b), 0.5).pvalue)


def holm(pvalues) -> np.ndarray:
    """p-values adjusted by Holm's step-down method, in the order given (Scand. J. Stat. 6 (1979) 65).

    Calling what is at most alpha a finding keeps the chance of any false one in the family at alpha,
    however the tests depend on each other.
    """
    pvalues = np.asarray(pvalues, dtype=float)
    if pvalues.ndim != 1 or not np.all((pvalues >= 0) & (pvalues <= 1)):
        raise ValueError(f"p-values lie between 0 and 1, in one list; got {pvalues}")
    return multipletests(pvalues, method="holm")[1] if pvalues.size else pvalues


def minimal_detectable_difference(
    n: int, discordance: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest paired difference that n prompts show with the given power; inf where there is none.

    `discordance` is the share of prompts on which the two differ. Solves the sample size formula
    n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 (Connor, Biometrics 43 (1987) 207; z_a at
    1 - alpha/2, z_b at power) for d, which gives d = K sqrt(psi). Since no difference is larger than the
    discordance it comes from, the answer is at least K^2, where the two meet; so two models that agree
    everywhere do not count as a measurement of infinite precision.
    """
    if not 0 <= discordance <= 1:
        raise ValueError(f"discordance is a share, got {discordance}")
    z_a, z_b = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    inner = n + z_b**2 - z_a**2
    if inner < 0:
        return math.inf
    k = (z_a * math.sqrt(n) + z_b * math.sqrt(inner)) / (n + z_b**2)
    found = float(max(k * math.sqrt(discordance), k * k))
    return found if found <= 1 else math.inf


# --- one seed: resampling prompts -----------------------------------------------------------------


def bootstrap_interval(
    values, clusters, draws: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of `values`, prompts resampled with all their items; percentiles."""
    sums, sizes = _by_cluster(values, clusters)
    means = _resampled(sums[:, None], sizes, draws, seed)[:, 0]
    return _percentiles(means, confidence)


def paired_bootstrap(
    a, b, clusters, draws: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """mean(a) - mean(b) of two models on the same items, prompts resampled with both models' answers.

    Percentile interval (Efron and Tibshirani 1993, ch. 13). p is twice the smaller share of draws on
    either side of zero, zero and the observed draw included, so it is never below 2 / (draws + 1).
    """
    a, b = _arrays(a, b, ndim=1)
    sums, sizes = _by_cluster(a - b, clusters)
    drawn = _resampled(sums[:, None], sizes, draws, seed)[:, 0]
    return Difference(float(sums.sum() / sizes.sum()), *_percentiles(drawn, confidence), _tail(drawn))


# --- several seeds: resampling prompts and seeds --------------------------------------------------


def seed_bootstrap(
    a, b, clusters, draws: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """`paired_bootstrap` of [seeds, items] arrays, prompts and training seeds resampled independently.

    a and b are paired by seed; one that has no seeds (a baseline) is [1, items]. This is the pigeonhole
    bootstrap (Owen, Ann. Appl. Stat. 1 (2007) 386). It cannot make up for few seeds: with three that
    differ much its interval holds about 80 %, not 95. `crossed_test` knows its degrees of freedom.
    """
    a, b = _arrays(a, b, ndim=2)
    pairs = [_by_cluster(row, clusters) for row in a - b]
    sums, sizes = np.stack([s for s, _ in pairs], axis=1), pairs[0][1]
    n_seeds = sums.shape[1]
    per_seed = _resampled(sums, sizes, draws, seed)
    weights = np.random.default_rng([seed, 1]).multinomial(n_seeds, [1 / n_seeds] * n_seeds, size=draws)
    drawn = (per_seed * weights).sum(axis=1) / n_seeds
    difference = float(sums.sum() / (n_seeds * sizes.sum()))
    return Difference(difference, *_percentiles(drawn, confidence), _tail(drawn))


def crossed_test(a, b, clusters, draws: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Crossed:
    """mean(a) - mean(b) of [seeds, items] arrays, for a claim beyond these prompts and these seeds.

    Both are random effects, crossed. The variance of the mean over P prompts and S seeds is
    (MS_prompts + MS_seeds - MS_rest) / (P S), its degrees of freedom are Satterthwaite's, the statistic is
    Student's t: the quasi-F of Clark (J. Verbal Learn. Verbal Behav. 12 (1973) 335). MS_seeds is taken as
    no less than MS_rest and the degrees of freedom as no fewer than S - 1. p is the larger of that
    test's and of `sign_flip` over prompts, which holds for few prompts too. Items of one prompt enter by
    their sum, centred for the prompt's size, as in a ratio of two means.
    """
    a, b = _arrays(a, b, ndim=2)
    pairs = [_by_cluster(row, clusters) for row in a - b]
    sums, sizes = np.stack([s for s, _ in pairs]), pairs[0][1]
    (n_seeds, n_prompts), mean = sums.shape, float(sums.sum() / (len(sums) * sizes.sum()))
    if n_seeds < 2 or n_prompts < 2:
        raise ValueError(f"two seeds and two prompts at least, got {n_seeds} and {n_prompts}")
    values = (sums - mean * sizes) / sizes.mean()  # [S, P], mean zero
    of_prompts, of_seeds = values.mean(axis=0), values.mean(axis=1)
    rest = values - of_prompts - of_seeds[:, None]
    ms_prompts = n_seeds * (of_prompts**2).sum() / (n_prompts - 1)
    ms_rest = (rest**2).sum() / ((n_prompts - 1) * (n_seeds - 1))
    ms_seeds = max(n_prompts * (of_seeds**2).sum() / (n_seeds - 1), ms_rest)
    total = ms_prompts + ms_seeds - ms_rest
    flip = sign_flip(sums.sum(axis=0), draws, seed)
    if total <= 1e-15:  # every prompt and seed says the same
        return Crossed(mean, mean, mean, flip, 0.0, float(n_seeds - 1))
    spread = ms_prompts**2 / (n_prompts - 1) + (ms_seeds**2 + ms_rest**2 / (n_prompts - 1)) / (n_seeds - 1)
    df = float(max(total**2 / spread, n_seeds - 1))
    error = math.sqrt(total / (n_prompts * n_seeds))
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, df))
    return Crossed(mean, mean - half, mean + half, max(p, flip), error, df)


def sign_flip(differences, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p that differences per prompt (whole numbers) are as likely a's as b's: signs drawn anew.

    Exact up to the draws, whatever the distribution; the seeds behind the differences are held fixed.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[differences != 0]
    signs = np.random.default_rng([seed, 2]).integers(0, 2, size=(draws, differences.size), dtype=np.int8)
    sums = differences.sum() - 2 * (signs @ differences)
    return float((1 + np.count_nonzero(np.abs(sums) >= abs(differences.sum()))) / (draws + 1))


# --- shared ---------------------------------------------------------------------------------------


def _arrays(a, b, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    seeds_fit = ndim == 1 or 1 in (len(a), len(b)) or len(a) == len(b)
    if a.ndim != ndim or b.ndim != ndim or a.shape[-1] != b.shape[-1] or not seeds_fit:
        raise ValueError(f"a and b must be {ndim}-dimensional over the same items, got {a.shape}, {b.shape}")
    return a, b


def _by_cluster(values, clusters) -> tuple[np.ndarray, np.ndarray]:
    """(sum, count) of the values of each cluster."""
    values = np.asarray(values, dtype=float)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    if values.shape != index.shape or values.size == 0:
        raise ValueError(f"one cluster for each value, got {values.shape} and {index.shape}")
    return np.bincount(index, weights=values), np.bincount(index).astype(float)


@functools.lru_cache(maxsize=1)
def _draws(n_clusters: int, draws: int, seed: int) -> np.ndarray:
    """[draws, n_clusters]: how often each cluster is drawn. Kept, as all pairs of a table share it."""
    equal = np.full(n_clusters, 1 / n_clusters)
    counts = np.random.default_rng(seed).multinomial(n_clusters, equal, size=draws).astype(float)
    counts.setflags(write=False)
    return counts


def _resampled(sums: np.ndarray, sizes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means [draws, columns] of resampled clusters, from their sums [clusters, columns] and sizes."""
    drawn = _draws(len(sizes), draws, seed) @ np.column_stack([sums, sizes])
    return drawn[:, :-1] / drawn[:, -1:]


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _tail(drawn: np.ndarray) -> float:
    below, above = np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0)
    return float(min(1.0, 2 * (1 + min(below, above)) / (len(drawn) + 1)))

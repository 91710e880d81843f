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
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


class Difference(NamedTuple):
    """a minus b, its interval, and the two-sided p of there being none."""

    difference: float
    low: float
    high: float
    p: float


class Crossed(NamedTuple):
    """A `Difference` over prompts and seeds, and the variance that each gives it: ((variance, df), ...)."""

    difference: float
    low: float
    high: float
    p: float
    parts: tuple[tuple[float, int], tuple[float, int]]


# --- counts ---------------------------------------------------------------------------------------


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a proportion: Wilson's score interval, J. Am. Stat. Assoc. 22 (1927) 209."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes must be 0 to n and n above 0, got {successes} of {n}")
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low) if successes else 0.0, float(high) if successes < n else 1.0


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test: given their sum, only_a is Binomial(sum, 1/2) under the null.

    They count the prompts that a alone and that b alone got right. Of none p is 1.
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
    n_seeds, per_seed = sums.shape[1], _resampled(sums, sizes, draws, seed)
    weights = np.random.default_rng([seed, 1]).multinomial(n_seeds, [1 / n_seeds] * n_seeds, size=draws)
    drawn = (per_seed * weights).sum(axis=1) / n_seeds
    difference = float(sums.sum() / (n_seeds * sizes.sum()))
    return Difference(difference, *_percentiles(drawn, confidence), _tail(drawn))


def crossed_test(a, b, clusters, confidence: float = 0.95) -> Crossed:
    """mean(a) - mean(b) of [seeds, items] arrays, for a claim beyond these prompts and these seeds.

    Both are random effects, crossed (Clark, J. Verbal Learn. Verbal Behav. 12 (1973) 335): the mean over
    P prompts and S seeds has the variance (MS_prompts - MS_rest) / (P S), known well, plus
    MS_seeds / (P S), known by S - 1 degrees of freedom. Each part takes its own t, the half-width being
    sqrt(t_P-1^2 v_prompts + t_S-1^2 v_seeds), which holds no less than it says (Banerjee, Sankhya 22 (1960)
    359). p is the level at which that interval touches zero, and no less than `sign_flip` of the prompts,
    which is exact for few prompts too. A prompt's items enter by their sum, centred for its size.
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
    ms_seeds = n_prompts * (of_seeds**2).sum() / (n_seeds - 1)
    v_prompts = float(max(ms_prompts - min(ms_rest, ms_seeds), 0)) / values.size
    parts = ((v_prompts, n_prompts - 1), (float(ms_seeds) / values.size, n_seeds - 1))
    half = _reach(parts, 1 - confidence)
    p = max(_level(parts, abs(mean)), sign_flip(sums.sum(axis=0)))
    return Crossed(mean, mean - half, mean + half, p, parts)


def crossed_detectable(found: Crossed, alpha: float = 0.05, power: float = 0.8) -> float:
    """`minimal_detectable_difference` of a `crossed_test`, for the variances it found; inf where none is."""
    least = minimal_detectable_difference(found.parts[0][1] + 1, 0.0, alpha, power)
    size = max(least, _reach(found.parts, alpha, power))
    return size if size <= 1 else math.inf


def _reach(parts, alpha: float, power: float = 0.5) -> float:
    """sqrt of the sum of t^2 v, t of 1 - alpha/2 plus that of the power: by default the half-width."""
    return math.sqrt(sum(v * (stats.t.isf(alpha / 2, df) + stats.t.ppf(power, df)) ** 2 for v, df in parts))


def _level(parts, size: float) -> float:
    """The alpha whose half-width `size` is; not below 1e-100."""
    if size == 0 or _reach(parts, 1e-100) <= size:
        return 1.0 if size == 0 else 1e-100
    return math.exp(optimize.brentq(lambda x: _reach(parts, math.exp(x)) - size, math.log(1e-100), 0.0))


def sign_flip(differences) -> float:
    """Two-sided p that whole-numbered differences per prompt have either sign by chance: exact.

    Fisher's randomisation test: the sum over all signs is distributed as the convolution of one binomial
    for each size of difference. Of -1, 0 and 1 it is McNemar's exact test. Seeds are held fixed.
    """
    sizes, counts = np.unique(np.abs(np.rint(differences)).astype(int), return_counts=True)
    pmf = np.ones(1)  # of the sum of |d| over the positive signs
    for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        pmf = np.convolve(pmf, steps)
    total = len(pmf) - 1
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(round(float(np.sum(differences))))
    return float(min(1.0, pmf[extreme].sum()))


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

"""Intervals, paired tests and the correction for many tests. Pure functions of arrays and counts.

docs/statistics.md says which is used when, and what simulations found. What could have been detected is in
power.py, the variance between seeds of all students together in pool.py.

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

from kdag.report.pool import Seeds, known_by, t


class Difference(NamedTuple):
    """a minus b, its interval, and the two-sided p of there being none."""

    difference: float
    low: float
    high: float
    p: float


class Crossed(NamedTuple):
    """A `Difference` over prompts and seeds, and (variance, df) of its parts: of prompts, then of seeds."""

    difference: float
    low: float
    high: float
    p: float
    parts: tuple[tuple[float, int], ...]


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


def tango(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of (only_a - only_b) / n: Tango's score interval for paired proportions.

    Stat. Med. 17 (1998) 891. Every difference that its score test does not reject; each end is a root of
    score(d) = -+z. Two models that never differ have the interval -+ z^2 / (n + z^2), not one of width 0.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n == 0:
        raise ValueError(f"counts are at least 0 and together at most n, got {only_a}, {only_b} of {n}")
    z, observed = float(stats.norm.isf((1 - confidence) / 2)), (only_a - only_b) / n

    def beyond(d: float, at: float) -> float:
        b, c = (2 * n - only_a + only_b) * d - only_a - only_b, -only_b * d * (1 - d)
        alone = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # share that b alone has, given d
        return only_a - only_b - n * d - at * math.sqrt(max(n * (2 * alone + d * (1 - d)), 0.0))

    near = 1e-9  # at the observed difference itself the score is 0, and so is the variance if none differ
    low = -1.0 if observed == -1 else optimize.brentq(beyond, -1.0, observed - near, args=(z,))
    high = 1.0 if observed == 1 else optimize.brentq(beyond, observed + near, 1.0, args=(-z,))
    return float(low), float(high)


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


def paired_test(a, b, clusters, draws: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Difference:
    """mean(a) - mean(b) of two models' 0/1 on the same items: the test, and the interval that belongs to it.

    Items that are prompts: `mcnemar_exact` and `tango`. Several items a prompt: `sign_flip` of the prompts'
    sums and the `paired_bootstrap`'s interval. The interval reaches 0 wherever p is above 1 - confidence.
    """
    a, b = _arrays(a, b, ndim=1)
    sums, sizes = _by_cluster(a - b, clusters)
    if len(sums) == len(a):
        only_a, only_b = int((a > b).sum()), int((a < b).sum())
        ends = paired_interval(only_a, only_b, len(a), confidence)
        return Difference((only_a - only_b) / len(a), *ends, mcnemar_exact(only_a, only_b))
    difference, low, high, _ = paired_bootstrap(a, b, clusters, draws, seed, confidence)
    p = sign_flip(sums)
    return Difference(difference, *_agreeing(difference, low, high, p, len(sums), confidence), p)


def paired_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """`tango`, made to reach 0 where `mcnemar_exact` finds nothing: being exact, it finds a little less."""
    low, high = tango(only_a, only_b, n, confidence)
    return _agreeing((only_a - only_b) / n, low, high, mcnemar_exact(only_a, only_b), n, confidence)


# --- several seeds: prompts and seeds are both random ---------------------------------------------


def crossed_test(a, b, clusters, confidence: float = 0.95, pooled: Seeds | None = None) -> Crossed:
    """mean(a) - mean(b) of [seeds, items] arrays, for a claim beyond these prompts and these seeds.

    Both are random effects, crossed (Clark, J. Verbal Learn. Verbal Behav. 12 (1973) 335): the mean over
    P prompts and S seeds has the variance (MS_prompts - MS_rest) / (P S), known well, plus
    MS_seeds / (P S), known by S - 1 degrees of freedom. Each part takes its own t, the half-width being
    sqrt(t_P-1^2 v_prompts + t_df^2 v_seeds), which holds no less than it says (Banerjee, Sankhya 22 (1960)
    359). p is the level at which that interval touches zero, and no less than `sign_flip` of the prompts,
    which is exact for few prompts too. A prompt's items enter by their sum, centred for its size.

    a and b are paired by seed; one that has no seeds (a baseline) is [1, items]. pooled: what the seeds give
    the mean according to all students (pool.py), in place of what the pair's own seeds say (`pool.known_by`).
    """
    found = crossed_means(a, b, clusters, pooled)
    mean, half, n_prompts = found.mean, found.reach(1 - confidence), found.n_prompts
    p = max(found.level(), sign_flip(found.sums))
    ends = _agreeing(mean, mean - half, mean + half, p, n_prompts, confidence)
    return Crossed(mean, *ends, p, ((found.v_prompts, n_prompts - 1), *found.seeds.parts))


class Means(NamedTuple):
    """A mean difference over prompts and seeds, and what its variance comes from."""

    mean: float
    sums: np.ndarray  # of each prompt, over seeds and items
    v_prompts: float
    n_prompts: int
    seeds: Seeds

    def reach(self, alpha: float) -> float:
        """The half-width of the interval that leaves alpha out."""
        return math.sqrt(self.v_prompts * t(alpha, self.n_prompts - 1) ** 2 + self.seeds.square(alpha))

    def level(self) -> float:
        """The alpha whose interval touches 0; not below 1e-100."""
        size, least = abs(self.mean), math.log(1e-100)
        if size == 0 or self.reach(math.exp(least)) <= size:
            return 1.0 if size == 0 else 1e-100
        return math.exp(optimize.brentq(lambda x: self.reach(math.exp(x)) - size, least, 0.0))


def crossed_means(a, b, clusters, pooled: Seeds | None = None) -> Means:
    """What `crossed_test` decides by; of any numbers, not only of right and wrong."""
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
    own = float((of_seeds**2).sum() / (n_seeds - 1) / n_seeds)
    seeds = known_by(own, n_seeds, pooled)
    v_prompts = float(max(ms_prompts / values.size - min(ms_rest / values.size, seeds.variance), 0))
    return Means(mean, sums.sum(axis=0), v_prompts, n_prompts, seeds)


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


def _agreeing(difference, low, high, p, n_prompts, confidence) -> tuple[float, float]:
    """(low, high), never of width 0 and never without 0 where p finds nothing; within -1 to 1.

    Width 0 means that no prompt said anything of the variance: then as wide as `tango` is of two models
    that never differ.
    """
    if high - low < 1e-12:
        z2 = float(stats.norm.isf((1 - confidence) / 2)) ** 2
        low, high = difference - z2 / (n_prompts + z2), difference + z2 / (n_prompts + z2)
    if p > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return max(low, -1.0), min(high, 1.0)


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

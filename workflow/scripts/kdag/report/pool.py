"""How much a student's accuracy varies from seed to seed, taken from all students of the table together.

Three seeds tell one student's variance by two degrees of freedom, those of five students by ten: a test that
knows so much more finds far smaller differences. It holds only if the students vary alike, so a student whose
seeds vary more than those of the others stays out and counts with its own variance. Which levels and limits:
docs/statistics.md, by simulation.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.1  # of the F test that keeps a student out
SEEDS = 3  # at least, for a pool: of two seeds the F test sees next to nothing
OTHERS = 4  # degrees of freedom that the other students must have together
LIMIT = 1.75  # times the pool's t: as much as t of a student's own few degrees of freedom may be


class Seeds(NamedTuple):
    """What the seeds give the variance of a difference: ((variance, df), ...), and the pool's df, if any.

    The parts of students that were left out are known by fewer degrees of freedom than the pool. Their t is
    LIMIT times the pool's at most: the long tail of a t of two degrees of freedom comes from variances that
    are small by chance, and with such a one they would not have been left out.
    """

    parts: tuple[tuple[float, int], ...]
    pool_df: int | None = None

    @property
    def variance(self) -> float:
        return sum(variance for variance, _ in self.parts)

    def square(self, alpha: float) -> float:
        """The sum of t^2 v, t at 1 - alpha / 2."""
        most = LIMIT * t(alpha, self.pool_df) if self.pool_df else np.inf
        return sum(variance * min(t(alpha, df), most) ** 2 for variance, df in self.parts)


@functools.lru_cache(maxsize=4096)
def t(alpha: float, df: int) -> float:
    """The two-sided quantile of Student's t."""
    return float(-special.stdtrit(df, alpha / 2))


class Pool(NamedTuple):
    """The variance between seeds of one student's accuracy, and who it is taken from."""

    variance: float
    df: int
    students: tuple[str, ...]
    left_out: dict[str, float]  # {student that varies more than the others: its own variance}
    n_seeds: int

    def of_mean(self, a: str, b: str) -> Seeds:
        """What the seeds give the difference of a's and b's means; a baseline has no seeds."""
        kept = sum(name in self.students for name in (a, b))
        own = [self.left_out[name] for name in (a, b) if name in self.left_out]
        parts = ((kept * self.variance / self.n_seeds, self.df),) if kept else ()
        return Seeds((*parts, *((v / self.n_seeds, self.n_seeds - 1) for v in own)), self.df)


def pool(accuracies: dict[str, np.ndarray]) -> Pool | None:
    """The pool of {student: accuracy of each seed [S]}; None if seeds or students are too few.

    The student that varies most is compared with the mean of the others, as long as the F test keeps one out.
    """
    sizes = {len(each) for each in accuracies.values()}
    if len(sizes) != 1 or min(sizes) < SEEDS or (len(accuracies) - 1) * (min(sizes) - 1) < OTHERS:
        return None
    each = min(sizes) - 1
    variances = {name: float(np.var(values, ddof=1)) for name, values in accuracies.items()}
    kept, left_out = sorted(variances, key=variances.get), {}
    while (len(kept) - 1) * each >= OTHERS:
        *others, most = kept
        scale = sum(variances[name] for name in others) / len(others)
        if variances[most] <= scale * _largest_ratio(LEVEL, each, len(others) * each):
            break
        left_out[kept.pop()] = variances[most]
    variance = sum(variances[name] for name in kept) / len(kept)
    return Pool(variance, len(kept) * each, tuple(kept), left_out, each + 1)


@functools.lru_cache(maxsize=256)
def _largest_ratio(level: float, df: int, others: int) -> float:
    return float(stats.f.isf(level, df, others))


def known_by(own: float, n_seeds: int, pooled: Seeds | None) -> Seeds:
    """What a test takes: the pool's parts or the pair's own variance; the larger, if the pool is one part."""
    if not pooled:
        return Seeds(((own, n_seeds - 1),))
    if len(pooled.parts) > 1:
        return pooled
    ((variance, df),) = pooled.parts
    return Seeds(((max(own, variance), df),), pooled.pool_df)

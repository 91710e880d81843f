"""How much a student's accuracy varies from seed to seed, taken from all students of the table together.

Three seeds tell one student's variance by two degrees of freedom, those of five students by ten: a test that
knows so much more finds far smaller differences. It holds only if the students vary alike, so a student whose
seeds vary more than those of the others stays out and counts with its own variance. Which level and which
limits: docs/statistics.md, by simulation.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.1  # of the F test that keeps a student out; 0.05 misses too many, 0.2 keeps out too many
SEEDS = 3  # at least, for a pool: of two seeds the F test sees next to nothing
OTHERS = 4  # degrees of freedom that the other students must have together


class Pool(NamedTuple):
    """The variance between seeds of one student's accuracy, and who it is taken from."""

    variance: float
    df: int
    students: tuple[str, ...]
    left_out: dict[str, float]  # {student that varies more than the others: its own variance}
    n_seeds: int

    def of_mean(self, a: str, b: str) -> tuple[tuple[float, int], ...]:
        """((variance, df), ...) that the seeds give the difference of a's and b's means.

        A name that is no student is a baseline, which has no seeds. Of two that are left out nothing is known
        but what their own pairs of seeds say: then there is none.
        """
        pair = {a, b}
        if pair <= self.left_out.keys():
            return ()
        kept = len(pair & set(self.students))
        parts = ((kept * self.variance / self.n_seeds, self.df),) if kept else ()
        own = (self.left_out[name] for name in pair & self.left_out.keys())
        return (*parts, *((variance / self.n_seeds, self.n_seeds - 1) for variance in own))


def pool(accuracies: dict[str, np.ndarray]) -> Pool | None:
    """The pool of {student: accuracy of each seed [S]}; None if seeds or students are too few.

    The student that varies most is compared with the mean of the others, as long as the F test keeps one out.
    """
    sizes = {len(each) for each in accuracies.values()}
    if len(sizes) != 1 or min(sizes) < SEEDS:
        return None
    each = min(sizes) - 1
    variances = {name: float(np.var(values, ddof=1)) for name, values in accuracies.items()}
    kept = sorted(variances, key=variances.get)
    if (len(kept) - 1) * each < OTHERS:
        return None
    left_out = {}
    while (len(kept) - 1) * each >= OTHERS:
        *others, most = kept
        scale = np.mean([variances[name] for name in others])
        if variances[most] <= scale * stats.f.isf(LEVEL, each, len(others) * each):
            break
        left_out[kept.pop()] = variances[most]
    variance = float(np.mean([variances[name] for name in kept]))
    return Pool(variance, len(kept) * each, tuple(kept), left_out, each + 1)

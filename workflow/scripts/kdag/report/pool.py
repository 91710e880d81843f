"""How much a student's accuracy varies from seed to seed, taken from all students of the table together.

Three seeds tell one student's variance by two degrees of freedom, those of five students by ten: a test that
knows so much more finds far smaller differences. It holds only if the students vary alike, so a student whose
seeds vary more than those of the others stays out, and its pairs rely on their own seeds. Which level and
which limits: docs/statistics.md, by simulation.
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
    left_out: tuple[str, ...]  # vary more than the others

    def of_mean(self, a: str, b: str, n_seeds: int) -> tuple[float, int] | None:
        """(variance, df) that the seeds give the difference of a's and b's means; None if one is left out.

        A name that is no student is a baseline, which has no seeds.
        """
        if {a, b} & set(self.left_out):
            return None
        return len({a, b} & set(self.students)) * self.variance / n_seeds, self.df


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
    left_out = []
    while (len(kept) - 1) * each >= OTHERS:
        *others, most = kept
        scale = np.mean([variances[name] for name in others])
        if variances[most] <= scale * stats.f.isf(LEVEL, each, len(others) * each):
            break
        left_out.append(kept.pop())
    variance = float(np.mean([variances[name] for name in kept]))
    return Pool(variance, len(kept) * each, tuple(kept), tuple(left_out))

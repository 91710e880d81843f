"""What the differences of a printed table are worth, if all of its rows are out of the same n items.

The answers themselves are not printed, so no test of two rows can be paired. Two things can still be said:
the interval of two independent proportions, and on how few items two models would have to disagree for the
difference to be a finding of the paired test.
"""

import itertools

import pandas as pd
from statsmodels.stats.proportion import confint_proportions_2indep

from kdag.report import power, stats

ALPHA = 0.05
DISAGREEING = (0.05, 0.1, 0.2, 0.3)  # shares of items, for what could have been detected


def most_disagreements(difference: int, alpha: float = ALPHA) -> int | None:
    """The largest number of items on which two models can disagree, `difference` more of them won by one, for
    McNemar's exact test to find it; None if no number is small enough."""
    most, lost = None, 0
    while stats.mcnemar_exact(abs(difference) + lost, lost) <= alpha:
        most, lost = abs(difference) + 2 * lost, lost + 1
    return most


def unpaired(a: int, b: int, n: int) -> tuple[float, float]:
    """(low, high) of a/n - b/n, two independent proportions (Newcombe, Stat. Med. 17 (1998) 873, 10)."""
    low, high = confint_proportions_2indep(a, n, b, n, method="newcomb", compare="diff", alpha=ALPHA)
    return float(low), float(high)


def paragraphs(counts: dict[str, int | None], n: int) -> list[str]:
    """Markdown. counts: {row: its count out of n, None if there is none}."""
    known = {name: count for name, count in counts.items() if count is not None}
    lines = []
    for a, b in itertools.combinations(known, 2):
        difference = known[b] - known[a]
        low, high = unpaired(known[b], known[a], n)
        most = most_disagreements(difference) if difference else None
        lines.append(
            [
                f"{b} - {a}",
                f"{100 * difference / n:.2f}",
                difference,
                f"{100 * low:.1f} to {100 * high:.1f}",
                "never" if most is None else f"{most} of {n} ({100 * most / n:.2g} %)",
            ]
        )
    if not lines:
        return []
    head = ["rows", "points", "items", "95 % interval, unpaired", "significant if they disagree on at most"]
    shown = pd.DataFrame(lines, columns=head).to_markdown(index=False, disable_numparse=True)
    found = [f"{100 * power.detectable(n, share):.1f} points at {share:.0%}" for share in DISAGREEING]
    note = (
        "The last column is McNemar's exact test on the same items, one test at 5 %, for the counts nearest "
        "to the digits: the more two models disagree, the more of a difference is chance. Models that were "
        f"trained apart disagree on far more than a few items. Paired on these {n} items, differences that "
        f"can be detected with 80 % power: {', '.join(found)} disagreement."
    )
    return ["### What its differences are worth", shown, note]

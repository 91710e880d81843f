"""What the tests say, in words, and nothing that they do not say."""

import math

import pandas as pd

from kdag.config.roster import SFT
from kdag.report.words import named


def verdict(comparisons: pd.DataFrame, alpha: float = 0.05) -> str:
    """Markdown of `comparisons.compare`: a line for each member of the family, then how it was tested.

    Only a difference whose adjusted p is at most alpha is called one, better and worse alike. Where none
    was found, the text says what could have been, and that this shows no equality.
    """
    tested = comparisons[comparisons["test"].notna()]
    if tested.empty:
        return "No comparison was declared, so nothing is claimed.\n"
    lines = []
    for member, part in tested.groupby("family", sort=False):
        lines += _member(member, part, alpha)
    n, seeds = tested["n"].iloc[0], tested["seeds"].iloc[0].split()
    if len(seeds) == 1:
        who = f"One training seed ({seeds[0]}): the claim is about these models, not about the methods."
        how = "McNemar's exact test"
    else:
        who = (
            f"{len(seeds)} training seeds ({', '.join(seeds)}): a difference is claimed of the "
            "methods only if it stands out from what prompts and seeds vary by. The teacher is one model."
        )
        how = "a test with prompts and seeds both random"
    method = (
        f"Tested: `{tested['metric'].iloc[0]}` on {n} prompts by {how}, "
        f"{_count(len(tested), 'comparison')} in one family, "
        f"Holm's correction, {100 * alpha:g} %. Intervals hold 95 % each and are not adjusted. "
        "Other metrics describe and were not tested."
    )
    return "\n\n".join(["\n".join(lines), who, method]) + "\n"


def _member(member: str, part: pd.DataFrame, alpha: float) -> list[str]:
    """The lines of one member of the family: what survived, then what did not."""
    found = part[part["p_holm"] <= alpha]
    lines = [
        f"- {_finding(row)}"
        for row in found.sort_values("difference", ascending=False, kind="stable").to_dict("records")
    ]
    rest = part[part["p_holm"] > alpha]
    if rest.empty:
        return lines
    if member == "strategies":
        none, some = (
            "No significant difference between any two strategies",
            "No significant difference between",
        )
        listed = [f"{named(a)} and {named(b)}" for a, b in zip(rest["a"], rest["b"], strict=True)]
    else:
        baseline = named(part["b"].iloc[0])
        students = "trained student" if SFT in set(part["a"]) else "strategy"
        none = f"No significant difference between any {students} and {baseline}"
        some = f"No significant difference from {baseline} for"
        listed = [named(a) for a in rest["a"]]
    n, most = int(rest["n"].iloc[0]), rest["detectable_family"].max()
    shown = (
        f"{_count(n, 'prompt')} cannot show any difference among so many comparisons"
        if math.isinf(most)
        else f"with {_count(n, 'prompt')} we could have detected {most:.1f} points or more (80 % power)"
    )
    reach = f"The intervals reach from {rest['low'].min():.1f} to {rest['high'].max():.1f} points"
    which = none if found.empty else f"{some} {', '.join(listed)}"
    return [*lines, f"- {which}; {shown}. {reach}; that is not evidence of equality."]


def _finding(row: dict) -> str:
    """`a` is better (or worse) than b by how much, with interval and adjusted p."""
    size, low, high, word = row["difference"], row["low"], row["high"], "better"
    if size < 0:
        size, low, high, word = -size, -high, -low, "worse"
    p = "< 0.001" if row["p_holm"] < 0.001 else f"= {row['p_holm']:.3f}"
    return (
        f"{named(row['a'])} is {word} than {named(row['b'])}: {size:.1f} points "
        f"(95 % interval {low:.1f} to {high:.1f}, adjusted p {p})."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

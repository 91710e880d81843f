"""What the tests say, in words, and nothing that they do not say."""

import math

import pandas as pd

from kdag.config.roster import SFT
from kdag.report import letters
from kdag.report.pool import LEVEL, SEEDS
from kdag.report.words import listed, named, p_value


def verdict(comparisons: pd.DataFrame, alpha: float = 0.05) -> str:
    """Markdown of `comparisons.compare`: a line for each member of the family, then how it was tested.

    Only a difference whose adjusted p is at most alpha is called one, better and worse alike. Where none
    was found, the text says what could have been, what the intervals still allow, and that this shows no
    equality.
    """
    tested = comparisons[comparisons["test"].notna()]
    if tested.empty:
        return "No comparison was declared, so nothing is claimed.\n"
    lines = []
    for member, part in tested.groupby("family", sort=False):
        lines += _member(member, part, alpha, len(tested))
    return "\n\n".join(["\n".join(lines), _seeds(tested), _method(tested, alpha)]) + "\n"


# --- what was found, and what was not -------------------------------------------------------------


def _member(member: str, part: pd.DataFrame, alpha: float, comparisons: int) -> list[str]:
    """The lines of one member of the family: what survived, then what did not."""
    found = part[part["p_holm"] <= alpha]
    many = letters.wanted(part) and not found.empty
    ordered = found.sort_values("difference", ascending=False, kind="stable").to_dict("records")
    lines = [f"- {said}" for said in ([_order(part, alpha)] if many else map(_finding, ordered))]
    rest = part[part["p_holm"] > alpha].assign(pair=lambda table: _names(member, table))
    if rest.empty:
        return lines
    strategies, baseline = member == "strategies", named(part["b"].iloc[0])
    if many and len(rest) > 1:
        which = f"between the other {len(rest)} pairs of strategies"
    elif not found.empty:
        which = f"{'between' if strategies else f'from {baseline} for'} {listed(list(rest['pair']))}"
    elif strategies:
        which = "between any two strategies"
    elif len(part) == 1:
        which = f"between {rest['pair'].iloc[0]} and {baseline}"
    else:
        which = f"between any {'trained student' if SFT in set(part['a']) else 'strategy'} and {baseline}"
    which = f"No significant difference {which}"
    said = [
        f"{which}; {_detectable(rest, comparisons)}",
        _allowed(member, rest),
        *_alone(rest, alpha, comparisons),
    ]
    return [*lines, f"- {' '.join(said)}"]


def _names(member: str, table: pd.DataFrame) -> list[str]:
    """What a sentence calls each pair: both strategies, or the one that meets the baseline."""
    if member != "strategies":
        return [named(a) for a in table["a"]]
    return [f"{named(a)} and {named(b)}" for a, b in zip(table["a"], table["b"], strict=True)]


def _finding(row: dict) -> str:
    """`a` is better (or worse) than b by how much, with interval and adjusted p."""
    size, low, high, word = row["difference"], row["low"], row["high"], "better"
    if size < 0:
        size, low, high, word = -size, -high, -low, "worse"
    return (
        f"{named(row['a'])} is {word} than {named(row['b'])}: {size:.1f} points "
        f"(95 % interval {low:.1f} to {high:.1f}, adjusted p {p_value(row['p_holm'])})."
    )


def _order(part: pd.DataFrame, alpha: float) -> str:
    """All strategies on one line, the best first: by how far each is from the mean of them, in points."""
    total: dict[str, float] = {}
    for row in part.to_dict("records"):
        total[row["a"]] = total.get(row["a"], 0.0) + row["difference"]
        total[row["b"]] = total.get(row["b"], 0.0) - row["difference"]
    values = {name: f"{total[name] / len(total):+.1f}" for name in sorted(total, key=total.get, reverse=True)}
    differ = letters.differing(part, alpha)
    return (
        "The strategies from the best to the worst, in points from their mean: "
        f"{letters.line(values, differ)}. Two that share a letter do not differ significantly; "
        f"{len(differ)} of {len(part)} pairs do. Each pair with its interval: report/comparisons.csv."
    )


def _detectable(rest: pd.DataFrame, comparisons: int) -> str:
    """What the tests could have shown: the largest of the pairs' numbers, so that it holds for each."""
    sizes, seeds = rest["detectable_family"], len(rest["seeds"].iloc[0].split())
    with_what = _count(int(rest["prompts"].iloc[0]), "prompt")
    if seeds > 1:
        with_what += f" and {seeds} seeds"
    among = " among so many comparisons" if comparisons > 1 else ""
    if sizes.isna().all():
        return f"{seeds} seeds tell too little about how much seeds vary to say what we could have detected."
    if math.isinf(sizes.max()):
        return f"{with_what} cannot show any difference{among}."
    most = rest.loc[sizes.idxmax()]
    limits = ""
    if seeds > 1:
        low, high = most["detectable_family_low"], most["detectable_family_high"]
        upper = "more than 100" if math.isinf(high) else f"{high:.1f}"
        limits = f"; between {low:.1f} and {upper}, since {seeds} seeds show only roughly how much seeds vary"
    unknown = rest[sizes.isna()]
    rider = f"; for {_which(rest, unknown)} the seeds tell too little to say" if len(unknown) else ""
    return (
        f"with {with_what} we could have detected {most['detectable_family']:.1f} points or more "
        f"(80 % power{limits}){rider}."
    )


def _which(rest: pd.DataFrame, some: pd.DataFrame) -> str:
    """Some of the pairs by name, or, if there are many, whom they are the pairs of."""
    if len(some) > letters.MANY:
        names = sorted(set(rest["a"]) | set(rest["b"]))
        among = {name: ((some["a"] == name) | (some["b"] == name)).sum() for name in names}
        of = [name for name in names if among[name] == ((rest["a"] == name) | (rest["b"] == name)).sum()]
        if (some["a"].isin(of) | some["b"].isin(of)).all():
            return f"the pairs with {listed([named(name) for name in of])}"
    return listed(list(some["pair"]))


def _allowed(member: str, rest: pd.DataFrame) -> str:
    """What the intervals leave open; better and worse are words for what was found.

    Several pairs of strategies have no order: only the size counts.
    """
    low, high = rest["low"].min(), rest["high"].max()
    subject = "The 95 % interval allows" if len(rest) == 1 else "The 95 % intervals allow"
    if member == "strategies" and len(rest) > 1:
        what = f"differences of up to {max(-low, high):.1f} points"
    elif low < 0 < high:
        what = f"anything from {-low:.1f} points below to {high:.1f} points above"
    elif high > 0:
        what = f"anything from {abs(low):.1f} to {high:.1f} points above"
    else:
        what = f"anything from {abs(high):.1f} to {-low:.1f} points below"
    if member == "strategies" and len(rest) == 1:
        what = what.replace("anything", f"{named(rest['a'].iloc[0])} to be anything")
        what += f" {named(rest['b'].iloc[0])}"
    return f"{subject} {what}; that is not evidence of equality."


def _alone(rest: pd.DataFrame, alpha: float, comparisons: int) -> list[str]:
    """Those that one test would have called different: why they are not."""
    near = rest[rest["p"] <= alpha]
    if near.empty:
        return []
    whose, they = ("its", "it is") if len(near) == 1 else ("their", "they are")
    which = listed(list(near["pair"])) if len(near) <= letters.MANY else f"{len(near)} of them"
    values = listed([f"p {p_value(p)}" for p in near["p"]])
    if len(near) > 4:
        values = f"p from {near['p'].min():.3f} to {near['p'].max():.3f}"
    return [
        f"On {whose} own {which} would be significant ({values}); among {comparisons} comparisons {they} not."
    ]


# --- how it was tested ----------------------------------------------------------------------------


def _seeds(tested: pd.DataFrame) -> str:
    """Whom the claim is about, and what the variance between seeds was taken from."""
    seeds = tested["seeds"].iloc[0].split()
    if len(seeds) == 1:
        return f"One training seed ({seeds[0]}): the claim is about these models, not about the methods."
    said = [
        f"{len(seeds)} training seeds ({', '.join(seeds)}): a difference is claimed of the "
        "methods only if it stands out from what prompts and seeds vary by. The teacher is one model."
    ]
    each, pooled = len(seeds) - 1, tested[tested["seed_variance"] == "pooled"]
    apart = sorted(
        {row[side] for row in tested.to_dict("records") for side in ("a", "b") if side in row["left_out"]}
    )
    if not pooled.empty:
        df = int(pooled["seed_df"].iloc[0])
        said.append(
            f"How much seeds vary was taken from {df // each} trained students together "
            f"({df} degrees of freedom), and from the pair itself if that was more."
        )
    elif not apart:
        why = (
            f"{len(seeds)} seeds cannot show whether all students vary alike; a third seed would"
            if len(seeds) < SEEDS
            else "the table has too few students to take it from all of them"
        )
        said.append(
            f"How much seeds vary was taken from each pair by itself ({each} "
            f"degree{'s' if each > 1 else ''} of freedom), which shows only large differences: {why}."
        )
    if apart:
        counts = "counts with its own variance" if len(apart) == 1 else "count with their own variances"
        said.append(
            f"{listed([named(name) for name in apart])} varied more from seed to seed than the others "
            f"(F test, {100 * LEVEL:g} %) and {counts} ({each} degrees of freedom), "
            "which shows only large differences."
        )
    return " ".join(said)


def _method(tested: pd.DataFrame, alpha: float) -> str:
    how = {
        "McNemar, exact": "McNemar's exact test",
        "sign-flip of prompts, exact": "an exact sign-flip test of the prompts",
    }.get(tested["test"].iloc[0], "a test with prompts and seeds both random")
    many = "one comparison"
    if len(tested) > 1:
        many = f"{len(tested)} comparisons in one family, Holm's correction"
    said = [
        f"Tested: `{tested['metric'].iloc[0]}` on {_count(int(tested['prompts'].iloc[0]), 'prompt')} "
        f"by {how}, {many}, {100 * alpha:g} %.",
        "Intervals hold 95 % each and are not adjusted.",
        "Other metrics describe and were not tested.",
    ]
    if len(tested) > 1:
        said.insert(
            1, "What could have been detected is meant for the correction's first and strictest step."
        )
    return " ".join(said)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

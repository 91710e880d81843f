"""Many comparisons of each with each on one line: names that share a letter do not differ.

The compact letter display of Piepho, J. Comput. Graph. Stat. 13 (2004) 456, by insertion and absorption.
"""

import itertools
import string

import pandas as pd

from kdag.report.words import named

MANY = 15  # pairs; up to so many each is a sentence


def wanted(pairs: pd.DataFrame) -> bool:
    """Whether the pairs (columns a, b) are too many for sentences, and each with each."""
    names = len(set(pairs["a"]) | set(pairs["b"]))
    return len(pairs) > MANY and len(pairs) == names * (names - 1) // 2


def letters(names: list[str], differ: set[frozenset]) -> dict[str, str]:
    """{name: its letters}, two sharing one exactly if they are no pair of `differ`. names: the best first."""
    groups = [frozenset(names)]
    for pair in sorted(differ, key=sorted):
        split = [
            part
            for group in groups
            for part in ([group - {name} for name in pair] if pair <= group else [group])
        ]
        groups = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    groups.sort(key=lambda group: sorted(map(names.index, group)))
    return {
        name: "".join(word for word, group in zip(words(), groups, strict=False) if name in group)
        for name in names
    }


def words():
    """a to z, then a1, b1 ..."""
    for number in itertools.count():
        for letter in string.ascii_lowercase:
            yield f"{letter}{number or ''}"


def line(values: dict[str, str], differ: set[frozenset]) -> str:
    """ "`x` 0.41 (a), `y` 0.43 (ab)"; values: {name: what is said of it}, in their order."""
    marks = letters(list(values), differ)
    return ", ".join(f"{named(name)} {value} ({marks[name]})" for name, value in values.items())


def differing(pairs: pd.DataFrame, alpha: float) -> set[frozenset]:
    """The pairs whose adjusted p is at most alpha."""
    found = pairs[pairs["p_holm"] <= alpha]
    return {frozenset(pair) for pair in zip(found["a"], found["b"], strict=True)}

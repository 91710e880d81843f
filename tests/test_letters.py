"""The letters behind many comparisons say exactly which pairs differ, and the verdict stays readable."""

import itertools

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from test_closeness import drawn, table_rows
from test_verdict import line

from kdag.report import closeness, letters
from kdag.report.verdict import verdict

NAMES = [f"s{number:02}" for number in range(9)]


@given(st.sets(st.sampled_from([frozenset(pair) for pair in itertools.combinations(NAMES, 2)])))
def test_two_share_a_letter_exactly_if_they_do_not_differ(differ):
    marks = letters.letters(NAMES, differ)
    for one, other in itertools.combinations(NAMES, 2):
        assert bool(set(marks[one]) & set(marks[other])) == (frozenset((one, other)) not in differ)
    used = "".join(sorted(set("".join(marks.values()))))
    assert used == "abcdefghijklmnopqrstuvwxyz"[: len(used)], "no letter is left out"


def test_the_example_of_a_textbook():
    """Four means of which the outer ones differ: Piepho's table has ab for what is between."""
    assert letters.letters(list("wxyz"), {frozenset("wz")}) == {"w": "a", "x": "ab", "y": "ab", "z": "b"}


def test_many_students_stand_on_one_line_the_closest_first():
    names = ["sft", *NAMES[:6]]
    found = drawn(names, [0], shift={"s00": -0.3, "s05": 0.3})
    table = closeness.compare(table_rows(names), found, ["sft", "strategies"], 0.05)
    text = closeness.words(table, 0.05)
    first = text.split("\n- ")[1] if "\n- " in text else text
    said = text[text.index("From the closest") :].split(". ")[0]
    assert said.startswith("From the closest to the furthest, in nats: `s00` ") and said.endswith("(c)"), said
    differ = letters.differing(table, 0.05)
    assert f"{len(differ)} of 21 pairs do. Each pair with its interval: report/closeness.csv." in text, first
    assert f"No significant difference between the other {21 - len(differ)} pairs" in text


def test_many_strategies_stand_on_one_line_the_best_first():
    means = dict(zip(NAMES[:7], np.linspace(12, 0, 7), strict=True))
    pairs = [
        line(
            "strategies",
            *(a, b),
            **{"diff": means[a] - means[b], "low": means[a] - means[b] - 7, "high": means[a] - means[b] + 7},
            **{"p": 0.0001 if means[a] - means[b] > 7 else 0.5, "detect": 8.0},
        )
        for a, b in itertools.combinations(means, 2)
    ]
    text = verdict(pd.DataFrame(pairs))
    assert "- The strategies from the best to the worst, in points from their mean: `s00` +6.0 (a)" in text
    assert "6 of 21 pairs do" in text and "between the other 15 pairs of strategies" in text
    assert text.count("\n- ") == 1

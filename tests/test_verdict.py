"""The verdict's whole text for made-up results: each must read as a careful colleague would say it."""

import math
from pathlib import Path

import pandas as pd
import pytest

from kdag.config.roster import SFT, STUDENT_UNTRAINED, TEACHER
from kdag.report import comparisons
from kdag.report.verdict import verdict

BASELINE = {"untrained": STUDENT_UNTRAINED, "sft": SFT, "teacher": TEACHER}


def line(
    family, a, b=None, *, diff, low, high, p, p_holm=None, detect=math.nan, limits=(), seeds="0", **more
):
    """A line of comparisons.csv, with what the verdict reads of it."""
    return {
        "family": family,
        "a": a,
        "b": b or BASELINE[family],
        "metric": "prompt_level_strict_accuracy",
        "seeds": seeds,
        "prompts": 541,
        "difference": diff,
        "low": low,
        "high": high,
        "test": "McNemar, exact" if seeds == "0" else "prompts x seeds, t and sign-flip",
        "p": p,
        "p_holm": p if p_holm is None else p_holm,
        "detectable_family": detect,
        "detectable_family_low": limits[0] if limits else math.nan,
        "detectable_family_high": limits[1] if limits else math.nan,
        "seed_variance": "pooled",
        "seed_df": "10",
        "left_out": "",
        **more,
    }


THREE = {"seeds": "0 1 2"}
TWO = {"seeds": "0 1", "seed_variance": "own", "seed_df": "1"}
ODD = {"seed_variance": "own", "seed_df": "8 and 2"}
RESULTS = {
    "nothing was found": [
        line("untrained", "sft", diff=1.1, low=-2.5, high=4.7, p=0.62, p_holm=1, detect=7.4),
        line("untrained", "fkl", diff=2.2, low=-1.6, high=6.0, p=0.30, p_holm=1, detect=8.1),
        line("sft", "fkl", diff=1.1, low=-2.4, high=4.6, p=0.60, p_holm=1, detect=7.2),
    ],
    "one is better": [
        line("untrained", "sft", diff=1.1, low=-2.5, high=4.7, p=0.62, detect=7.4),
        line("untrained", "fkl", diff=9.4, low=5.2, high=13.6, p=2e-5, p_holm=8e-5, detect=8.1),
    ],
    "all are worse": [
        line("teacher", "sft", diff=-21.4, low=-26.1, high=-16.7, p=1e-16, detect=8.8),
        line("teacher", "fkl", diff=-8.4, low=-12.5, high=-4.3, p=0.0001, p_holm=0.012, detect=8.1),
    ],
    "one would be found on its own": [
        line("sft", "fkl", diff=4.6, low=0.4, high=8.8, p=0.033, p_holm=0.099, detect=7.6),
        line("sft", "rkl", diff=-1.0, low=-5.0, high=3.0, p=0.66, p_holm=1, detect=7.6),
    ],
    "strategies": [
        line("strategies", "fkl", "rkl", diff=3.3, low=-0.6, high=7.2, p=0.11, p_holm=0.22, detect=7.1),
        line("strategies", "fkl", "jsd", diff=-5.9, low=-9.8, high=-2.0, p=0.0031, p_holm=0.0093, detect=7.1),
        line("strategies", "rkl", "jsd", diff=-9.2, low=-13.3, high=-5.1, p=1e-5, detect=7.3),
    ],
    "one comparison, too few prompts": [
        line("sft", "fkl", diff=20, low=-30.4, high=61.7, p=1.0, detect=math.inf, prompts=5),
    ],
    "three seeds, pooled": [
        line("untrained", "fkl", diff=6.4, low=2.3, high=10.5, p=0.004, p_holm=0.04, detect=9.1, **THREE),
        line(
            *("untrained", "rkl"),
            **dict(diff=1.4, low=-2.7, high=5.5, p=0.5, detect=9.1, limits=(7.3, 13.9)),
            **THREE,
        ),
    ],
    "three seeds, one student varies more": [
        line(
            "untrained", "fkl", diff=1.4, low=-2.7, high=5.5, p=0.5, detect=9.1, limits=(7.3, 13.9), **THREE
        ),
        line("untrained", "rkl", diff=8.0, low=-9.9, high=25.9, p=0.19, **THREE, **ODD, left_out="a"),
    ],
    "several are left": [
        line("untrained", "sft", diff=1.1, low=-2.5, high=4.7, p=0.62, p_holm=1, detect=7.4),
        line("untrained", "fkl", diff=9.4, low=5.2, high=13.6, p=2e-5, p_holm=8e-5, detect=8.1),
        line("untrained", "rkl", diff=4.5, low=0.3, high=8.7, p=0.041, p_holm=0.123, detect=7.9),
        line("untrained", "jsd", diff=4.8, low=0.6, high=9.0, p=0.030, p_holm=0.120, detect=7.9),
    ],
    "two seeds": [
        line("untrained", "fkl", diff=8.0, low=-19.8, high=35.8, p=0.17, **TWO),
        line("untrained", "rkl", diff=6.0, low=-21.6, high=33.6, p=0.22, **TWO),
    ],
    "three seeds, one strategy": [
        line(
            *("sft", "fkl"),
            **dict(diff=-3.0, low=-11.1, high=5.1, p=0.25, seed_variance="own", seed_df="2"),
            **THREE,
        ),
    ],
}


def texts() -> dict[str, str]:
    """{what it shows: the whole text} of verdicts.md."""
    _, *sections = Path(__file__).with_name("verdicts.md").read_text(encoding="utf-8").split("\n## ")
    return {title: text.strip() for title, text in (section.split("\n", 1) for section in sections)}


@pytest.mark.parametrize("name", RESULTS)
def test_the_whole_text(name):
    assert verdict(pd.DataFrame(RESULTS[name])).strip() == texts()[name]


def test_every_text_is_made():
    assert list(texts()) == list(RESULTS) and len(RESULTS) >= 10


def test_the_columns_are_those_of_comparisons():
    read = {column for lines in RESULTS.values() for row in lines for column in row}
    assert read <= set(comparisons.COLUMNS)

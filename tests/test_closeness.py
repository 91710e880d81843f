"""Which student is closest to its teacher, tested with the held-out rows as units, in a family of its own."""

import numpy as np
import pytest
from scipy import stats as distributions

from kdag.report import closeness

ROWS = [
    {"model": "teacher-untrained", "role": "untrained"},
    {"model": "teacher", "role": "teacher"},
    {"model": "student-untrained", "role": "untrained"},
]


def table_rows(names, seeds=(0,)):
    return ROWS + [
        {"model": f"{name}-seed{seed}", "role": "student", "strategy": name, "seed": seed}
        for name in names
        for seed in seeds
    ]


def drawn(names, seeds, rows=48, shift=None, seed_sd=0.0, seed=0):
    """Mean forward KL of each held-out row: rows differ most, then models by row, then seeds."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(4, 0.15, rows)
    moved = {name: base + (shift or {}).get(name, 0) for name in names}
    return {
        f"{name}-seed{s}": moved[name] + rng.normal(0, seed_sd) + rng.normal(0, 0.03, rows)
        for name in names
        for s in seeds
    }


def test_one_seed_is_the_paired_t_test_of_rows():
    found = drawn(["sft", "fkl", "rkl"], [0], shift={"rkl": 0.05})
    table = closeness.compare(table_rows(["sft", "fkl", "rkl"]), found, ["sft", "strategies"], 0.05)
    assert list(zip(table["a"], table["b"], strict=True)) == [("fkl", "sft"), ("rkl", "sft"), ("fkl", "rkl")]
    for line in table.to_dict("records"):
        one, other = (found[f"{line[side]}-seed0"] for side in ("a", "b"))
        assert line["p"] == pytest.approx(distributions.ttest_rel(one, other).pvalue)
        assert line["difference"] == pytest.approx((one - other).mean())
        assert line["low"] < line["difference"] < line["high"]
        assert (line["low"] > 0 or line["high"] < 0) == (line["p"] < 0.05)
    assert list(table["p_holm"] <= 0.05) == [False, True, True]


def test_its_words_say_what_was_found_and_what_was_not():
    names = ["sft", "fkl", "rkl"]
    found = drawn(names, [0], shift={"rkl": 0.05})
    text = closeness.words(closeness.compare(table_rows(names), found, ["sft", "strategies"], 0.05), 0.05)
    first, *bullets, method = text.replace("\n- ", "\n\n- ").split("\n\n")
    assert first == "Which student is closest to its teacher? A second question, asked apart from the scores."
    assert sum("is closer to the teacher than `rkl` by 0.0" in bullet for bullet in bullets) == 2
    assert any(
        bullet.startswith(
            "- No significant difference between `fkl` and `sft`; with 48 rows we could have detected"
        )
        and bullet.endswith("that is not evidence of equality.")
        for bullet in bullets
    )
    assert "a paired t-test, 3 comparisons in a family of their own, Holm's correction, 5 %" in method
    assert method.endswith(
        "One training seed: of these models, not of the methods. A closer student need not score higher."
    )
    assert closeness.words(closeness.compare(table_rows(names), found, [], 0.05), 0.05) == ""


def test_students_that_are_alike_to_the_last_digit_do_not_differ():
    row = np.linspace(0.1, 1, 12)
    table = closeness.compare(table_rows(["a", "b"]), {"a-seed0": row, "b-seed0": row}, ["strategies"], 0.05)
    assert table["p"].item() == 1


@pytest.mark.parametrize(("seeds", "seed_sd"), [((0,), 0.0), ((0, 1, 2), 0.02)])
def test_nothing_is_found_where_nothing_is(seeds, seed_sd):
    """False findings in the family of five students, at most 5 % and a half for chance; a shift is found."""
    names = ["sft", "a", "b", "c", "d"]
    rows, runs, family = table_rows(names, seeds), 150, ["sft", "strategies"]
    false = found = 0
    for run in range(runs):
        table = closeness.compare(rows, drawn(names, seeds, seed_sd=seed_sd, seed=run), family, 0.05)
        false += bool((table["p_holm"] <= 0.05).any())
        shifted = drawn(names, seeds, shift={"a": -0.15}, seed_sd=seed_sd, seed=run)
        table = closeness.compare(rows, shifted, family, 0.05)
        found += table.loc[table["a"] == "a", "p_holm"].iloc[0] <= 0.05
    assert false / runs <= 0.075 and found / runs >= 0.9
    assert set(table["seed_variance"].dropna()) <= {"pooled", "own"}

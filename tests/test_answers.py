"""What stands below the table of answers that go wrong: who is named, by which rule, in which words."""

import re

import numpy as np
import pytest

from kdag.config.load import load_config
from kdag.config.metrics import PRIMARY
from kdag.config.roster import table_rows
from kdag.report import answers, stats
from kdag.report.measures import Items

ROW = {"cut_off": False, "repeated": False, "empty": False}


def rows(seeds=(0,), strategies=("fkl", "rkl")) -> list[dict]:
    source = {"source": "package", "package": "a", "file": "a.gguf"}
    return table_rows(
        load_config(
            {
                "data": {"source": "hub", "id": "a/b"},
                "teacher": source,
                "student": source,
                "strategies": {
                    name: {"divergence": "fkl", "temperature": 1 + number}
                    for number, name in enumerate(strategies)
                },
                "seeds": list(seeds),
            }
        )
    )


def measured(right: int = 20, n: int = 64, **counts: int) -> dict:
    """Scores of a model: the first so many answers right, and the first so many cut off, repeated, empty."""
    prompts = [
        {**ROW, **{kind: number < count for kind, count in counts.items()}, "strict": [number < right]}
        for number in range(n)
    ]
    shares = {f"{kind}_share": sum(p[kind] for p in prompts) / n for kind in ROW}
    return {"prompts": prompts, "answers": shares, "right": np.arange(n) < right}


def told(found: dict[str, dict], table=None) -> list[str]:
    """The notes where every model that is not in `found` answers well."""
    table = table or rows()
    scores = {row["model"]: found.get(row["model"], measured()) for row in table}
    items = {
        model: Items(each["right"].astype(float), np.arange(len(each["right"])))
        for model, each in scores.items()
    }
    return answers.notes(table, scores, PRIMARY, items, draws=1000)


def test_a_table_without_fault_has_no_note():
    assert told({}) == []


def test_students_that_are_cut_off_far_more_often_than_the_teacher_are_named_with_what_to_look_at():
    (note,) = told(
        {
            "teacher": measured(cut_off=20),
            "teacher-untrained": measured(cut_off=20),
            "fkl-seed0": measured(cut_off=41),
            "rkl-seed0": measured(cut_off=43),
        }
    )
    assert note.startswith(
        "`fkl` and `rkl` are cut off in 64 % and 67 % of their answers, the teacher in 31 %. Their scores "
        "say more about unfinished training than about the strategy. Look at: more steps"
    )
    for key in ("distillation.epochs", "data.train_rows", "learning_rate", "student.derive"):
        assert key in note
    assert "not adjusted: a warning, not a finding" in note


def test_each_kind_of_fault_has_its_own_sentence():
    (note,) = told({"fkl-seed0": measured(repeated=32), "sft-seed0": measured(cut_off=16, repeated=16)})
    assert note.startswith(
        "`sft` is cut off in 25 % of its answers, the teacher in 0 %. "
        "`sft` and `fkl` repeat themselves in 25 % and 50 % of their answers, the teacher in 0 %. "
        "Their scores say"
    )


@pytest.mark.parametrize(
    ("teachers", "students", "n", "expected"),
    [
        (0, 7, 64, True),  # p = 0.016
        (0, 6, 64, False),  # p = 0.031, but 9 points
        (0, 6, 60, True),  # ten points exactly
        (0, 5, 20, False),  # 25 points, p = 0.063
        (30, 36, 60, True),
    ],
)
def test_the_rule_asks_for_ten_points_and_for_mcnemars_test(teachers, students, n, expected):
    a, b = ([number < count for number in range(n)] for count in (students, teachers))
    assert answers.far_more(a, b) is expected
    assert not answers.far_more(b, a), "fewer is never named"
    p = stats.mcnemar_exact(students - teachers, 0)
    assert expected == ((students - teachers) / n >= 0.1 and p <= 0.05)


def test_the_test_is_paired_so_that_answers_that_swap_sides_count_against_it():
    mostly_a = [True] * 20 + [False] * 40
    mostly_b = [False] * 20 + [True] * 13 + [False] * 27
    assert (sum(mostly_a) - sum(mostly_b)) / 60 > 0.1
    assert not answers.far_more(mostly_a, mostly_b), "20 against 13 is chance"


def test_where_the_answers_do_not_tell_nobody_is_named():
    assert not answers.far_more([None] * 64, [False] * 64)
    unknown = measured()
    for prompt in unknown["prompts"]:
        prompt["cut_off"] = None
    unknown["answers"]["cut_off_share"] = None
    assert told({"teacher": unknown, "fkl-seed0": measured(cut_off=20)}) == []


def test_the_untrained_student_is_never_named():
    assert told({"student-untrained": measured(cut_off=64, repeated=64, empty=64)}) == []


def test_a_row_of_several_seeds_is_named_with_its_seed_and_many_shares_as_a_range():
    found = {f"fkl-seed{seed}": measured(cut_off=20 + seed) for seed in range(5)}
    (note,) = told(found, rows(seeds=range(5)))
    assert (
        "`fkl` (seed 0), `fkl` (seed 1)" in note
        and "and `fkl` (seed 4) are cut off in 31 % to 38 % of" in note
    )


def test_a_teacher_that_lost_by_fine_tuning_is_told_with_the_paired_test():
    (note,) = told({"teacher": measured(right=10)})
    p = stats.mcnemar_exact(0, 10)
    assert note.startswith(
        "The fine-tuned teacher scores lower than the untrained one: 0.1562 and 0.3125 "
        "(`prompt_level_strict_accuracy`), -15.6 points (95 % interval -"
    )
    assert f"p = {p:.3f} by McNemar's exact test, not adjusted). The students learn from it." in note
    low, high = map(float, re.search(r"interval (\S+) to (-[\d.]+),", note).groups())
    assert low < -15.6 < high < 0
    assert "`teacher_training.learning_rate`" in note and "`teacher_training.epochs`" in note


def test_a_small_loss_of_the_teacher_is_told_to_be_perhaps_chance():
    (note,) = told({"teacher": measured(right=19)})
    assert "-1.6 points" in note and "p = 1.000" in note and "which may be chance" in note


def test_a_teacher_that_gained_or_stayed_equal_is_not_mentioned():
    assert told({"teacher": measured(right=25)}) == told({"teacher": measured(right=20)}) == []


def test_a_teacher_that_is_cut_off_far_more_often_than_untrained_is_named_beside_it():
    (note,) = told(
        {"teacher": measured(cut_off=30), **{f"{s}-seed0": measured() for s in ("sft", "fkl", "rkl")}}
    )
    assert note.startswith("The teacher is cut off in 47 % of its answers, the untrained teacher in 0 %.")
    assert "a lower `teacher_training.learning_rate`" in note and "not a finding" in note


def test_rows_that_mostly_did_not_answer_are_named_once():
    found = {
        "teacher-untrained": measured(cut_off=40),
        "teacher": measured(cut_off=40),
        "fkl-seed0": measured(cut_off=60, empty=40),
        "rkl-seed0": measured(cut_off=32),
    }
    named, mostly = told(found)
    assert named.startswith("`fkl` is cut off in 94 % of its answers, the teacher in 62 %. Its scores say")
    assert mostly == (
        "More than half of the answers are cut off: the untrained teacher, the teacher; are empty: `fkl`."
    )

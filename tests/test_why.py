"""Why distilling did not help: each planted cause is named, a healthy run is met with silence."""

from dataclasses import replace

import pytest

from kdag.report import why

PULL = why.Pull(ce=0.03, divergence=0.015, cosine=0.2, entropy=0.7, entropy_at_1=0.3)


def student(name, **changes) -> why.Student:
    healthy = {"accuracy": 0.28, "nll": 3.1, "first": 3.9, "last": 3.0, "cut_off": 0.2, "repeated": 0.05}
    healthy |= {"forward_kl": 0.5, "pull": None if name == "sft" else PULL}
    return why.Student(name, **healthy | changes)


HEALTHY = why.Evidence(
    rows=why.Rows(shifted=0.0, control=0.0, unended=0.02, targets=12_000),
    teacher_nll=2.9,
    untrained_nll=4.0,
    teacher_accuracy=0.34,
    teacher_cut_off=0.2,
    teacher_repeated=0.02,
    students=[student("sft"), student("fkl"), student("rkl", accuracy=0.2)],
)


def with_student(**changes) -> why.Evidence:
    return replace(HEALTHY, students=[student("sft"), student("fkl", **changes)])


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (replace(HEALTHY, rows=replace(HEALTHY.rows, shifted=1.0)), "The labels are shifted: 100 %"),
        (replace(HEALTHY, rows=replace(HEALTHY.rows, control=0.04)), "The prompt is in the loss: 4.0 %"),
        (replace(HEALTHY, rows=replace(HEALTHY.rows, unended=0.9)), "90 % of the rows learn no token"),
        (replace(HEALTHY, teacher_nll=3.4, teacher_accuracy=0.1), "The teacher is worse than the student"),
        (with_student(nll=4.4), "`fkl` is worse after the training than before"),
        (with_student(last=4.3), "`fkl` is worse after the training than before, or the loss rose"),
        (
            with_student(pull=replace(PULL, entropy=0.9999)),
            "The temperature flattens the teacher of `fkl`: its entropy there is 100.0 %",
        ),
        (with_student(pull=replace(PULL, divergence=1e-5)), "Of `fkl` the divergence hardly counts"),
        (with_student(cut_off=0.6), "Answers of `fkl` are cut off far more often"),
    ],
)
def test_a_cause_is_named_and_no_other(evidence, said):
    (found,) = why.findings(evidence)
    assert found.startswith(said)
    assert why.paragraph(evidence) == f"What the evidence points to: {found}"


def test_a_healthy_run_is_met_with_silence():
    assert why.findings(HEALTHY) == []
    assert why.paragraph(HEALTHY).startswith(
        "`rkl` scores lower than `sft`, and nothing that is looked at here"
    )
    better = replace(HEALTHY, students=[student("sft"), student("fkl", accuracy=0.3)])
    assert why.paragraph(better) == "Nothing stands out, and no strategy scores lower than `sft`."


def test_a_uniform_teacher_is_not_the_temperatures_fault():
    assert why.findings(with_student(pull=replace(PULL, entropy=0.995, entropy_at_1=0.97))) == []

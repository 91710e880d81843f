"""Why distilling did not help: each planted cause is named, a healthy run is met with silence."""

from dataclasses import replace

import pytest

from kdag.report import why

PULL = why.Pull(ce=0.03, divergence=0.015, cosine=0.2, entropy=0.7, entropy_at_1=0.3)


def student(name, **changes) -> why.Student:
    healthy = {"accuracy": 0.28, "nll": 3.1, "forward_kl": 0.5, "pull": None if name == "sft" else PULL}
    return why.Student(name, **healthy | changes)


HEALTHY = why.Evidence(
    rows=why.Rows(shifted=0.0, control=0.0, unended=0.02),
    teacher_nll=2.9,
    untrained_nll=4.0,
    teacher_accuracy=0.34,
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
        (with_student(nll=4.4), "`fkl` got worse while it trained, or stopped learning at a high loss"),
        (with_student(rose=True), "`fkl` got worse while it trained"),
        (with_student(stuck=True), "`fkl` got worse while it trained"),
        (
            with_student(pull=replace(PULL, entropy=0.9999)),
            "The temperature flattens the teacher of `fkl`: its entropy there is 100.0 %",
        ),
        (with_student(pull=replace(PULL, divergence=1e-5)), "Of `fkl` the divergence hardly counts"),
        (with_student(cut_off=True), "Answers of `fkl` are cut off far more often"),
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


@pytest.mark.parametrize(
    ("losses", "gradients", "expected"),
    [
        ([4.6, 4.0, 3.5, 3.1], [1.2, 1.0, 0.9, 1.0], (False, False)),
        ([4.6, 5.0, 9.0, 8.0], [1.2, 30.0, 2.0, 2.0], (True, False)),
        ([4.6, 4.0, 3.9, 3.9], [1.2, 1.7, 0.02, 0.01], (False, True)),
        ([4.6, 1.0, 0.1, 0.05], [1.2, 0.4, 0.02, 0.01], (False, False)),  # it has learned its rows by heart
    ],
)
def test_a_training_that_failed_is_told_from_one_that_ended(losses, gradients, expected):
    log = [{"loss": loss, "grad_norm": size} for loss, size in zip(losses, gradients, strict=True)]
    assert why.rose_or_stuck(log) == expected

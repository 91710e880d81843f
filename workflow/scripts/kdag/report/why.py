"""Why distilling did not help: which of the usual causes the evidence of an experiment points to.

Pure functions of numbers that tools/why.py collects. Each cause has a rule of its own; what none of them
names is unknown, and the text says so. A rule names a cause that would be enough, not the only one there is.
"""

from dataclasses import dataclass
from statistics import fmean, median

from kdag.report.words import listed, named

SHIFTED = 0.01  # share of learned targets that are not the next token
CONTROL = 0.001  # share of learned targets that are control tokens and end no answer
UNENDED = 0.5  # share of rows that learn no end token
WORSE = 0.02  # nats per token, by which a teacher or a student is worse
FLAT, SHARP = 0.99, 0.95  # of ln V: the teacher's entropy at the strategy's T, and at T = 1
TINY = 0.02  # the divergence's gradient, or CE's, next to the other
DEAD, HIGH = 0.05, 0.7  # of the first gradient, and of the first loss: a training that stopped learning


@dataclass(frozen=True)
class Rows:
    """Of the training rows: shares of the learned targets, and of the rows."""

    shifted: float
    control: float
    unended: float


@dataclass(frozen=True)
class Pull:
    """What pulls on a student where its training begins, on the held-out rows: the sizes of the weighted
    gradients of CE and of the divergence with respect to its hidden states, and the cosine between them; the
    teacher's entropy as a share of ln V, at the strategy's temperature and at 1."""

    ce: float
    divergence: float
    cosine: float
    entropy: float
    entropy_at_1: float


@dataclass(frozen=True)
class Student:
    """Of the first seed. nll: of the held-out answers, nats per token; rose, stuck: of `rose_or_stuck`;
    cut_off, repeated: far more often than the teacher's (answers.far_more); pull: None of a student without a
    divergence."""

    name: str
    accuracy: float
    nll: float
    forward_kl: float
    rose: bool = False
    stuck: bool = False
    cut_off: bool = False
    repeated: bool = False
    pull: Pull | None = None


def rose_or_stuck(log: list[dict]) -> tuple[bool, bool]:
    """(does the loss end higher than it began; did the gradient die while the loss was high), of a "
    "training."""
    quarter = max(1, len(log) // 4)
    first, last = (fmean(step["loss"] for step in part) for part in (log[:quarter], log[-quarter:]))
    sizes = [step["grad_norm"] for step in log]
    died = median(sizes[len(sizes) // 2 :]) < DEAD * max(sizes[:quarter])
    return last > first + WORSE, died and last > HIGH * first


@dataclass(frozen=True)
class Evidence:
    """teacher, untrained: NLL of the fine-tuned teacher and of the untrained student."""

    rows: Rows
    teacher_nll: float
    untrained_nll: float
    teacher_accuracy: float
    students: list[Student]


def of_rows(found: Evidence) -> list[str]:
    rows = found.rows
    said = []
    if rows.shifted > SHIFTED:
        said.append(
            f"The labels are shifted: {100 * rows.shifted:.0f} % of the learned targets are not the token "
            "that follows. Every model learns something else than its answers."
        )
    if rows.control > CONTROL:
        said.append(
            f"The prompt is in the loss: {100 * rows.control:.1f} % of the learned targets are control "
            "tokens of the template that end no answer, so questions and roles are learned too."
        )
    elif rows.unended > UNENDED and rows.shifted <= SHIFTED:
        said.append(
            f"{100 * rows.unended:.0f} % of the rows learn no token that ends an answer: the mask may be "
            "shifted, or answers were cut (`data.overlong`). Students then do not learn to stop."
        )
    return said


def of_teacher(found: Evidence) -> list[str]:
    sft = next((student for student in found.students if student.name == "sft"), None)
    if sft is None or found.teacher_nll <= sft.nll + WORSE:
        return []
    better = found.teacher_accuracy > sft.accuracy
    rider = ", although it scores higher" if better else " and scores no higher"
    return [
        "The teacher is worse than the student it teaches: on the held-out answers it has "
        f"{found.teacher_nll:.2f} nats per token, the student that was fine-tuned without it "
        f"{sft.nll:.2f}{rider}. What pulls towards it pulls away from the answers. Look at "
        "`teacher_training` (`learning_rate`, `epochs`), or take a better teacher."
    ]


def of_rate(found: Evidence) -> list[str]:
    lost = [s for s in found.students if s.nll > found.untrained_nll + WORSE or s.rose or s.stuck]
    if not lost:
        return []
    who = listed([named(student.name) for student in lost])
    one = len(lost) == 1
    return [
        f"{who} got worse while {'it' if one else 'they'} trained, or stopped learning at a high loss: the "
        f"learning rate is too high for {'it' if one else 'them'}, or the numbers overflow. Look at "
        "`learning_rate` (a third of it), `warmup_ratio`, `dtype`."
    ]


def of_temperature(found: Evidence) -> list[str]:
    flat = [s for s in found.students if s.pull and s.pull.entropy >= FLAT and s.pull.entropy_at_1 <= SHARP]
    if not flat:
        return []
    return [
        f"The temperature flattens the teacher of {listed([named(s.name) for s in flat])}: its entropy "
        f"there is {100 * min(s.pull.entropy for s in flat):.1f} % of that of a uniform distribution "
        f"({100 * max(s.pull.entropy_at_1 for s in flat):.0f} % at temperature 1), so hardly anything of "
        "what it thinks is left. Look at `temperature`: 1 or 2."
    ]


def of_balance(found: Evidence) -> list[str]:
    """Named only where one of the two hardly counts."""
    said = []
    for student in found.students:
        pull = student.pull
        if pull is None or not pull.ce or not pull.divergence:
            continue
        small, large = sorted((pull.ce, pull.divergence))
        if small < TINY * large:
            which = "divergence" if pull.divergence < pull.ce else "cross-entropy"
            said.append(
                f"Of {named(student.name)} the {which} hardly counts: its weighted gradient is "
                f"{100 * small / large:.1f} % of the other's where training begins. Look at "
                "`kl_loss_weight`."
            )
    return said


def of_answers(found: Evidence) -> list[str]:
    said = []
    for kind, words in (("cut_off", "are cut off"), ("repeated", "repeat themselves")):
        if more := [student for student in found.students if getattr(student, kind)]:
            said.append(
                f"Answers of {listed([named(s.name) for s in more])} {words} far more often than the "
                "teacher's, which a score counts as wrong whatever was learned: more steps, or a lower rate."
            )
    return said


CAUSES = (of_rows, of_teacher, of_rate, of_temperature, of_balance, of_answers)


def findings(found: Evidence) -> list[str]:
    """A sentence or two for each cause that the evidence points to."""
    return [text for cause in CAUSES for text in cause(found)]


def paragraph(found: Evidence) -> str:
    """What `make why` prints below its figures."""
    said = findings(found)
    if said:
        return "What the evidence points to: " + " ".join(said)
    sft = next((student for student in found.students if student.name == "sft"), None)
    behind = [s for s in found.students if sft and s is not sft and s.accuracy < sft.accuracy]
    if not behind:
        return "Nothing stands out, and no strategy scores lower than `sft`."
    return (
        f"{listed([named(s.name) for s in behind])} score{'s' if len(behind) == 1 else ''} lower than "
        "`sft`, and nothing that is looked at here says why: rows, teacher, learning rate, temperature, "
        "the balance of the loss and the answers are as they should be. It may be chance (the verdict "
        "says which differences are not), the settings of the sweep, or the method."
    )

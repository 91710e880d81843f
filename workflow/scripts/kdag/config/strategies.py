"""The section `strategies`: whose answers are learned, by which loss, how the teacher is seen.

Which divergences and parameters there are, with ranges and defaults, load.py checks when the configuration is
read, and there a `method` becomes the keys that it stands for. Stages are given what came of it and import no
table of them.
"""

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from kdag.config.kinds import DATASET, NO_DIVERGENCE, SOURCES, STUDENT, TEACHER
from kdag.config.sampling import Sampling
from kdag.config.schedules import OVER, is_schedule, numbers, read
from kdag.config.section import Section
from kdag.config.teachers import Teachers
from kdag.config.training import Distillation


def shares(value) -> dict[str, float]:
    """{source: its share of the rows}, without those that have none, in the order of SOURCES.

    The student's may be a schedule; the others share what it leaves.
    """
    given = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(given, dict) or not set(given) <= set(SOURCES):
        raise ValueError(f"{', '.join(SOURCES)}, or shares of these are needed, got {value!r}")
    if is_schedule(given.get(STUDENT)):
        schedule = read(given[STUDENT])
        if not all(0 <= end <= 1 for end in numbers(schedule)):
            raise ValueError(f"a share is from 0 to 1, got {given[STUDENT]!r}")
        rest = {source: share for source, share in given.items() if source != STUDENT}
        return {**shares(rest), STUDENT: schedule}
    if wrong := [s for s in given.values() if isinstance(s, bool) or not isinstance(s, int | float)]:
        raise ValueError(f"a share is a number, got {wrong[0]!r}")
    if min(given.values(), default=-1) < 0 or not math.isclose(sum(given.values()), 1, abs_tol=1e-9):
        raise ValueError(f"shares are at least 0 and add up to 1, got {value!r}")
    return {source: float(given[source]) for source in SOURCES if given.get(source)}


SHARE = {"type": "number", "minimum": 0, "maximum": 1}
SCHEDULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["from", "to"],
    "properties": {"from": SHARE, "to": SHARE, "over": {"enum": list(OVER)}},
}
SHARES = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(SOURCES, SHARE) | {STUDENT: {"anyOf": [SHARE, SCHEDULE]}},
}
Answers = Annotated[
    dict, PlainValidator(shares), WithJsonSchema({"anyOf": [{"enum": list(SOURCES)}, SHARES]})
]


class Strategy(Section):
    """A loss with its parameters, whose answers it is taken on, any key of `distillation` it overrides."""

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str | None = Field(None, description="a published method, which stands for the keys below")
    answers: Answers = Field(
        DATASET, description="whose answers are learned: dataset, teacher, student, or their shares"
    )
    divergence: str | None = Field(description="null: a loss across tokenizers has none but gold")
    alignment: Literal["uld", "gold", "span-likelihood"] | None = Field(
        None, description="a loss for a teacher of another tokenizer, by spans that say the same; null: none"
    )
    student_divergence: str | None = Field(
        None,
        description="the divergence on the student's own answers, with the same parameters; null: the same",
    )
    pairs: bool = Field(
        False, description="each prompt with both of its answers, the student's next to another"
    )
    sampling: dict = Field(default_factory=dict, description="keys of `sampling` that it overrides")
    online: bool | None = Field(None, description="the live teacher, or its cache; null: as teacher.online")
    teachers: Teachers | None = Field(
        None,
        description="one by name, weights by name, or by: a column that names each row's; null: the first",
    )
    mixture: Literal["probability", "log"] = Field(
        "probability",
        description="of weighted teachers: the mean of their probabilities, or of their log-probabilities",
    )

    @model_validator(mode="after")
    def _the_loss_is_known(self):
        if self.divergence is None and self.alignment is None:
            raise ValueError("divergence: a name is needed")
        if not self.alignment:
            return self
        if self.divergence in (NO_DIVERGENCE, "taid"):
            raise ValueError(f"alignment: {self.alignment} does not go with divergence {self.divergence}")
        if self.answers != {DATASET: 1}:
            raise ValueError("alignment: only the data set's answers can be aligned, answers: dataset")
        if self.online:
            raise ValueError("online: true: a teacher of another tokenizer is read from its cache")
        if self.teachers and len(self.teachers.get("weights", ())) != 1:
            raise ValueError("teachers: with alignment there is one teacher, by name")
        return self

    @model_validator(mode="after")
    def _keys_fit_together(self):
        if wrong := [key for key in self.sampling if key not in Sampling.model_fields]:
            raise ValueError(f"sampling.{wrong[0]}: no such key")
        if STUDENT in self.answers and self.online is False:
            raise ValueError(
                "online: false: answers of the student have no cache, the teacher runs next to it"
            )
        if STUDENT in self.answers and self.divergence == NO_DIVERGENCE:
            raise ValueError("divergence: none on the student's own answers teaches it nothing but itself")
        own = self.student_divergence
        if own and (STUDENT not in self.answers or own == NO_DIVERGENCE):
            raise ValueError(f"student_divergence: {own} needs answers of the student, and a divergence")
        if self.pairs and (STUDENT not in self.answers or list(self.answers.values()) != [0.5, 0.5]):
            raise ValueError("pairs: the student's answers and one other kind are needed, a half of each")
        if self.teachers and TEACHER in self.answers:
            raise ValueError(
                "teachers: answers: teacher are those of the first (the section `teacher`); no other is asked"
            )
        if self.teachers and self.divergence == NO_DIVERGENCE:
            raise ValueError("teachers: without a divergence no teacher is asked")
        if self.mixture != "probability" and len((self.teachers or {}).get("weights", ())) < 2:
            raise ValueError(f"mixture: {self.mixture} is of several teachers with weights (teachers)")
        return self

    def divergence_params(self) -> dict:
        """The divergence's own parameters, each a number or a schedule."""
        return {k: v for k, v in self.model_extra.items() if k not in Distillation.model_fields}

    def overrides(self) -> dict:
        return {k: v for k, v in self.model_extra.items() if k in Distillation.model_fields}

"""The section `teachers`, and which of them a strategy learns from: one, a weighted mean of them, or each row
from its own.

    teachers: math                            one of them
    teachers: {teacher: 0.3, math: 0.7}       a weighted mean of their distributions
    teachers: {by: subject}                   of each row the one that its column `subject` names

`teacher` is the first one, of the section of that name.
"""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_serializer, model_validator

from kdag.config.sources import ModelSource

FIRST = "teacher"
BY = "by"
COLUMN = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # it becomes part of a file's name
SPACES = ("probability", "log")


class FurtherTeacher(ModelSource):
    """One more large model, or what others have published of one: its log-probs."""

    training: dict = Field(default_factory=dict, description="keys of `teacher_training` that it overrides")
    logprobs: Literal["distillkit"] | None = Field(
        None, description="the source holds no model but its log-probs, in this format; null: a model"
    )
    files: str = Field(
        "*.parquet", description="logprobs: the files that are fetched, a pattern of names below the source"
    )
    compressor: dict | None = Field(
        None,
        description="logprobs: DistillKit's logprob_compressor; null: compression_config.yaml of the source",
    )

    @model_validator(mode="after")
    def _log_probs_are_no_model(self):
        if self.logprobs and self.training:
            raise ValueError("training: of published log-probs there is nothing to train")
        if self.logprobs and self.source == "package":
            raise ValueError("source package does not take logprobs; take hub or path")
        own = ("files", "compressor")
        if extra := [k for k in own if getattr(self, k) != type(self).model_fields[k].default]:
            if not self.logprobs:
                raise ValueError(f"{extra[0]}: a model has none; it is of logprobs: distillkit")
        return self

    @model_serializer(mode="wrap")
    def _a_model_has_no_log_probs(self, dump):
        """Without the keys of published log-probs, if it is a model."""
        unused = () if self.logprobs else ("logprobs", "files", "compressor")
        return {key: value for key, value in dump(self).items() if key not in unused}


def read(value) -> dict:
    """{"by": column} or {"weights": {name: weight, adding up to 1}}."""
    if isinstance(value, str):
        return {"weights": {value: 1.0}}
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        raise ValueError(f"a teacher's name, weights by name, or by: column is needed, got {value!r}")
    if BY in value:
        column = value[BY]
        if len(value) > 1 or not isinstance(column, str) or not re.fullmatch(COLUMN, column):
            raise ValueError(f"by: one column of the data is needed, got {value!r}")
        return {BY: column}
    if set(value) == {"weights"} and isinstance(value["weights"], dict):
        value = value["weights"]  # as this function gives it
    if wrong := [
        w for w in value.values() if isinstance(w, bool) or not isinstance(w, int | float) or not w > 0
    ]:
        raise ValueError(f"a weight is a number above 0, got {wrong[0]!r}")
    if not math.isclose(sum(value.values()), 1, abs_tol=1e-9):
        raise ValueError(f"the weights add up to 1, got {value!r}")
    return {"weights": {name: float(weight) for name, weight in value.items()}}


WEIGHT = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
Teachers = Annotated[
    dict,
    PlainValidator(read),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": [BY],
                    "properties": {BY: {"type": "string", "pattern": f"^{COLUMN}$"}},
                },
                {"type": "object", "additionalProperties": WEIGHT, "not": {"required": [BY]}},
            ]
        }
    ),
]

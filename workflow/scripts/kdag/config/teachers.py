"""Which of several teachers a strategy learns from: one, a weighted mean of them, or each row from its own.

    teachers: math                            one of them
    teachers: {teacher: 0.3, math: 0.7}       a weighted mean of their distributions
    teachers: {by: subject}                   of each row the one that its column `subject` names

`teacher` is the first one, of the section of that name.
"""

import math
import re
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

FIRST = "teacher"
BY = "by"
COLUMN = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # it becomes part of a file's name
SPACES = ("probability", "log")


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

"""A number that may change while a student trains: {from: 0.4, to: 1, over: linear}.

A schedule stays the plain dictionary that the YAML has, with every key filled in.
"""

from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

# adaptive: of taid_t TAID's, which goes on faster while the loss falls; of the student's share of the answers
# DistiLLM's, which grows where the held-out loss does (training/schedule.py).
OVER = ("linear", "cosine", "adaptive")
KEYS = ("from", "to", "over")


def is_schedule(value) -> bool:
    return isinstance(value, dict)


def is_adaptive(value) -> bool:
    return is_schedule(value) and value["over"] == "adaptive"


def numbers(value) -> list[float]:
    """All that a number or the two ends of a schedule are, to be checked alike."""
    return [value["from"], value["to"]] if is_schedule(value) else [value]


def read(value):
    """A number, or a schedule with its defaults; ValueError says what is wrong."""
    if not isinstance(value, dict):
        return as_number(value)
    if unknown := [key for key in value if key not in KEYS]:
        raise ValueError(f"a schedule has the keys {', '.join(KEYS)}, and no {unknown[0]!r}")
    if lacking := [key for key in ("from", "to") if key not in value]:
        raise ValueError(f"a schedule needs `{lacking[0]}`, as in {{from: 0.4, to: 1, over: linear}}")
    over = value.get("over", "linear")
    if over not in OVER:
        raise ValueError(f"over: {', '.join(OVER)} are known, got {over!r}")
    return {"from": as_number(value["from"]), "to": as_number(value["to"]), "over": over}


def as_number(value) -> float:
    """YAML 1.1 reads 1e-4 as text."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"a number is needed, or a schedule, got {value!r}")


def scheduled(above: float, most: float):
    """A field: a number in (above, most], or a schedule between two of them."""

    def check(value):
        found = read(value)
        if any(not number > above for number in numbers(found)):
            raise ValueError(f"Input should be greater than {above:g}")
        if any(number > most for number in numbers(found)):
            raise ValueError(f"Input should be less than or equal to {most:g}")
        if is_adaptive(found):
            raise ValueError("over: adaptive is for taid_t and the student's share of the answers")
        return found

    number = {"type": "number", "exclusiveMinimum": above, "maximum": most}
    schedule = {
        "type": "object",
        "additionalProperties": False,
        "required": ["from", "to"],
        "properties": {"from": number, "to": number, "over": {"enum": list(OVER)}},
    }
    return Annotated[float | dict, PlainValidator(check), WithJsonSchema({"anyOf": [number, schedule]})]

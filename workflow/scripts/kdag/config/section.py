"""What every section of the configuration has in common: how values are read, and how a mistake is told."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_validator

from kdag.job.errors import UserError

# YAML 1.1 reads 1e-4 as a string and `--config` hands every value over as one.
Number = Annotated[float, BeforeValidator(lambda v: float(v) if isinstance(v, str) else v)]
# auto: what the processor of a job multiplies in hardware (precision.py).
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


def refuse_braces(path: str | None) -> None:
    if path and ("{" in path or "}" in path):
        raise ValueError(f"braces in a path mean wildcards to Snakemake; give it another name: {path}")


def expanded(path: str | None) -> str | None:
    """A path with ~ and $HOME as the directories that they mean."""
    return os.path.expandvars(os.path.expanduser(path)) if path else path


def path_is(what: str, path: str) -> bool:
    """Path.exists, is_dir or is_file, by name; a text that can be no path, too long say, is none."""
    try:
        return getattr(Path(path), what)()
    except (OSError, ValueError):
        return False


class Section(BaseModel):
    """Unknown keys are errors; numbers in text are read as numbers; booleans are not numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value, info):
        values = value if isinstance(value, list) else [value]
        annotation = cls.model_fields[info.field_name].annotation
        if bool not in (annotation, *get_args(annotation)):
            if any(isinstance(one, bool) for one in values):
                raise ValueError("true and false (in YAML also yes, no, on, off) have no meaning here")
        return value


def checked(section: type[Section], raw: dict) -> Section:
    """One section by itself, as a stage gets it; UserError as of `load_config`."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(error_lines(error, section))) from error


def error_lines(error: ValidationError, section: type[Section]) -> list[str]:
    """`key.path: what is wrong (got value)`, with the nearest known key for a misspelt one."""
    lines = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _fields_at(item["loc"][:-1], section)
            message = f"no such key{suggestion(str(item['loc'][-1]), known)}"
        got = "" if isinstance(item["input"], dict | BaseModel) else f" (got {item['input']!r})"
        lines.append(f"{where}: {message}{got}" if where else message)
    return lines


def suggestion(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(sorted(known))}"


def _fields_at(path, model: type[Section]) -> list[str]:
    for key in path:
        field = model.model_fields.get(key)
        inner = field.annotation if field else None
        options = [inner, *getattr(inner, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, Section)), model)
    return [f.alias or name for name, f in model.model_fields.items()]

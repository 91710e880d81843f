"""The sections that say where models, rows and prompts come from."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from kdag.config.columns import Columns
from kdag.config.section import Section, expanded, path_is, refuse_braces
from kdag.files import readers
from kdag.job.errors import UserError

GENERATED = "reasoning-gym"
IFEVAL_KEYS = ("key", "prompt", "instruction_id_list", "kwargs")


class Source(Section):
    """Where a model or a data set comes from: a hub, a path, or a file that an installed package ships."""

    source: Literal["hub", "path", "package"] = Field("hub", description="where it comes from")
    id: str | None = Field(None, description="hub: the repository, owner/name")
    revision: str | None = Field(
        None, description="hub: commit, branch or tag; null: the newest when fetched, recorded"
    )
    path: str | None = Field(None, description="path: a file or model directory on this machine")
    package: str | None = Field(None, description="package: the installed distribution's name")
    file: str | None = Field(None, description="package: the file inside it")

    @field_validator("path")
    @classmethod
    def _home_is_known(cls, value):
        return expanded(value)

    @model_validator(mode="after")
    def _source_has_its_keys(self):
        wanted = {
            "hub": {"id"},
            "path": {"path"},
            "package": {"package", "file"},
            "reasoning-gym": {"id"},
        }[self.source]
        optional = {"revision"} if self.source == "hub" else set()
        given = {k for k in ("id", "revision", "path", "package", "file") if getattr(self, k)}
        if missing := sorted(wanted - given):
            raise ValueError(f"source {self.source} needs {', '.join(missing)}")
        if extra := sorted(given - wanted - optional):
            raise ValueError(f"source {self.source} does not take {', '.join(extra)}")
        refuse_braces(self.path)
        if self.source == "path" and not path_is("exists", self.path):
            raise ValueError(f"no such file or directory: {self.path}")
        return self


class DataSource(Source):
    source: Literal["hub", "path", "package", "reasoning-gym"] = Field(
        "hub", description="where it comes from"
    )
    name: str | None = Field(None, description="hub: the data set's configuration, if it has several")
    split: str = Field("train", description="hub: the split")
    config: dict = Field(default_factory=dict, description="reasoning-gym: settings of the generator")
    seed: int = Field(0, ge=0, description="reasoning-gym: of the questions")

    @model_validator(mode="after")
    def _path_is_a_file(self):
        if self.source == "path" and path_is("is_dir", self.path):
            raise ValueError(f"{self.path} is a directory; a file of rows is needed")
        if self.name and self.source != "hub":
            raise ValueError(f"source {self.source} does not take name")
        if (self.config or self.seed) and self.source != GENERATED:
            raise ValueError(f"source {self.source} takes neither config nor seed")
        return self


class ModelSource(Source):
    @model_validator(mode="after")
    def _path_is_a_directory(self):
        if self.source == "path" and self.path and not path_is("is_dir", self.path):
            raise ValueError(f"{self.path} is a file; a model directory is needed")
        return self


class Data(DataSource, Columns):
    """The rows that the experiment learns from."""

    learn: Literal["all", "last"] = Field(
        "all", description="which of a conversation's assistant turns are learned"
    )
    train_rows: int = Field(1000, gt=0, description="rows to train on: the first ones")
    heldout_rows: int = Field(100, gt=0, description="rows after those, for fidelity; never trained on")
    max_tokens: int = Field(2048, ge=16, description="longest row, prompt and answer, in tokens")
    overlong: Literal["drop", "truncate", "error"] = Field(
        "drop", description="a longer row is left out, cut at max_tokens (losing its end), or an error"
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="a row that cannot be learned is an error, or left out and counted"
    )

    @model_validator(mode="after")
    def _the_beginning_has_the_columns(self):
        rows = readers.first_rows(self.path) if self.source == "path" else []
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if columns and (problems := self.problems(columns)):
            raise ValueError("; ".join(problems))
        return self


class Derive(Section):
    """A student made from the teacher's own untrained network."""

    from_: Literal["teacher"] = Field("teacher", alias="from")
    keep_layers: int | None = Field(None, gt=1, description="so many transformer layers, evenly spaced")
    drop_layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="or all layers but these, counted from 0"
    )

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.keep_layers is None) == (self.drop_layers is None):
            raise ValueError("either keep_layers or drop_layers is needed")
        return self

    def kept(self, total: int) -> list[int]:
        """The layers of a teacher with `total` that the student has, the first and the last among them if it
        keeps a number of them. UserError if there are no such layers."""
        if self.drop_layers is None:
            if self.keep_layers > total:
                raise UserError(
                    f"student.derive.keep_layers is {self.keep_layers}; the teacher has {total} layers"
                )
            return [round(i * (total - 1) / (self.keep_layers - 1)) for i in range(self.keep_layers)]
        kept = [layer for layer in range(total) if layer not in self.drop_layers]
        if not kept or max(self.drop_layers) >= total:
            raise UserError(
                f"student.derive.drop_layers is {self.drop_layers}; the teacher has the layers 0 to "
                f"{total - 1}"
            )
        return kept


class Student(ModelSource):
    """The small model: a source of its own, or cut from the teacher."""

    derive: Derive | None = Field(None, description="cut the student from the teacher instead")

    @model_validator(mode="before")
    @classmethod
    def _derived_has_no_source(cls, values):
        if isinstance(values, dict) and values.get("derive"):
            if extra := sorted(k for k in values if k != "derive" and values[k] is not None):
                raise ValueError(f"derive takes no other key; remove {', '.join(extra)}")
        return values

    @model_validator(mode="after")
    def _source_has_its_keys(self):
        return self if self.derive else super()._source_has_its_keys()

    @model_serializer(mode="wrap")
    def _derive_stands_alone(self, dump):
        """What can be read back: a derived student has no source, not even the default."""
        return {"derive": dump(self)["derive"]} if self.derive else dump(self)


class Prompts(DataSource):
    id: str | None = "google/IFEval"

    @model_validator(mode="after")
    def _first_row_is_ifeval_s(self):
        if self.source == GENERATED:
            raise ValueError(f"prompts of IFEval are not generated; evaluation.tasks takes {GENERATED}")
        row = next(iter(readers.first_rows(self.path)), None) if self.source == "path" else None
        if row and (lacking := [key for key in IFEVAL_KEYS if key not in row]):
            raise ValueError(
                f"{self.path}: the first row has no {', '.join(lacking)}; docs/how-to.md shows a row"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _id_is_the_hub_s(cls, values):
        if isinstance(values, dict) and values.get("source", "hub") != "hub":
            values = {"id": None, **values}
        return values

"""The configuration: one section per stage, the only source of defaults and checks.

A stage's parameters are exactly what can change its result. `stage_params` hands each job its own part
as a plain dict; the workflow turns that into one canonical JSON string, which is both what Snakemake
compares and what a stage script takes with --config.
"""

import difflib
import itertools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kdag.divergence_params import PARAMETERS, resolve
from kdag.errors import UserError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME = 100  # characters; a file's name may have 255, and further words are put to these
# Rows that every table has; a strategy cannot take their names.
BASELINES = ("teacher-untrained", "teacher", "student-untrained", "sft")

# YAML 1.1 reads 1e-4 as a string and `--config` hands every value over as one.
Number = Annotated[float, BeforeValidator(lambda v: float(v) if isinstance(v, str) else v)]
# Divergences with ln p at tokens that the student likes: without mass there they have no bound.
MODE_SEEKING = ("rkl", "symmetric-kl", "akl")
Dtype = Literal["bfloat16", "float16", "float32"]


def layer_names(value):
    """all-linear or a list of names; checked here, as a union would answer one mistake with two lines."""
    named = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if value != "all-linear" and not named:
        raise ValueError("all-linear or a list of layer names is needed")
    return value


def refuse_braces(path: str | None) -> None:
    if path and ("{" in path or "}" in path):
        raise ValueError(f"braces in a path mean wildcards to Snakemake; give it another name: {path}")


class Section(BaseModel):
    """Unknown keys are errors; numbers in text are read as numbers; booleans are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value, info):
        values = value if isinstance(value, list) else [value]
        if cls.model_fields[info.field_name].annotation is not bool:
            if any(isinstance(one, bool) for one in values):
                raise ValueError("true and false (in YAML also yes, no, on, off) have no meaning here")
        return value


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

    @model_validator(mode="after")
    def _source_has_its_keys(self):
        wanted = {"hub": {"id"}, "path": {"path"}, "package": {"package", "file"}}[self.source]
        optional = {"revision"} if self.source == "hub" else set()
        given = {k for k in ("id", "revision", "path", "package", "file") if getattr(self, k)}
        if missing := sorted(wanted - given):
            raise ValueError(f"source {self.source} needs {', '.join(missing)}")
        if extra := sorted(given - wanted - optional):
            raise ValueError(f"source {self.source} does not take {', '.join(extra)}")
        refuse_braces(self.path)
        if self.source == "path" and not Path(self.path).exists():
            raise ValueError(f"no such file or directory: {self.path}")
        return self


class DataSource(Source):
    split: str = Field("train", description="hub: the split")

    @model_validator(mode="after")
    def _path_is_a_file(self):
        if self.source == "path" and Path(self.path).is_dir():
            raise ValueError(f"{self.path} is a directory; a .json, .jsonl or .parquet file is needed")
        return self


class ModelSource(Source):
    @model_validator(mode="after")
    def _path_is_a_directory(self):
        if self.source == "path" and self.path and not Path(self.path).is_dir():
            raise ValueError(f"{self.path} is a file; a model directory is needed")
        return self


class Data(DataSource):
    """The instruction rows."""

    instruction_field: str = Field("instruction", description="the column with the instruction")
    input_field: str | None = Field(
        "input", description="the column with further input, put below the instruction; null: none"
    )
    output_field: str = Field("output", description="the column with the answer to learn")
    train_rows: int = Field(1000, gt=0, description="rows to train on: the first ones")
    heldout_rows: int = Field(100, gt=0, description="rows after those, for fidelity; never trained on")
    max_tokens: int = Field(2048, ge=16, description="longest row, prompt and answer, in tokens")
    overlong: Literal["drop", "truncate", "error"] = Field(
        "drop", description="a longer row is left out, cut at max_tokens (losing its end), or an error"
    )

    @model_validator(mode="after")
    def _columns_differ(self):
        columns = [f for f in (self.instruction_field, self.input_field, self.output_field) if f]
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"instruction_field, input_field and output_field name one column twice: {', '.join(columns)}"
            )
        return self


class Teacher(ModelSource):
    """The large model."""

    online: bool = Field(
        False, description="run the teacher beside every student instead of reading its cache"
    )


class Derive(Section):
    """A student made from the teacher's own untrained network."""

    from_: Literal["teacher"] = Field("teacher", alias="from")
    keep_layers: int = Field(gt=0, description="transformer layers kept, evenly spaced")


class Student(ModelSource):
    """The small model: a source of its own, or cut from the teacher."""

    derive: Derive | None = Field(None, description="cut the student from the teacher instead")

    @model_validator(mode="before")
    @classmethod
    def _derived_has_no_source(cls, values):
        if isinstance(values, dict) and values.get("derive"):
            if extra := sorted(k for k in values if k != "derive" and values[k] is not None):
                raise ValueError(f"derive stands alone; remove {', '.join(extra)}")
        return values

    @model_validator(mode="after")
    def _source_has_its_keys(self):
        return self if self.derive else super()._source_has_its_keys()


class Training(Section):
    """What fine-tuning and distillation share."""

    backend: Literal["auto", "transformers", "unsloth"] = Field(
        "auto", description="auto: unsloth where it is installed and a GPU is there, else transformers"
    )
    tuning: Literal["lora", "full"] = Field("lora", description="adapters, or every weight")
    load_in_4bit: bool = Field(False, description="QLoRA: frozen weights in four bits; needs bitsandbytes")
    lora_rank: int = Field(16, gt=0, le=1024)
    lora_alpha: Number = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank")
    lora_dropout: Number = Field(0.0, ge=0, lt=1)
    lora_target_modules: Annotated[Literal["all-linear"] | list[str], BeforeValidator(layer_names)] = Field(
        "all-linear", description="which linear layers get an adapter; never the head"
    )
    epochs: Number = Field(1, gt=0, description="passes over the training rows")
    batch_size: int = Field(1, gt=0, description="rows per forward pass and device")
    gradient_accumulation: int = Field(
        8, gt=0, description="forward passes per optimiser step; effective batch = product"
    )
    learning_rate: Number = Field(1e-4, gt=0, lt=1)
    warmup_ratio: Number = Field(0.05, ge=0, lt=1, description="share of the steps with rising rate")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit: its state in eight bits; needs bitsandbytes"
    )
    weight_decay: Number = Field(0.01, ge=0, lt=1)
    max_grad_norm: Number = Field(1.0, gt=0)
    dtype: Literal[Dtype, "auto"] = Field(
        "bfloat16",
        description="frozen weights and arithmetic; trained weights are float32; auto: float16 on a GPU "
        "without bfloat16",
    )
    gradient_checkpointing: bool = Field(True, description="less memory for about a third more time")

    @model_validator(mode="after")
    def _four_bits_are_frozen(self):
        if self.load_in_4bit and self.tuning == "full":
            raise ValueError("load_in_4bit: weights in four bits cannot be trained; take tuning: lora")
        return self


class TeacherTraining(Training):
    """Fine-tuning the teacher on the training rows."""

    seed: int = Field(0, ge=0, lt=2**32)


class TeacherCache(Section):
    """What the teacher thinks: its last hidden states at every answer position."""

    dtype: Dtype = Field("bfloat16", description="the teacher's weights, arithmetic and what is stored")
    batch_tokens: int = Field(8192, gt=0, description="padded tokens per forward pass")
    rows_per_shard: int = Field(512, gt=0, description="rows per file")
    shards: int = Field(
        1, gt=0, description="jobs that write it side by side, whole files each; the result is the same"
    )
    store: Literal["hidden", "hidden-int8", "topk", "logits"] = Field(
        "hidden", description="what is stored of a training row; hidden alone is exact and small"
    )
    top_k: int = Field(128, gt=0, description="topk: tokens kept per position")
    tail: Literal["bucket", "renormalised"] = Field(
        "bucket", description="topk: the other tokens share their mass evenly, or have none"
    )


class Distillation(Training):
    """Loss per answer token: (1 - w) CE + w T^2 D; with use_ce_loss false T^2 D alone."""

    epochs: Number = Field(3, gt=0, description="passes over the training rows")
    gradient_accumulation: int = Field(
        32, gt=0, description="forward passes per optimiser step; effective batch = product"
    )
    learning_rate: Number = Field(5e-4, gt=0, lt=1)
    use_ce_loss: bool = Field(True, description="false: the divergence alone")
    kl_loss_weight: Number = Field(0.5, gt=0, le=1, description="w")
    temperature: Number = Field(2.0, gt=0, le=100, description="T, of both models in the divergence")
    temperature_squared: bool = Field(True, description="scale the divergence by T^2")


class DistillationJob(Distillation):
    """What one student's training depends on, its strategy resolved."""

    divergence: Literal[tuple(PARAMETERS)]
    divergence_params: dict[str, float] = Field(default_factory=dict)
    seed: int = 0
    teacher_dtype: Dtype | None = Field(None, description="online teacher only: its arithmetic")


class Strategy(Section):
    """A divergence, its parameters, and any key of `distillation` it overrides."""

    model_config = ConfigDict(extra="allow", frozen=True)
    divergence: Literal[tuple(PARAMETERS)]

    @model_validator(mode="after")
    def _parameters_and_overrides(self):
        parameters = PARAMETERS[self.divergence]
        allowed = [*parameters, *Distillation.model_fields]
        for key in self.model_extra:
            if key not in allowed:
                raise ValueError(
                    f"`{key}` is neither a parameter of {self.divergence} nor a key of distillation"
                    f"{suggestion(key, allowed)}"
                )
        self.divergence_params()
        return self

    def divergence_params(self) -> dict[str, float]:
        """The divergence's own parameters as floats, defaults filled in."""
        given = {k: v for k, v in self.model_extra.items() if k in PARAMETERS[self.divergence]}
        for key, value in given.items():
            try:
                given[key] = float(value)
            except (TypeError, ValueError):
                given[key] = None
            if given[key] is None or isinstance(value, bool):
                raise ValueError(f"`{key}` must be a number, got {value!r}")
        return resolve(self.divergence, given)

    def overrides(self) -> dict:
        return {k: v for k, v in self.model_extra.items() if k in Distillation.model_fields}


class Prompts(DataSource):
    id: str | None = "google/IFEval"

    @model_validator(mode="before")
    @classmethod
    def _id_is_the_hub_s(cls, values):
        if isinstance(values, dict) and values.get("source", "hub") != "hub":
            values = {"id": None, **values}
        return values


class Task(Section):
    """A further task of lm-eval, whose metrics become columns of the table."""

    limit: int | None = Field(None, gt=0, description="the first n documents of each part; null: all")
    num_fewshot: int | None = Field(None, ge=0, description="worked examples; null: as the task says")
    chat_template: bool = Field(True, description="false: the task's text as it is")
    path: str | None = Field(None, description="folder with the YAML of a task that lm-eval does not have")

    @model_validator(mode="after")
    def _path_is_there(self):
        refuse_braces(self.path)
        if self.path and not Path(self.path).is_dir():
            raise ValueError(f"no such folder: {self.path}")
        return self


class Evaluation(Section):
    """IFEval, generated greedily and alike for every row of the table."""

    prompts: Prompts = Field(default_factory=Prompts)
    limit: int | None = Field(None, gt=0, description="the first n prompts, for every model; null: all")
    max_new_tokens: int = Field(1280, gt=0)
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: faster on a GPU, in an environment of its own (docs/gpu.md)"
    )
    batch_size: int = Field(64, gt=0, description="prompts per forward pass; pinned, as bf16 sees it")
    repetition_penalty: Number = Field(1.0, ge=1, le=2, description="1: none")
    dtype: Dtype = "bfloat16"
    tasks: dict[Annotated[str, Field(pattern=NAME)], Task] = Field(
        default_factory=dict, description="further tasks, by lm-eval's names, or ifbench"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_tasks(cls, values):
        """`arc_easy:` alone, and a list of names, mean the defaults."""
        tasks = values.get("tasks") if isinstance(values, dict) else None
        if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks):
            tasks = dict.fromkeys(tasks)
        if isinstance(tasks, dict):
            values = {**values, "tasks": {k: {} if v is None else v for k, v in tasks.items()}}
        return values


class Statistics(Section):
    """Which comparisons are made, declared before the results are seen."""

    family: list[Literal["untrained", "sft", "teacher", "strategies"]] = Field(
        ["untrained", "sft", "teacher", "strategies"],
        min_length=1,
        description="every trained student against these, and the strategies among each other",
    )
    alpha: Number = Field(0.05, gt=0, lt=1, description="chance of any false finding in the whole family")
    draws: int = Field(10_000, ge=1000, description="bootstrap draws")
    seed: int = Field(0, ge=0, lt=2**32)


class Gpus(Section):
    """GPUs of one job of each stage; more than one trains data-parallel, at the same effective batch."""

    sft_teacher: int = Field(1, gt=0)
    cache_teacher: int = Field(1, gt=0)
    sft_student: int = Field(1, gt=0)
    distill: int = Field(1, gt=0)
    generate: int = Field(1, gt=0)
    measure_fidelity: int = Field(1, gt=0)


class Resources(Section):
    """How the work is spread; no change here runs anything again."""

    gpus: Gpus = Field(default_factory=Gpus)
    tensorboard: bool = Field(False, description="write training curves for TensorBoard beside each model")


class Config(Section):
    """One experiment."""

    experiment: str = Field("default", pattern=NAME, description="results/<experiment>/ holds all of it")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0], min_length=1, description="every student is trained once per seed"
    )
    data: Data
    teacher: Teacher
    teacher_training: TeacherTraining = Field(default_factory=TeacherTraining)
    teacher_cache: TeacherCache = Field(default_factory=TeacherCache)
    student: Student
    distillation: Distillation = Field(default_factory=Distillation)
    strategies: dict[str, Strategy] = Field(min_length=1)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    statistics: Statistics = Field(default_factory=Statistics)
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="before")
    @classmethod
    def _sweeps(cls, values):
        if isinstance(values, dict) and isinstance(values.get("strategies"), dict):
            values = {**values, "strategies": expand_sweeps(values["strategies"])}
        return values

    @model_validator(mode="after")
    def _names_and_overrides(self):
        for name in self.strategies:
            if not re.fullmatch(NAME, name) or re.search(r"-seed\d+$", name):
                raise ValueError(
                    f"strategies: the name {name!r} may hold letters, digits, '.', '_' and '-', "
                    "starts with a letter or digit and does not end in -seed<number>"
                )
            if name in BASELINES or name.startswith("."):
                raise ValueError(f"strategies: {name!r} is the name of a baseline row")
            try:
                self.distillation_of(name)
            except ValidationError as error:
                raise ValueError(f"strategies.{name}: {'; '.join(error_lines(error))}") from error
        cut = self.teacher_cache.store == "topk" and self.teacher_cache.tail == "renormalised"
        for name, strategy in self.strategies.items():
            if cut and strategy.divergence in MODE_SEEKING:
                raise ValueError(
                    f"strategies.{name}: {strategy.divergence} asks for the teacher where the student has "
                    "mass, and teacher_cache.tail renormalised has none there; take bucket, or store: hidden"
                )
        self._passes_are_shared_out()
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each seed once, got {self.seeds}")
        if long := [name for name in (self.experiment, *self.strategies) if len(name) > LONGEST_NAME]:
            raise ValueError(f"the name {long[0][:20]}... has {len(long[0])} characters of {LONGEST_NAME}")
        return self

    def _passes_are_shared_out(self):
        """The forward passes of a step go to the GPUs of a job in equal shares."""
        gpus = self.resources.gpus
        jobs = [
            ("teacher_training", self.teacher_training, "sft_teacher"),
            ("distillation", self.distillation, "sft_student"),
            *((f"strategies.{name}", self.distillation_of(name), "distill") for name in self.strategies),
        ]
        for section, training, stage in jobs:
            passes, count = training.gradient_accumulation, getattr(gpus, stage)
            if passes % count:
                raise ValueError(
                    f"{section}.gradient_accumulation: {passes} forward passes cannot be shared out evenly "
                    f"to resources.gpus.{stage}: {count}"
                )

    def distillation_of(self, strategy: str) -> Distillation:
        return Distillation(**self.distillation.model_dump() | self.strategies[strategy].overrides())


def expand_sweeps(strategies: dict) -> dict:
    """Every list among a strategy's values becomes one strategy per combination, named by the values.

    {"s": {"divergence": "skewed-fkl", "skew_lambda": [0.1, 0.3]}} gives s-skew_lambda0.1 and
    s-skew_lambda0.3. lora_target_modules is a list by nature and not swept.
    """
    expanded = {}
    for name, strategy in strategies.items():
        swept = {}
        if isinstance(strategy, dict):
            swept = {k: v for k, v in strategy.items() if isinstance(v, list) and k != "lora_target_modules"}
            if empty := [key for key, values in swept.items() if not values]:
                raise ValueError(f"strategies.{name}: `{empty[0]}` is an empty list, so nothing would run")
        for values in itertools.product(*swept.values()):
            chosen = dict(zip(swept, values, strict=True))
            full = "-".join([str(name), *(f"{key}{value}" for key, value in chosen.items())])
            if full in expanded:
                raise ValueError(f"strategies: the name {full!r} is given twice")
            expanded[full] = {**strategy, **chosen} if swept else strategy
    return expanded


def load_config(raw: dict) -> Config:
    """Check the whole configuration. UserError has one line per mistake, all of them at once."""
    return checked(Config, raw)


def checked(section: type[Section], raw: dict) -> Section:
    """One section by itself, as a stage gets it; UserError as of `load_config`."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(error_lines(error, section))) from error


def error_lines(error: ValidationError, section: type[Section] | None = None) -> list[str]:
    """`key.path: what is wrong (got value)`, with the nearest known key for a misspelt one."""
    lines = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _fields_at(item["loc"][:-1], section or Config)
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

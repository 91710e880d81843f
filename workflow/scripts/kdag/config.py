"""The configuration: one section per stage, the only source of defaults and checks.

A stage's parameters are exactly what can change its result. `stage_params` hands each job its own part
as a plain dict; the workflow turns that into one canonical JSON string, which is both what Snakemake
compares and what a stage script takes with --config.

The sections are in config_sources.py and config_training.py, which their stages import alone: a new key of
the evaluation is no change of the code that trains.
"""

import itertools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from kdag.config_section import Dtype, Number, Section, checked, error_lines, refuse_braces
from kdag.config_sources import Data, Prompts, Student, Teacher
from kdag.config_training import Distillation, Strategy, TeacherCache, TeacherTraining

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME = 100  # characters; a file's name may have 255, and further words are put to these
# Rows that every table has; a strategy cannot take their names.
BASELINES = ("teacher-untrained", "teacher", "student-untrained", "sft")
# Divergences with ln p at tokens that the student likes: without mass there they have no bound.
MODE_SEEKING = ("rkl", "symmetric-kl", "akl")


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
    dtype: Dtype = "auto"
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
                raise ValueError(
                    f"strategies.{name}: {'; '.join(error_lines(error, Distillation))}"
                ) from error
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

"""The configuration: one section per stage, the only source of defaults and checks.

A stage's parameters are exactly what can change its result. `stage_params` hands each job its own part
as a plain dict; the workflow turns that into one canonical JSON string, which is both what Snakemake
compares and what a stage script takes with --config.

Each section has a module of its own, which its stages import and no other: a new key of the evaluation is no
change of the code that trains. load.py reads a whole configuration.
"""

import re
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from kdag.config.budget import Budget
from kdag.config.chat import Chat
from kdag.config.evaluation import NAME, Evaluation
from kdag.config.kinds import DATASET, NO_DIVERGENCE, STUDENT, TEACHER
from kdag.config.metrics import IFEVAL
from kdag.config.resources import Resources
from kdag.config.roster import RESERVED
from kdag.config.sampling import Sampling
from kdag.config.section import Section, error_lines, suggestion
from kdag.config.sources import Data, Student
from kdag.config.statistics import Statistics
from kdag.config.strategies import Strategy
from kdag.config.teacher import SERVER, Teacher
from kdag.config.teachers import BY, FIRST, FurtherTeacher
from kdag.config.training import Distillation, TeacherCache, TeacherTraining
from kdag.files import readers

LONGEST_NAME = 100  # characters; a file's name may have 255, and further words are put to these


class Config(Section):
    """One experiment."""

    experiment: str = Field("default", pattern=NAME, description="results/<experiment>/ holds all of it")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0], min_length=1, description="every student is trained once per seed"
    )
    data: Data
    chat: Chat = Field(default_factory=Chat)
    teacher: Teacher
    teachers: dict[str, FurtherTeacher] = Field(
        default_factory=dict, description="further teachers by name, which strategies may take"
    )
    teacher_training: TeacherTraining = Field(default_factory=TeacherTraining)
    teacher_cache: TeacherCache = Field(default_factory=TeacherCache)
    student: Student
    distillation: Distillation = Field(default_factory=Distillation)
    sampling: Sampling = Field(default_factory=Sampling)
    budget: Budget = Field(default_factory=Budget)
    strategies: dict[str, Strategy] = Field(min_length=1)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    statistics: Statistics = Field(default_factory=Statistics)
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="after")
    def _names_and_overrides(self):
        for name in self.strategies:
            if not re.fullmatch(NAME, name) or re.search(r"-seed\d+$", name):
                raise ValueError(
                    f"strategies: the name {name!r} may hold letters, digits, '.', '_' and '-', "
                    "starts with a letter or digit and does not end in -seed<number>"
                )
            if name in RESERVED or name.startswith("."):
                raise ValueError(f"strategies: {name!r} is the name of a baseline row")
            try:
                self.distillation_of(name)
                self.sampling_of(name)
            except ValidationError as error:
                raise ValueError(
                    f"strategies.{name}: {'; '.join(error_lines(error, Distillation))}"
                ) from error
        primary = self.statistics.primary
        if not self.evaluation.tasks and primary not in IFEVAL:
            hint = suggestion(primary, IFEVAL)
            raise ValueError(f"statistics.primary: no metric is called {primary!r}{hint}")
        self._teachers_are_there()
        self._published_log_probs_are_read()
        self._a_teacher_is_compared_one_way()
        self._passes_are_shared_out()
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each seed once, got {self.seeds}")
        if long := [name for name in (self.experiment, *self.strategies) if len(name) > LONGEST_NAME]:
            raise ValueError(f"the name {long[0][:20]}... has {len(long[0])} characters of {LONGEST_NAME}")
        return self

    @model_validator(mode="after")
    def _a_server_has_no_weights(self):
        if self.teacher.source != SERVER:
            return self
        if self.teachers:
            raise ValueError("teachers: next to a teacher behind a server there can be no other")
        if self.student.derive:
            raise ValueError("student.derive: a teacher behind a server has no layers here to cut from")
        for name, chosen in self.strategies.items():
            if STUDENT in chosen.answers or chosen.online:
                raise ValueError(
                    f"strategies.{name}: a live teacher is needed, and a server is asked once, before the "
                    "training; take answers: teacher or dataset"
                )
            if chosen.divergence != NO_DIVERGENCE and not self.teacher.logprobs:
                raise ValueError(
                    f"strategies.{name}.divergence: {chosen.divergence} needs the teacher's "
                    "log-probabilities: take teacher.logprobs: true (api vllm or sglang), or divergence: none"
                )
        if self.teacher.logprobs and self.teacher_cache.store != "topk":
            raise ValueError(
                f"teacher_cache.store: a server gives log-probabilities and no states; take topk "
                f"(got {self.teacher_cache.store!r})"
            )
        if self.chat.template == "teacher":
            raise ValueError(
                "chat.template: teacher: a server does not say what its template is; it is asked in the "
                "student's, or take a file"
            )
        if self.teacher_cache.shards > 1:
            raise ValueError("teacher_cache.shards: one job asks a server; teacher.parallel says how much")
        if self.teacher.api == "openai" and self.evaluation.repetition_penalty != 1:
            raise ValueError("evaluation.repetition_penalty: teacher.api openai knows none; take 1")
        return self

    def _teachers_are_there(self):
        for name, source in self.teachers.items():
            taken = name == FIRST or name.startswith("untrained") or re.search(r"-seed\d+$", name)
            if not re.fullmatch(NAME, name) or taken or len(name) > LONGEST_NAME:
                raise ValueError(
                    f"teachers: the name {name!r} may hold letters, digits, '.', '_' and '-', starts with a "
                    f"letter or digit, is not {FIRST!r}, and neither begins with untrained nor ends in "
                    "-seed<number>"
                )
            if unknown := [key for key in source.training if key not in TeacherTraining.model_fields]:
                hint = suggestion(str(unknown[0]), TeacherTraining.model_fields)
                raise ValueError(f"teachers.{name}.training.{unknown[0]}: no such key{hint}")
            try:
                self.teacher_training_of(name)
            except ValidationError as error:
                lines = "; ".join(error_lines(error, TeacherTraining))
                raise ValueError(f"teachers.{name}.training: {lines}") from error
        for strategy, chosen in self.strategies.items():
            if BY in (chosen.teachers or {}) and self.online(strategy):
                raise ValueError(
                    f"strategies.{strategy}.teachers: by a column they are read from caches; take online: "
                    "false there, and answers of the data set"
                )
            column = (chosen.teachers or {}).get(BY)
            rows = readers.first_rows(self.data.path) if column and self.data.source == "path" else []
            if rows and not any(column in row for row in rows):
                raise ValueError(f"strategies.{strategy}.teachers: the data has no column {column!r}")
            named = (chosen.teachers or {}).get("weights", {})
            if unknown := [name for name in named if name not in (FIRST, *self.teachers)]:
                hint = suggestion(unknown[0], (FIRST, *self.teachers))
                raise ValueError(f"strategies.{strategy}.teachers: no teacher is called {unknown[0]!r}{hint}")

    def _published_log_probs_are_read(self):
        published = self.published()
        for strategy, chosen in self.strategies.items():
            if not (named := [name for name in self.teachers_of(strategy) if name in published]):
                continue
            if chosen.alignment:
                raise ValueError(
                    f"strategies.{strategy}.alignment: of {named[0]!r} only log-probs are known, of the "
                    "student's own tokens; leave it out, or take a teacher that is a model"
                )
            if self.online(strategy):
                raise ValueError(
                    f"strategies.{strategy}: of {named[0]!r} only log-probs of the data set's answers are "
                    "known; it cannot run next to the student: take answers: dataset and online: false"
                )

    def _a_teacher_is_compared_one_way(self):
        aligned = self.aligned()
        for strategy, chosen in self.strategies.items():
            asked = [] if chosen.alignment else self.teachers_of(strategy)
            if both := [name for name in asked if name in aligned]:
                others = (f"strategies.{name}" for name, each in self.strategies.items() if each.alignment)
                raise ValueError(
                    f"strategies.{strategy}: {both[0]!r} has another tokenizer, as "
                    f"{next(others, 'teacher.tokenizer')} says, and this needs one tokenizer; take "
                    f"{'' if TEACHER in chosen.answers else 'alignment here too, '}method: seqkd, or another "
                    "teacher (teachers)"
                )
        if not aligned:
            return
        if self.teacher.source == SERVER:
            keys = (
                f"strategies.{name}.alignment" for name in self.strategies if self.strategies[name].alignment
            )
            raise ValueError(
                f"{next(keys, 'teacher.tokenizer')}: a teacher behind a server has the student's tokenizer; "
                "leave it out"
            )
        if self.student.derive and FIRST in aligned:
            raise ValueError("student.derive: a student that is cut from the teacher has its tokenizer")
        if self.teacher_cache.store != "hidden":
            raise ValueError(
                f"teacher_cache.store: alignment needs hidden (got {self.teacher_cache.store!r})"
            )
        if self.chat.template == "teacher" and FIRST in aligned:
            raise ValueError(
                "chat.template: teacher: with another tokenizer it has a template of its own; take student, "
                "a file or null"
            )

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

    def stored(self, strategy: str) -> bool:
        """Does this strategy read what `teacher_cache` stores, alone or among others?"""
        asked = [] if self.online(strategy) else self.teachers_of(strategy)
        return bool(set(asked) - set(self.published()))

    def online(self, strategy: str) -> bool:
        """Does the teacher run next to this strategy's students, instead of its cache being read?"""
        chosen = self.strategies[strategy]
        if chosen.divergence == NO_DIVERGENCE or chosen.alignment:
            return False
        own = STUDENT in chosen.answers or chosen.online
        return self.teacher.online if own is None else own

    def distillation_of(self, strategy: str) -> Distillation:
        return Distillation(**self.distillation.model_dump() | self.strategies[strategy].overrides())

    def teacher_training_of(self, teacher: str) -> TeacherTraining:
        """Of the first teacher, or of a further one."""
        own = {} if teacher == FIRST else self.teachers[teacher].training
        return TeacherTraining(**self.teacher_training.model_dump() | own)

    def teachers_of(self, strategy: str) -> list[str]:
        """The names of the teachers that a strategy asks, in the order that its training is given."""
        chosen = self.strategies[strategy]
        if chosen.divergence == NO_DIVERGENCE:
            return []
        given = chosen.teachers or {"weights": {FIRST: 1.0}}
        if BY in given:
            return [FIRST, *(name for name in self.further_models() if name not in self.aligned())]
        return list(given["weights"])

    def further_models(self) -> list[str]:
        """The further teachers that are models, fine-tuned and evaluated here."""
        return [name for name, source in self.teachers.items() if not source.logprobs]

    def published(self) -> list[str]:
        """The further teachers of which only log-probs are known, since others published them."""
        return [name for name, source in self.teachers.items() if source.logprobs]

    def aligned(self) -> list[str]:
        """The teachers of another tokenizer: those whose answers are compared by spans, or only read."""
        named = [self.teachers_of(name)[0] for name, chosen in self.strategies.items() if chosen.alignment]
        named += [FIRST] if self.teacher.tokenizer == "own" else []
        return [name for name in (FIRST, *self.teachers) if name in named]

    def several_teachers(self, strategy: str) -> dict | None:
        """What a training is told of them: {weights, mixture} or {by, names}; None if there is one."""
        names, chosen = self.teachers_of(strategy), self.strategies[strategy]
        if chosen.teachers and BY in chosen.teachers:
            return {BY: chosen.teachers[BY], "names": names}
        if len(names) < 2:
            return None
        return {"weights": [chosen.teachers["weights"][name] for name in names], "mixture": chosen.mixture}

    def sampling_of(self, strategy: str) -> Sampling:
        return Sampling(**self.sampling.model_dump() | self.strategies[strategy].sampling)

    def budget_of(self, strategy: str) -> dict | None:
        """What a strategy's students may take: see a DistillationJob. None: all of their epochs, which is as
        much as sft takes if answers, epochs and rows of a step are the same."""
        equal, sft, own = self.budget.equal, self.distillation, self.distillation_of(strategy)
        rows = sft.batch_size * sft.gradient_accumulation
        same = own.epochs == sft.epochs and own.batch_size * own.gradient_accumulation == rows
        same = same and (equal == "steps" or self.strategies[strategy].answers == {DATASET: 1})
        if equal is None or (same and equal != "flops"):
            return None
        return {"equal": equal, "epochs": sft.epochs, "rows_per_step": rows}

    def answered(self) -> list[str]:
        """The strategies that learn from the teacher's answers."""
        return [name for name, chosen in self.strategies.items() if TEACHER in chosen.answers]

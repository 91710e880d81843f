"""The section `evaluation`: IFEval, how answers are made, and further tasks."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from kdag.config.section import Dtype, Number, Section, path_is, refuse_braces
from kdag.config.sources import Prompts

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
GENERATED = ("generator", "dataset", "items", "seed", "config")  # the keys of a task that is generated
MOST_FILES = 1000  # in the folder of a task; each is an input of its jobs


def no_file(task: str) -> str:
    """A task's folder lies next to the files of IFEval's answers and scores."""
    if task.endswith((".json", ".jsonl")):
        raise ValueError("a task's name does not end like a file's")
    return task


class Task(Section):
    """A further task of lm-eval, whose metrics become columns of the table."""

    limit: int | None = Field(None, gt=0, description="the first n documents of each part; null: all")
    num_fewshot: int | None = Field(None, ge=0, description="worked examples; null: as the task says")
    chat_template: bool = Field(True, description="false: the task's text as it is")
    path: str | None = Field(None, description="folder with the YAML of a task that lm-eval does not have")
    generator: Literal["reasoning-gym"] | None = Field(
        None, description="what makes the questions, each answer of which is right or wrong"
    )
    dataset: str | None = Field(None, description="the generator's name for them; null: the task's name")
    items: int = Field(500, gt=0, description="generator: how many questions")
    seed: int = Field(1, ge=0, description="generator: of the questions; none is asked that is trained on")
    config: dict = Field(default_factory=dict, description="generator: its own settings")

    @model_validator(mode="after")
    def _keys_of_a_generator(self):
        own = [
            key
            for key in GENERATED
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True)
        ]
        if own and not self.generator:
            raise ValueError(f"{own[0]} is for tasks with a generator")
        if self.generator and (self.path or self.num_fewshot or self.limit):
            raise ValueError("a generator takes neither path nor num_fewshot nor limit; items says how many")
        return self

    def fetched(self) -> dict:
        """What decides which documents there are; of a generator only if it has one."""
        return self.model_dump(exclude=set() if self.generator else set(GENERATED))

    @model_validator(mode="after")
    def _path_is_there(self):
        refuse_braces(self.path)
        if self.path and not path_is("is_dir", self.path):
            raise ValueError(f"no such folder: {self.path}")
        if self.path and len(list(itertools.islice(Path(self.path).rglob("*"), MOST_FILES + 1))) > MOST_FILES:
            raise ValueError(f"{self.path} holds more than {MOST_FILES} files; name the task's own folder")
        return self


class Evaluation(Section):
    """IFEval, generated greedily and alike for every row of the table."""

    prompts: Prompts = Field(default_factory=Prompts)
    limit: int | None = Field(None, gt=0, description="the first n prompts, for every model; null: all")
    max_new_tokens: int = Field(1280, gt=0)
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: faster on a GPU, in an environment of its own (docs/gpu.md)"
    )
    batch_size: int = Field(256, gt=0, description="prompts per forward pass; pinned, as bf16 sees it")
    repetition_penalty: Number = Field(1.0, ge=1, le=2, description="1: none")
    dtype: Dtype = "auto"
    tasks: dict[Annotated[str, Field(pattern=NAME), AfterValidator(no_file)], Task] = Field(
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

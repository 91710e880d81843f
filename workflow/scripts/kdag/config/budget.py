"""The section `budget`: what a student may take."""

from typing import Literal

from pydantic import Field

from kdag.config.section import Section


class Budget(Section):
    """Whether every student trains on as much as `sft`, the student without a teacher, does in its epochs."""

    equal: Literal["tokens", "steps", "flops"] | None = Field(
        None,
        description="what every student takes as much of as sft does, by stopping earlier or going on: "
        "answer tokens learned, optimiser steps, or FLOPs, with the teacher's and those of sampling; null: "
        "all have their epochs",
    )

"""The section `sampling`: how the teacher, and the students while they train, answer the training prompts."""

from typing import Annotated, Literal

from pydantic import Field

from kdag.config.section import Number, Section


class Sampling(Section):
    """Settings of sampled answers; a strategy may override each."""

    temperature: Number = Field(1.0, ge=0, le=100, description="0: greedy")
    top_p: Number = Field(1.0, gt=0, le=1, description="only the likeliest tokens that have this mass")
    max_new_tokens: int = Field(256, gt=0, description="tokens an answer may have")
    refresh: Annotated[int, Field(gt=0)] | Literal["epoch"] = Field(
        1, description="a student answers the prompts of so many optimiser steps at once, or of an epoch"
    )
    replay: int = Field(
        0,
        ge=0,
        description="answers of earlier steps that a student keeps, and learns from again in the place of "
        "new ones, the more often the further it is: DistiLLM's buffer; 0: all are new",
    )
    batch_size: int = Field(64, gt=0, description="prompts answered at a time; pinned, as bf16 sees it")

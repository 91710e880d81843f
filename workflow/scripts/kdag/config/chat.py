"""The section that says how a conversation is rendered, for every stage alike."""

import datetime
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from kdag.config.section import Section, expanded


class Chat(Section):
    """How every conversation is rendered: in training, sampling and evaluation alike."""

    template: str | None = Field(
        None,
        description="teacher, student, a file, or the name of one of a model's several templates; null: the "
        "models' own, which must agree",
    )
    kwargs: dict[str, JsonValue] = Field(
        {}, description="further arguments of the template, such as enable_thinking"
    )
    system: str | None = Field(None, description="the system prompt of a conversation that has none")
    date: str = Field("2024-07-26", description="today, to a template that prints the date: YYYY-MM-DD")
    thinking: Literal["keep", "strip", "off"] | None = Field(
        None,
        description="reasoning in the rows: keep (learned), strip (left out), off (left out, and the "
        "template's own reasoning switched off); null: off, and rows with reasoning are an error",
    )

    @field_validator("template", mode="after")
    @classmethod
    def _home_is_known(cls, value):
        return expanded(value)

    @field_validator("thinking", mode="before")
    @classmethod
    def _off_is_a_word(cls, value):
        return "off" if value is False else value  # which YAML takes for false

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, value):
        text = value.isoformat() if isinstance(value, datetime.date) else value
        try:
            return datetime.date.fromisoformat(text).isoformat()
        except (TypeError, ValueError) as error:
            raise ValueError(f"a day is needed, as in 2024-07-26, got {value!r}") from error

    @field_validator("kwargs")
    @classmethod
    def _are_the_template_s(cls, value):
        taken = {"messages", "conversation", "tools", "add_generation_prompt", "tokenize", "chat_template"}
        if own := sorted(taken & set(value)):
            raise ValueError(f"{', '.join(own)}: set by kdag itself")
        return value

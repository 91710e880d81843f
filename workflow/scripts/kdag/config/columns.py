"""Which columns of a data set hold its conversations: for the configuration and the stage that reads rows."""

from typing import Literal

from pydantic import Field, model_validator

from kdag.config.section import Section

# Columns whose text belongs to a conversation, by the key that names them: left out, it would vanish.
CARRIERS = {
    "input_field": ("input", "context", "inputs", "passage", "knowledge", "document"),
    "system_field": ("system", "system_prompt", "system_message"),
    "history_field": ("history", "chat_history"),
    "tools_field": ("tools", "functions"),
    "reasoning_field": ("reasoning_content", "reasoning", "thinking", "thought", "chain_of_thought"),
}
TURNS = ("messages", "conversations", "conversation")  # columns that are lists of turns, by their usual names
OF_TURNS = ("system_field", "tools_field")  # what a list of turns may have next to it


class Columns(Section):
    """The columns of the rows; whatever no key names is left alone."""

    format: Literal["auto", "instruction", "messages", "conversations"] = Field(
        "auto",
        description="what the rows are: instruction (columns), messages (OpenAI's), conversations "
        "(ShareGPT's); auto: told by their columns",
    )
    instruction_field: str = Field("instruction", description="the column with the instruction")
    input_field: str | None = Field(
        "input", description="the column with further input, put below the instruction; null: none"
    )
    output_field: str = Field("output", description="the column with the answer to learn")
    system_field: str | None = Field("system", description="the column with a system prompt; null: none")
    history_field: str | None = Field(
        "history", description="the column with earlier turns, [[question, answer], ...]; null: none"
    )
    messages_field: str | None = Field(
        None, description="the column with a list of turns; null: messages or conversations, if there is one"
    )
    tools_field: str | None = Field(
        "tools", description="the column with the tools that may be called, or JSON of it; null: none"
    )
    reasoning_field: str | None = Field(
        "reasoning_content", description="the column with the reasoning before an answer; null: none"
    )

    @model_validator(mode="after")
    def _columns_differ(self):
        named = [getattr(self, key) for key in type(self).model_fields if key.endswith("_field")]
        columns = [column for column in named if column]
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise ValueError(f"two of the keys that name a column name the same: {', '.join(twice)}")
        return self

    def of_turns(self, columns) -> bool:
        """Are rows with these columns lists of turns?"""
        if self.format != "auto" or self.messages_field:
            return self.format != "instruction"
        both = self.instruction_field in columns and self.output_field in columns
        return not both and any(name in columns for name in TURNS)

    def problems(self, columns) -> list[str]:
        """What is wrong with rows that have these columns, a line each: one that is missing, one left out."""
        known, columns = ", ".join(map(str, columns)) or "none", set(columns)
        if self.of_turns(columns):
            wanted = {"messages_field": self.messages_field} if self.messages_field else {}
            optional = OF_TURNS
        else:
            wanted = {key: getattr(self, key) for key in ("instruction_field", "output_field")}
            optional = tuple(CARRIERS)
        for key in optional:
            if (name := getattr(self, key)) and name != Columns.model_fields[key].default:
                wanted[key] = name
        lines = [
            f"{key}: no row has a column {name!r}; there are {known}"
            for key, name in wanted.items()
            if name not in columns
        ]
        named = {getattr(self, key) for key in Columns.model_fields if key.endswith("_field")}
        for key in optional:
            left = [name for name in CARRIERS[key] if name in columns - named]
            if (
                left
                and getattr(self, key) is not None
                and getattr(self, key) not in columns
                and key not in wanted
            ):
                lines.append(
                    f"{key}: the column {left[0]!r} would be left out; name it ({key}: {left[0]}), or say "
                    f"{key}: null to leave it out"
                )
        return lines

"""A row of any common format as a conversation: messages as OpenAI's API has them, and tools.

The formats: `instruction` (columns, with system and history as LLaMA-Factory has them), `messages`
(OpenAI's), `conversations` (ShareGPT's). Below this module there are conversations alone.

    message   {"role": system, user, assistant or tool, "content": text}; an assistant's may have
              "reasoning_content" (text) and
              "tool_calls" ([{"type": "function", "function": {"name", "arguments"}}])
"""

import json
import re
from dataclasses import dataclass, field

from kdag.config.columns import TURNS, Columns

# The names that people's files give to roles.
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "chatbot", "bot", "bing", "chatgpt", "bard", "function_call"),
    "tool": ("tool", "function", "observation", "function_response", "ipython"),
}
ROLE = {name: role for role, names in ROLES.items() for name in names}
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.S)


@dataclass
class Conversation:
    messages: list[dict]
    tools: list | None = None
    learned: list[int] = field(default_factory=list)  # the turns that are the model's, by number

    @property
    def prompt(self) -> str:
        """The text of all that was said to the model before its last turn."""
        before = self.messages[: self.learned[-1]]
        return "\n\n".join(m["content"] for m in before if m["role"] in ("user", "tool"))

    @property
    def response(self) -> str:
        return "\n\n".join(self.messages[turn]["content"] for turn in self.learned)


def recognise(columns: Columns, row: dict) -> str:
    """The format of a row by what it holds: instruction, messages or conversations."""
    if columns.format != "auto":
        return columns.format
    if not columns.of_turns(row):
        return "instruction"
    names = (columns.messages_field,) if columns.messages_field else TURNS
    return "conversations" if any(turns_of(row.get(name), "from") for name in names) else "messages"


def turns_of(value, key: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def conversation(columns: Columns, row: dict, learn: str = "all") -> Conversation:
    """The conversation of a row; ValueError says what is wrong with it. learn: all or last."""
    kind = recognise(columns, row)
    messages = from_columns(row, columns) if kind == "instruction" else from_turns(row, kind, columns)
    tools = parsed_tools(optional(row, columns.tools_field, (str, list)), columns.tools_field)
    check_order(messages)
    turns = [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.pop("weight", 1) != 0
    ]
    if not turns:
        raise ValueError("all its answers have weight 0")
    return Conversation(messages, tools, turns if learn == "all" else turns[-1:])


def from_columns(row: dict, columns: Columns) -> list[dict]:
    texts = {}
    for name in (columns.instruction_field, columns.output_field):
        if name not in row:
            raise ValueError(f"field {name!r} is missing; the row has {', '.join(map(str, row)) or 'none'}")
    for name in filter(
        None, (columns.instruction_field, columns.input_field, columns.output_field, columns.system_field)
    ):
        texts[name] = text(row.get(name), name, empty=name in (columns.input_field, columns.system_field))
    for name in (columns.instruction_field, columns.output_field):
        if not texts[name].strip():
            raise ValueError(f"field {name!r} is empty")
    further = texts.get(columns.input_field, "").strip()
    user = texts[columns.instruction_field] + (f"\n\n{further}" if further else "")
    messages = history(optional(row, columns.history_field, list), columns.history_field)
    thought = (optional(row, columns.reasoning_field, str) or "").strip()
    further = {"reasoning_content": thought} if thought else {}
    messages += [{"role": "user", "content": user}, answer(texts[columns.output_field], **further)]
    system = texts.get(columns.system_field, "")
    return ([{"role": "system", "content": system}] if system.strip() else []) + messages


def text(value, name: str, *, empty: bool) -> str:
    """The text of a column; `empty`: one that may have none."""
    if empty and (value is None or value != value):  # NaN is what a table has where nothing stands
        return ""
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} must be text, got {type(value).__name__}: {value!r:.60}")
    return value


def optional(row: dict, name: str | None, kinds):
    """The value of a column that a row may lack; None if there is none."""
    value = row.get(name) if name else None
    if value is None or value != value or value in ("", []):
        return None
    if not isinstance(value, kinds):
        raise ValueError(f"field {name!r} cannot be a {type(value).__name__}: {value!r:.60}")
    return value


def history(turns, name: str) -> list[dict]:
    """Earlier turns: [[what was asked, what was answered], ...]."""
    messages = []
    for turn in turns or []:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(each, str) for each in turn):
            raise ValueError(f"field {name!r} must be a list of [question, answer], got {turn!r:.60}")
        messages += [{"role": "user", "content": turn[0]}, answer(turn[1])]
    return messages


def answer(content: str, **further) -> dict:
    """An assistant's message; a block of reasoning in its text becomes its reasoning."""
    message = {"role": "assistant", "content": content, **further}
    if thought := THOUGHT.match(content):
        message["content"], inside = content[thought.end() :], thought[1].strip()
        if inside and message.setdefault("reasoning_content", inside) != inside:
            raise ValueError("it has two reasonings for one answer, in the answer and next to it")
    if "</think>" in message["content"]:  # which templates take for the end of a reasoning
        raise ValueError("its answer has a </think> that is the end of no <think> before it")
    return message


def from_turns(row: dict, kind: str, columns: Columns) -> list[dict]:
    names = (columns.messages_field,) if columns.messages_field else TURNS
    name = next((name for name in names if row.get(name) is not None), None)
    turns = row.get(name) if name else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"field {name or names[0]!r} must be a list of turns, got {turns!r:.60}")
    keys = ("from", "value") if "from" in turns[0] else ("role", "content")
    messages = [message(number, turn, *keys) for number, turn in enumerate(turns)]
    system = optional(row, columns.system_field, str)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def message(number: int, turn: dict, who: str, what: str) -> dict:
    name = turn.get(who)
    if name not in ROLE:
        raise ValueError(f"turn {number}: {who} is {name!r:.40}; known are {', '.join(ROLE)}")
    role, content = ROLE[name], flat(turn.get(what), number)
    if name == "function_call":
        calls = loads(content, number)
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": role, "content": "", "tool_calls": [called(call, number) for call in calls]}
    if role != "assistant":
        named = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
        return {"role": role, "content": content, **(named if role == "tool" else {})}
    further = {"weight": turn["weight"]} if isinstance(turn.get("weight"), int | float) else {}
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(turn.get(key), str) and turn[key].strip():
            further["reasoning_content"] = turn[key].strip()
    if turn.get("tool_calls"):
        calls = turn["tool_calls"]
        calls = loads(calls, number) if isinstance(calls, str) else calls
        if not isinstance(calls, list):
            raise ValueError(f"turn {number}: tool_calls must be a list, got {calls!r:.60}")
        further["tool_calls"] = [called(call, number) for call in calls]
    elif isinstance(turn.get("function_call"), dict):  # as OpenAI's API had it first
        further["tool_calls"] = [called(turn["function_call"], number)]
    return answer(content, **further)


def flat(content, number: int) -> str:
    """The text of a message; of a list of parts, their texts."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        kinds = {part.get("type", "text") for part in content if isinstance(part, dict)} - {"text"}
        if kinds or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"turn {number}: only text can be learned, not {', '.join(map(str, kinds)) or parts}"
            )
        return "".join(parts)
    if not isinstance(content, str):
        raise ValueError(f"turn {number}: its text is a {type(content).__name__}: {content!r:.60}")
    return content


def called(call, number: int) -> dict:
    """A tool call with its arguments as an object, which is what templates write as JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"turn {number}: a tool call has no function with a name: {call!r:.60}")
    arguments = function.get("arguments", function.get("parameters")) or {}
    arguments = loads(arguments, number) if isinstance(arguments, str) else arguments
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def loads(content: str, number: int):
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"turn {number}: a tool call is not JSON: {error}: {content!r:.60}") from error


def parsed_tools(tools, name: str | None) -> list | None:
    """The tools that a conversation may call; text is JSON."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"field {name!r} is not JSON: {error}") from error
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"field {name!r} must be a list of tools, got {tools!r:.60}")
    return tools or None


def check_order(messages: list[dict]) -> None:
    """Something is asked, and answered last; nothing is empty that must not be."""
    for number, turn in enumerate(messages):
        if turn["role"] == "system" and number:
            raise ValueError(f"turn {number} is a system prompt; only the first turn can be one")
        if turn["role"] != "tool" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise ValueError(f"turn {number} ({turn['role']}) is empty")
    roles = [turn["role"] for turn in messages if turn["role"] != "system"]
    if not roles or roles[0] != "user":
        raise ValueError(f"its first turn is {roles[0] if roles else 'none'}; a user's is needed")
    if "assistant" not in roles:
        raise ValueError("it has no assistant turn to learn")
    while messages[-1]["role"] != "assistant":  # what nobody answered
        messages.pop()

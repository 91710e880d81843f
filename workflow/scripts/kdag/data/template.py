"""One chat for all: how a conversation is rendered, and which of its tokens are the model's.

A prompt is what a model is given when it answers, to the character; an answer is what it should say then,
up to the token that ends it. The two are tokenised apart, as they are when a model answers. What a template
adds to an answer by itself (a closed block of reasoning) is context, and never learned.
"""

import contextlib
import datetime
import functools
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from kdag.data.formats import Conversation
from kdag.files import apart
from kdag.files.hashes import sha256_json, sha256_text
from kdag.files.reading import read_json, rebuild
from kdag.job.errors import UserError

# A template is a program of the model's author: so long, and so much memory, for a few conversations.
SECONDS, MEMORY = 30, 2 * 2**30
TRIED = 20  # of the rows, before all others
LONGEST = 100  # times as long as what was to be rendered, and 100,000 characters, a rendered text may be

OPEN, CLOSE = "<think>", "</think>"
EMPTY_BLOCK = re.compile(r"\s*<think>\s*</think>\s*")
OPENED = re.compile(r"<think>\s*$")
BLOCK = re.compile(r"<think>\s*(</think>\s*)?$")  # at the end of a text, empty or only begun
# What templates call the switch of their reasoning.
OFF = {"enable_thinking": False, "thinking": False}
WORD = re.compile(r"[A-Za-z0-9]+")
SENTINEL = "\ue0f0answer\ue0f0"  # stands for an answer, to see where the template puts it
MARK = "\ue0f1"  # inside a special token that stands in the text of the data


class RefusedError(UserError):
    """The template did not render a conversation."""


@dataclass(frozen=True)
class Chat:
    """How every stage of an experiment renders a conversation, and what ends an answer."""

    template: str
    variables: dict = field(default_factory=dict)  # special tokens that the template may name
    kwargs: dict = field(default_factory=dict)  # further arguments of the template
    system: str | None = None  # the system prompt of a conversation that has none
    date: str = "2024-07-26"  # today, to a template that asks
    thinking: str | None = None  # keep, strip or off; None: off, and no row may have reasoning
    end_ids: tuple[int, ...] = ()

    def hash(self) -> str:
        return sha256_json(asdict(self))

    def recorded(self) -> dict:
        """What was chosen, for the evidence; the template itself as its hash."""
        return {
            "template_sha256": sha256_text(self.template),
            **{key: getattr(self, key) for key in ("kwargs", "system", "date", "thinking")},
        }

    def arguments(self) -> dict:
        today = datetime.date.fromisoformat(self.date)
        switch = OFF if self.thinking in (None, "off") else {}
        return {
            **self.variables,
            "strftime_now": today.strftime,
            **switch,
            **self.kwargs,
            "chat_template": self.template,
        }


def read_chat(path: Path) -> Chat:
    """What settle_chat.py wrote."""
    found = read_json(path)
    if not isinstance(found, dict) or set(found) != {each.name for each in fields(Chat)}:
        raise UserError(f"{path} is not what settle_chat.py writes. {rebuild(path)}")
    return Chat(**found | {"end_ids": tuple(found["end_ids"])})


def apply(tokenizer, messages: list[dict], **options) -> str:
    """What the template makes of a conversation; RefusedError, one line, whatever it stumbles over."""
    try:
        made = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except MemoryError:  # in a child with bounds; nobody else may go on from it
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"the chat template cannot render a row: {type(error).__name__}: {reason}"
        ) from error
    content = sum(len(str(turn)) for turn in [*messages, *(options.get("tools") or [])])
    if len(made) > 100_000 + LONGEST * content:
        raise RefusedError(f"the chat template makes {len(made)} characters of {content} characters")
    return made


def render(tokenizer, chat: Chat, messages: list[dict], tools=None, *, prompt: bool, **options) -> str:
    """A conversation as text; `prompt`: up to where the model is to answer, as the template says it."""
    if chat.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.system}, *messages]
    options |= {"tools": tools, "add_generation_prompt": prompt, **chat.arguments()}
    return apply(tokenizer, messages, **options)


def before_answer(tokenizer, chat: Chat, messages: list[dict], tools) -> str | None:
    """What the template writes before the text of an answer to `messages`; None if it writes no such text."""
    answer = {"role": "assistant", "content": SENTINEL}
    rendered = render(tokenizer, chat, [*messages, answer], tools, prompt=False)
    before, found, _ = rendered.partition(SENTINEL)
    return before if found else None


def prompt_text(tokenizer, chat: Chat, messages: list[dict], tools=None, before: str | None = None) -> str:
    """All that a model is given before it answers, in training, sampling and evaluation.

    before: what stands before the answer where there is one, if it is known.
    """
    prompt = render(tokenizer, chat, messages, tools, prompt=True)
    if chat.thinking == "keep":
        return prompt
    if chat.thinking == "strip":
        return without_block(prompt)
    if OPENED.search(prompt):  # DeepSeek-R1's and others begin to think
        return f"{prompt}\n{CLOSE}\n\n"
    before = before or before_answer(tokenizer, chat, messages, tools) or prompt
    # Qwen3's puts a closed block before the last answer, which its prompt has only if reasoning is off.
    return before if before != prompt and without_block(before) == prompt else prompt


def without_block(text: str) -> str:
    """A text without the block of reasoning that it ends with, empty or only begun."""
    return BLOCK.sub("", text)


@dataclass(frozen=True)
class Turn:
    """A turn of the model's: what it is given, what is put between by the template, what it should say."""

    prompt: str
    given: str
    answer: str


def turn(tokenizer, chat: Chat, messages: list[dict], tools=None) -> Turn:
    """The last of `messages` as the model should say it; special tokens of its text are marked."""
    *context, said = messages
    thought = said.get("reasoning_content")
    said = without_reasoning(said)
    before = before_answer(tokenizer, chat, context, tools)
    prompt = prompt_text(tokenizer, chat, context, tools, before)
    whole = render(tokenizer, chat, [*context, said], tools, prompt=False)
    if before is None or not whole.startswith(before):
        before = _common(whole, prompt)
    check_nothing_is_lost(whole, [*context, said], tools)
    rest, stem, start = whole[len(before) :], without_block(before), without_block(prompt)
    given = before[len(stem) :]
    if block := EMPTY_BLOCK.match(rest):  # the call of a tool has no text that could stand for it
        given, rest = block[0], rest[block.end() :]
    opened = OPENED.search(prompt) is not None
    further = before[len(prompt) :] if before.startswith(prompt) else None
    if further is not None and not BLOCK.search(further) and not further.startswith(CLOSE, 1):
        added = further
    else:
        added = stem[len(start) :] if stem.startswith(start) else ""
    if chat.thinking != "keep":
        given = ""
    elif thought and prompt.rstrip().endswith(CLOSE):
        raise RefusedError(
            "the chat template ends the reasoning in its prompt; chat.kwargs can say otherwise"
        )
    elif thought:
        begun = "" if opened else f"{OPEN}\n"
        given, added = "", f"{begun}{thought}\n{CLOSE}\n\n"
    elif opened:
        given = f"\n{CLOSE}\n\n"
    return Turn(prompt, given, _until_its_end(tokenizer, chat, added + rest, said))


def check_nothing_is_lost(whole: str, messages: list[dict], tools) -> None:
    """Refuse a template that writes a conversation without some of it: tools that it does not know, mostly.

    Of each text its longest word must be there, since templates trim texts and write some of them as JSON.
    """
    for number, message in enumerate(messages):
        words = WORD.findall(message["content"] or "")
        if words and max(words, key=len) not in whole:
            raise RefusedError(
                f"the chat template leaves out the text of turn {number} ({message['role']}); chat.template "
                "names another one"
            )
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or []]
    functions = [tool.get("function", tool) for tool in tools or []]
    for name, times in Counter(each.get("name") for each in [*calls, *functions]).items():
        if isinstance(name, str) and whole.count(name) < times:
            raise RefusedError(
                f"the chat template leaves out the tool {name} or its call; chat.template names another one"
            )


def spellings(messages: list[dict]):
    """A conversation as templates want it: a call without text as "" or None, arguments as object or JSON."""
    yield messages
    if any(message.get("tool_calls") for message in messages):
        yield [_spelt(message, text=None) for message in messages]
        yield [_spelt(message, text="", write=json.dumps) for message in messages]
        yield [_spelt(message, text=None, write=json.dumps) for message in messages]


def _spelt(message: dict, text: str | None, write=lambda arguments: arguments) -> dict:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": write(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "content": message["content"] or text, "tool_calls": calls}


def without_reasoning(message: dict) -> dict:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _common(whole: str, prompt: str) -> str:
    """The longest beginning of both."""
    short = min(len(whole), len(prompt))
    return whole[: next((i for i in range(short) if whole[i] != prompt[i]), short)]


def _until_its_end(tokenizer, chat: Chat, text: str, said: dict) -> str:
    """An answer with its end token and nothing behind it; where there is none, with nothing but its text."""
    content = (said["content"] or "").strip()
    start = text.rfind(content) + len(content) if content and content in text else 0
    ends = [tokenizer.convert_ids_to_tokens(end) for end in chat.end_ids]
    # Special tokens in a text are marked; an end that is no special token may stand in it.
    first = start if any(end in content for end in ends) else 0
    found = [(place, end) for end in ends if (place := text.find(end, first)) >= 0]
    if found:
        place, end = min(found)
        return text[: place + len(end)]
    return text if text[start:].strip() else text[:start] + ("" if start else text)


@functools.lru_cache(maxsize=4)
def special_tokens(tokenizer) -> re.Pattern | None:
    """What a tokenizer reads as control tokens, wherever it stands; not words that it only keeps whole."""
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted(filter(None, found), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def marked(value, pattern: re.Pattern | None):
    """The texts in a message, at any depth, with the special tokens in them marked as no such tokens."""
    if pattern is None:
        return value
    if isinstance(value, str):
        return pattern.sub(lambda found: found[0][:1] + MARK + found[0][1:], value)
    if isinstance(value, dict):
        return {key: marked(each, pattern) for key, each in value.items()}
    return [marked(each, pattern) for each in value] if isinstance(value, list) else value


def unmarked(text: str) -> str:
    return text.replace(MARK, "")


@functools.lru_cache(maxsize=4)
def anchor(tokenizer) -> str:
    """A token to go on from, for tokenizers that put a space before the first word they see; mostly none."""
    if not tokenizer.eos_token:
        return ""
    alone, after = (
        tokenizer(f"{text}a", add_special_tokens=False)["input_ids"] for text in ("", tokenizer.eos_token)
    )
    return "" if alone == after[1:] else tokenizer.eos_token


def tokens(tokenizer, text: str, *, after: str = "") -> list[int]:
    """The ids of a rendered text; marked special tokens are text. after: a token that it goes on from."""
    if not text:
        return []
    if MARK not in text:
        return tokenizer(after + text, add_special_tokens=False)["input_ids"][bool(after) :]
    pattern = special_tokens(tokenizer)
    ids, place = [], 0
    for found in [*pattern.finditer(text), None]:
        plain = unmarked(text[place : found.start() if found else len(text)])
        if MARK in text[place : found.start() if found else len(text)]:
            ids += tokenizer(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            ids += tokens(tokenizer, plain, after=anchor(tokenizer) if place else after)
        if found:
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            place = found.end()
    return ids


def text_tokens(tokenizer, text: str) -> list[int]:
    """The ids of a text that others stand before, every special token in it being text."""
    return tokens(tokenizer, marked(text, special_tokens(tokenizer)), after=anchor(tokenizer))


def prompt_tokens(tokenizer, chat: Chat, messages: list[dict], tools=None) -> list[int]:
    """The ids of a prompt, special tokens in what is asked being text."""
    pattern = special_tokens(tokenizer)
    return tokens(tokenizer, prompt_text(tokenizer, chat, marked(messages, pattern), marked(tools, pattern)))


def turns(tokenizer, chat: Chat, conversation: Conversation) -> list[Turn]:
    """The learned turns of a conversation, in order."""
    pattern, refused = special_tokens(tokenizer), None
    messages, tools = marked(conversation.messages, pattern), marked(conversation.tools, pattern)
    if chat.thinking != "keep":
        messages = list(map(without_reasoning, messages))
    for spelt in spellings(messages):
        try:
            return [turn(tokenizer, chat, spelt[: number + 1], tools) for number in conversation.learned]
        except RefusedError as error:
            refused = refused or error
    raise refused


def encode(tokenizer, chat: Chat, conversation: Conversation) -> list[tuple[list[int], list[int]]]:
    """Ids and mask of a conversation: 1 on the tokens of each learned answer up to its end token.

    One pair, if what stands before each learned turn is to the token what the model is given there. A
    template that tells earlier turns differently (most drop their reasoning) makes several, one per turn.
    The mask marks tokens as targets: whoever predicts token i does so from position i - 1.
    """
    after = anchor(tokenizer)
    made: list[tuple[list[int], list[int]]] = []
    for said in turns(tokenizer, chat, conversation):
        before = tokens(tokenizer, said.prompt) + tokens(tokenizer, said.given, after=after)
        answer = tokens(tokenizer, said.answer, after=after)
        if not answer or answer[-1] not in chat.end_ids:
            own = tokenizer.eos_token_id
            answer.append(own if own in chat.end_ids else chat.end_ids[0])
        learned = [0] * len(before)
        if made and before[: len(made[-1][0])] == made[-1][0]:
            earlier = made.pop()[1]
            learned[: len(earlier)] = earlier
        made.append((before + answer, learned + [1] * len(answer)))
    return made


def after_thinking(answer: str, prompt: str) -> tuple[str, str | None]:
    """(what is scored of an answer, the reasoning before it or None).

    The rule: if the prompt opens a block of reasoning or the answer begins with one, the answer is what
    stands behind the block's end; a block that never ends has no answer behind it.
    """
    opened = OPENED.search(prompt) is not None
    if not opened and not answer.lstrip().startswith(OPEN):
        return answer, None
    thought, closed, said = answer.partition(CLOSE)
    thought = thought.strip().removeprefix(OPEN).strip()
    return (said.lstrip("\r\n") if closed else ""), thought


def check_rows(tokenizer, chat: Chat, conversations: list[Conversation]) -> int:
    """Refuse a template that takes too long or too much, before one row is rendered here.

    Returns how many of the conversations it renders; what it refuses is told with the row's number later.
    """
    bounds = {"what": "the chat template", "seconds": SECONDS, "memory": MEMORY}
    return apart.run(_rendered, tokenizer, chat, conversations[:TRIED], **bounds)


def _rendered(tokenizer, chat: Chat, conversations: list[Conversation]) -> int:
    number = 0
    for conversation in conversations:
        with contextlib.suppress(RefusedError):
            number += len(turns(tokenizer, chat, conversation)) > 0
    return number

"""The one chat of an experiment: settled from its configuration and both models, before any rendering."""

from pathlib import Path

import jinja2

from kdag.config.chat import Chat as Settings
from kdag.config.section import path_is
from kdag.data.formats import Conversation
from kdag.data.template import SENTINEL, Chat, RefusedError, check_rows, render, special_tokens, tokens, turns
from kdag.files.hashes import sha256_json
from kdag.job.errors import UserError

# Rendered with both models' templates: they must agree on every one of these.
PROBES = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there.\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1 + 1 = ?"}],
)
ASKED = PROBES[0]


def settle(settings: Settings, teacher, student, end_ids: set[int]) -> Chat:
    """The chat of both tokenizers. end_ids: what ends an answer of either model.

    UserError, with the key that makes the pair work, if there is no such chat.
    """
    check_vocabulary(teacher, student)
    candidates = {
        name: Chat(
            template=template,
            variables=variables(tokenizer),
            kwargs=settings.kwargs,
            system=settings.system,
            date=settings.date,
            thinking=settings.thinking,
        )
        for name, tokenizer, template in templates(settings, teacher, student)
    }
    tokenizer = student if len(candidates) == 1 and "student" in candidates else teacher
    for name, chat in candidates.items():
        asked = Conversation([*ASKED, {"role": "assistant", "content": "Hi"}], learned=[1])
        try:
            if not check_rows(tokenizer, replaced(chat, end_ids), [asked]):
                turns(tokenizer, chat, asked)  # which says why
        except UserError as error:
            reason = str(error).removeprefix("the chat template")
            raise UserError(f"the {name}'s chat template{reason}") from error
    chats = list(candidates.values())
    if len(chats) == 2:
        check_templates(tokenizer, *chats)
    chat = chats[0]
    check_tokens(teacher, student, chat)
    if not (ends := end_ids | own_end(tokenizer, chat)):
        raise UserError("neither model says what ends an answer: set eos_token_id in generation_config.json")
    return replaced(chat, ends)


def replaced(chat: Chat, end_ids: set[int]) -> Chat:
    return Chat(**{**vars(chat), "end_ids": tuple(sorted(end_ids))})


def variables(tokenizer) -> dict:
    """The special tokens that a template may name; those of the model that the template is of."""
    return {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def templates(settings: Settings, teacher, student) -> list[tuple]:
    """(whose it is, its tokenizer, its text) of the template that is wanted; of both models' if none is."""
    own = [("teacher", teacher), ("student", student)]
    if settings.template is None:
        found = [(name, model, default(model.chat_template)) for name, model in own]
        if not (found := [each for each in found if each[2]]):
            raise UserError(
                "neither the teacher's nor the student's tokenizer has a chat template; chat.template names "
                "a file with one"
            )
        return found
    if path_is("is_file", settings.template):
        return [(settings.template, teacher, Path(settings.template).read_text(encoding="utf-8"))]
    for name, model in own:
        if settings.template == name:
            if not default(model.chat_template):
                raise UserError(f"chat.template: the {name}'s tokenizer has no chat template")
            return [(name, model, default(model.chat_template))]
    for name, model in own:
        if isinstance(model.chat_template, dict) and settings.template in model.chat_template:
            return [(name, model, model.chat_template[settings.template])]
    named = sorted({n for _, m in own if isinstance(m.chat_template, dict) for n in m.chat_template})
    known = ", ".join(["teacher", "student", *named])
    raise UserError(
        f"chat.template: no file and no template is called {settings.template!r}; known are {known}"
    )


def default(template) -> str | None:
    """Of several named templates the one that is called default, as transformers takes it."""
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"of the chat templates {', '.join(template)} none is called default: name it, chat.template"
            )
        return template["default"]
    return template or None


def check_vocabulary(teacher, student, who: str = "teacher") -> None:
    """Refuse two tokenizers of different tokens."""
    if len(teacher) != len(student) or teacher.get_vocab() != student.get_vocab():
        differing = set(teacher.get_vocab().items()) ^ set(student.get_vocab().items())
        raise UserError(
            f"{who} and student have different vocabularies ({len(teacher)} and {len(student)} "
            f"tokens; {len(differing)} entries differ, such as {sorted(differing)[:3]}): a divergence over "
            "the vocabulary compares them token by token, so it needs one tokenizer for both; strategies "
            "with alignment (uld, gold, span-likelihood) compare what the tokens say instead, and with "
            "teacher.tokenizer: own method: seqkd learns the teacher's text"
        )


def rendered(tokenizer, chat: Chat, probe: list[dict]) -> str | None:
    """The probe as text; None where the template knows no system turn, as Gemma's."""
    try:
        return render(tokenizer, chat, probe, prompt=probe[-1]["role"] == "user")
    except RefusedError as error:
        if probe[0]["role"] == "system" and isinstance(error.__cause__, jinja2.TemplateError):
            return None
        raise


def check_templates(tokenizer, teacher: Chat, student: Chat) -> None:
    """Refuse two templates that render the same conversation differently."""
    for probe in PROBES:
        texts = [rendered(tokenizer, chat, probe) for chat in (teacher, student)]
        if texts[0] != texts[1]:
            raise UserError(
                f"teacher and student have different chat templates: {texts[0]!r} against {texts[1]!r}; "
                "chat.template: teacher (or student) takes one of them for both"
            )


def check_tokens(teacher, student, chat: Chat) -> None:
    """Refuse two tokenizers that split the same text differently."""
    for probe in PROBES:
        if (text := rendered(teacher, chat, probe)) and tokens(teacher, text) != tokens(student, text):
            raise UserError(f"teacher and student split {text!r} into different tokens")


def own_end(tokenizer, chat: Chat) -> set[int]:
    """The special token with which the template itself ends an answer, if it has one."""
    answered = [*ASKED, {"role": "assistant", "content": SENTINEL}]
    behind = render(tokenizer, chat, answered, prompt=False).rpartition(SENTINEL)[2]
    pattern = special_tokens(tokenizer)
    found = pattern.match(behind.lstrip()) if pattern else None
    return {tokenizer.convert_tokens_to_ids(found[0])} if found else set()


def answer_end(tokenizer, chat: Chat) -> int:
    """The token that ends an answer: the template's own, or the tokenizer's, if they are among the chat's."""
    own = [*own_end(tokenizer, chat), tokenizer.eos_token_id]
    return next((end for end in own if end in chat.end_ids), chat.end_ids[0])


def before_a_question(tokenizer, chat: Chat) -> str:
    """What the template puts before a first question by itself, such as a system prompt; mostly nothing."""
    text = render(tokenizer, chat, ASKED, prompt=True).partition(ASKED[0]["content"])[0]
    pattern = special_tokens(tokenizer)
    bare = pattern.sub("", text) if pattern else text
    return text if len(bare.split()) > 3 else ""  # the names of roles are no words to anybody


def vocabulary_hash(tokenizer) -> str:
    return sha256_json(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))

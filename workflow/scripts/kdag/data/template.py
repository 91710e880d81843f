"""One chat template for all: rendered, probed, hashed, and compared between teacher and student."""

import jinja2

from kdag.files import apart
from kdag.files.hashes import sha256_json, sha256_text
from kdag.job.errors import UserError

# Rendered with both models' templates: they must agree on every one of these.
PROBES = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there.\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1 + 1 = ?"}],
)


# A template is a program of the model's author: so long, and so much memory, for a few conversations.
SECONDS, MEMORY = 30, 2 * 2**30
TRIED = 20  # of the rows, besides the probes
LONGEST = 100  # times as long as what was to be rendered, and 100,000 characters, a rendered text may be


class RefusedError(UserError):
    """The template did not render a conversation."""


def apply(tokenizer, conversation: list[dict], **options):
    """What the template makes of a conversation; RefusedError, one line, whatever it stumbles over."""
    try:
        made = tokenizer.apply_chat_template(conversation, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"the chat template cannot render a row: {type(error).__name__}: {reason}"
        ) from error
    content = sum(len(turn["content"]) for turn in conversation)
    if len(made) > 100_000 + LONGEST * content:
        raise RefusedError(
            f"the chat template makes {len(made)} characters or tokens of {content} characters"
        )
    return made


def check(name: str, tokenizer, conversations: list[list[dict]]) -> int:
    """Refuse a template that takes too long or too much, before one conversation is rendered here.

    Returns how many of the conversations and probes it renders.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the {name}'s tokenizer has no chat template; take an instruct model")
    tried = [*PROBES, *conversations[:TRIED]]
    what = f"the {name}'s chat template"
    return apart.run(_render_all, tokenizer, tried, what=what, seconds=SECONDS, memory=MEMORY)


def _render_all(tokenizer, conversations: list[list[dict]]) -> int:
    try:
        return sum(render(tokenizer, conversation) is not None for conversation in conversations)
    except RefusedError as error:
        raise UserError(str(error).removeprefix("the chat template ")) from error


def template_hash(tokenizer) -> str:
    return sha256_text(tokenizer.chat_template or "")


def vocabulary_hash(tokenizer) -> str:
    return sha256_json(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def render(tokenizer, probe: list[dict]) -> str | None:
    """The probe in the tokenizer's template; None where it knows no system turn, as Gemma's."""
    try:
        return apply(tokenizer, probe, tokenize=False)
    except RefusedError as error:
        if probe[0]["role"] == "system" and isinstance(error.__cause__, jinja2.TemplateError):
            return None
        raise


def check_pair(teacher, student) -> None:
    """Refuse two tokenizers that do not write the same tokens for the same conversation."""
    if len(teacher) != len(student) or teacher.get_vocab() != student.get_vocab():
        differing = set(teacher.get_vocab().items()) ^ set(student.get_vocab().items())
        raise UserError(
            f"teacher and student have different vocabularies ({len(teacher)} and {len(student)} "
            f"tokens; {len(differing)} entries differ, such as {sorted(differing)[:3]}): a divergence over "
            "the vocabulary compares them token by token, so it needs one tokenizer for both"
        )
    for probe in PROBES:
        rendered = [render(teacher, probe), render(student, probe)]
        if rendered == [None, None]:
            continue
        if rendered[0] != rendered[1]:
            raise UserError(
                f"teacher and student have different chat templates: {rendered[0]!r} against {rendered[1]!r}"
            )
        encoded = [t(rendered[0])["input_ids"] for t in (teacher, student)]
        if encoded[0] != encoded[1]:
            raise UserError(f"teacher and student split {rendered[0]!r} into different tokens")

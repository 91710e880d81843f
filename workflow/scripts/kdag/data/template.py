"""One chat template for all: rendered, probed, hashed, and compared between teacher and student."""

import jinja2

from kdag.files.hashes import sha256_json, sha256_text
from kdag.job.errors import UserError

# Rendered with both models' templates: they must agree on every one of these.
PROBES = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there.\n"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1 + 1 = ?"}],
)


def template_hash(tokenizer) -> str:
    return sha256_text(tokenizer.chat_template or "")


def vocabulary_hash(tokenizer) -> str:
    return sha256_json(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def render(name: str, tokenizer, probe: list[dict]) -> str | None:
    """The probe in the tokenizer's template; None where it knows no system turn, as Gemma's."""
    try:
        return tokenizer.apply_chat_template(probe, tokenize=False)
    except jinja2.TemplateError as error:
        if probe[0]["role"] == "system":
            return None
        raise UserError(f"the {name}'s chat template cannot render {probe[-1]}: {error}") from error


def check_pair(teacher, student) -> None:
    """Refuse two tokenizers that do not write the same tokens for the same conversation."""
    for name, tokenizer in (("teacher", teacher), ("student", student)):
        if not tokenizer.chat_template:
            raise UserError(f"the {name}'s tokenizer has no chat template; take an instruct model")
    if len(teacher) != len(student) or teacher.get_vocab() != student.get_vocab():
        differing = set(teacher.get_vocab().items()) ^ set(student.get_vocab().items())
        raise UserError(
            f"teacher and student have different vocabularies ({len(teacher)} and {len(student)} "
            f"tokens; {len(differing)} entries differ, such as {sorted(differing)[:3]}): a divergence over "
            "the vocabulary compares them token by token, so it needs one tokenizer for both"
        )
    for probe in PROBES:
        rendered = [render("teacher", teacher, probe), render("student", student, probe)]
        if rendered == [None, None]:
            continue
        if rendered[0] != rendered[1]:
            raise UserError(
                f"teacher and student have different chat templates: {rendered[0]!r} against {rendered[1]!r}"
            )
        encoded = [t(rendered[0])["input_ids"] for t in (teacher, student)]
        if encoded[0] != encoded[1]:
            raise UserError(f"teacher and student split {rendered[0]!r} into different tokens")

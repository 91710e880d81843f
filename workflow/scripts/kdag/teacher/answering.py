"""The teacher's own answers to the training prompts, as rows that take the place of the data set's."""

from pathlib import Path

import pyarrow.parquet as pq

from kdag.data.loops import distinct_pairs, is_repeated
from kdag.data.rows import prompts, read_rows
from kdag.data.template import text_tokens
from kdag.files.manifest import read_manifest
from kdag.job.errors import UserError
from kdag.models import decoding
from kdag.models.files import positions_of

SEED = 0  # the answers are one sample, which every strategy and seed shares


def sampled(model: Path, rows: Path, settings, chat, dtype: str, vocabulary: int, gpus: int = 1):
    """(decoding.Answer of each of `rows`, its text), the rows being in the teacher's tokens.

    settings: a config Sampling. An answer has the token that ended it, or none where it was cut off.
    UserError, if the teacher does not read a row (aligned_rows).
    """
    frame = read_rows(rows)
    if unread := [row for row, targets in enumerate(frame["targets"]) if not (targets != -100).any()]:
        why = {each["row"]: each["reason"] for each in unread_reasons(rows)}
        number = pq.read_table(rows, columns=["row"])["row"][unread[0]].as_py()
        raise UserError(
            f"{len(unread)} training rows cannot be put to the teacher, the first of them row {number}: "
            f"{why.get(number, 'nothing in it is learned')}"
        )
    given = prompts(frame)
    decoding.check_positions(given, settings.max_new_tokens, positions_of(model))
    loaded, tokenizer = decoding.load_model(model, dtype, gpus)
    answers = decoding.sample(
        loaded,
        given,
        [(SEED, row) for row in range(len(given))],
        settings.model_dump(),
        vocabulary=vocabulary,
        eos_ids=chat.end_ids,
        told=True,
    )
    return answers, [tokenizer.decode(answer.said) for answer in answers]


def unread_reasons(rows: Path) -> list[dict]:
    return read_manifest(rows.parent / "manifest.json")["report"].get("unaligned", {}).get("train", [])


def spoken(tokenizer, chat, answers: list, texts: list[str], most: int) -> list[list[int]]:
    """A teacher's answers in the tokens of a student with another tokenizer, `most` of them, each with the
    student's end token if the teacher ended it and no token was cut off."""
    found = []
    for answer, text in zip(answers, texts, strict=True):
        text = text.rstrip("\ufffd") if answer.cut_off else text  # of a character that was cut in the middle
        ids = [*text_tokens(tokenizer, text), *([] if answer.cut_off else chat.end_ids[:1])]
        found.append(ids[:most])
    return found


def report(answers: list, texts: list[str]) -> dict:
    """What the answers are like, on average."""
    count, tokens = len(answers), sum(len(answer.tokens) for answer in answers)
    return {
        "answers": count,
        "sampled_tokens": tokens,
        "entropy": sum(answer.entropy * len(answer.tokens) for answer in answers) / tokens,
        "distinct_2": sum(distinct_pairs(answer.tokens) for answer in answers) / count,
        "cut_off": sum(answer.cut_off for answer in answers),
        "repeated": sum(map(is_repeated, texts)),
    }

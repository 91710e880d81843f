"""The teacher's own answers to the training prompts, as rows that take the place of the data set's."""

from pathlib import Path

import pyarrow.parquet as pq

from kdag.data.aligned_rows import Speaker, around
from kdag.data.chat import answer_end
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
    return answers, [tokenizer.decode(answer.said, clean_up_tokenization_spaces=False) for answer in answers]


def unread_reasons(rows: Path) -> list[dict]:
    return read_manifest(rows.parent / "manifest.json")["report"].get("unaligned", {}).get("train", [])


def spoken(student: Speaker, teacher: Speaker, answers: list, texts: list[str]) -> list[str]:
    """The texts as the student's template writes an answer: with its own white space around them, and not the
    teacher's."""
    (ours, behind), (theirs, behind_there) = around(student), around(teacher)
    found = []
    for answer, text in zip(answers, texts, strict=True):
        text = ours + text.removeprefix(theirs)
        # What was cut off may end in the middle of a character.
        found.append(text.rstrip("\ufffd") if answer.cut_off else text.removesuffix(behind_there) + behind)
    return found


def encoded(student: Speaker, answers: list, texts: list[str], most: int) -> list[list[int]]:
    """The texts in the student's tokens, `most` of them, each with the token that ends an answer if the
    teacher ended it and no token was cut off."""
    end = answer_end(student.tokenizer, student.chat)
    return [
        [*text_tokens(student.tokenizer, text), *([] if answer.cut_off else [end])][:most]
        for answer, text in zip(answers, texts, strict=True)
    ]


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

"""The rows of a subset in the tokens of a teacher with another tokenizer, and which tokens say the same.

A row that the teacher's template refuses, that is too long for the teacher, or whose answers the two sides
spell differently stays a row, with a reason and without a span: the student learns its answer as before, and
nothing of the teacher.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from kdag.data import template
from kdag.data.alignment import (
    AlignmentError,
    align_answers,
    learned_runs,
    row_widths,
    spelling,
    within,
)
from kdag.data.formats import Conversation
from kdag.data.rows import SCHEMA
from kdag.files.hashes import sha256_json

# Next to what every encoded row has: the hash of the student's row, the spans as of teacher/aligned.py, and
# the bytes of each learned token of either side (alignment.widths), null if they spell another text.
NUMBERS = pa.list_(pa.int32())
ALIGNED = pa.schema(
    [
        *SCHEMA,
        ("of", pa.string()),
        ("spans", NUMBERS),
        ("student_widths", NUMBERS),
        ("teacher_widths", NUMBERS),
    ]
)
PROBE = "Hello"
NOTHING = ([0], [0])  # ids and mask of a row that the teacher does not read


@dataclass
class Speaker:
    """A model's tokenizer with its chat and the positions that it has (None: as many as are wanted)."""

    tokenizer: object
    chat: template.Chat
    positions: int | None = None


@dataclass
class Tally:
    """What came of the rows of a part."""

    rows: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    spans: int = 0
    one_to_one: int = 0
    unaligned: list[dict] = field(default_factory=list)

    def report(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "unaligned"}


def texts(speaker: Speaker, found: Conversation) -> list[str]:
    """The learned answers as a model says them, without what ends them."""
    ends = [speaker.tokenizer.convert_ids_to_tokens(end) for end in speaker.chat.end_ids]
    said = []
    for turn in template.turns(speaker.tokenizer, speaker.chat, found):
        answer = turn.answer
        for end in ends:
            answer = answer.removesuffix(end)
        said.append(template.unmarked(answer))
    return said


def held(speaker: Speaker, row: dict, found: Conversation) -> Conversation:
    """What an encoded row holds of its conversation: a template that tells earlier turns otherwise makes
    several rows of one, and a row that was too long has lost its last turns."""
    if len(found.learned) < 2:
        return found
    ids, count = row["input_ids"], len(learned_runs(row["input_ids"], row["response_mask"]))
    start = 0
    for made, mask in template.encode(speaker.tokenizer, speaker.chat, found):
        if made[: len(ids)] == ids and count:
            kept = found.learned[start : start + count]
            return replace(found, messages=found.messages[: kept[-1] + 1], learned=kept)
        start += len(learned_runs(made, mask))
    return found


def aligned(
    rows: Iterator[tuple[dict, Conversation]], student: Speaker, teacher: Speaker, tally: Tally
) -> Iterator[dict]:
    """Rows of ALIGNED, one for each of (the student's row as SCHEMA has it, its conversation)."""
    ours, theirs = spelling(student.tokenizer), spelling(teacher.tokenizer)
    for row, found in rows:
        found = held(student, row, found)
        ids, mask, reason = read_by(teacher, found)
        given = (row["input_ids"], row["response_mask"])
        made = {"spans": [], "student_widths": None, "teacher_widths": None}
        try:
            said = texts(student, found)
            taken = row_widths(ours, given, said, "student", student.chat.end_ids)
            made["student_widths"] = np.concatenate(taken)
            if reason:
                raise AlignmentError(reason)
            # Where the teacher's row has fewer answers, they are the last ones.
            said_there = texts(teacher, found)[-len(learned_runs(ids, mask)) :]
            earlier = len(said) - len(said_there)
            if [text.strip() for text in said[earlier:]] != [text.strip() for text in said_there]:
                raise AlignmentError("the two chat templates write an answer differently")
            taken_there = row_widths(theirs, (ids, mask), said_there, "teacher", teacher.chat.end_ids)
            for number, (text, text_there) in enumerate(zip(said[earlier:], said_there, strict=True)):
                if text != text_there:  # white space that a template writes
                    taken[earlier + number] = within(taken[earlier + number], text)
                    taken_there[number] = within(taken_there[number], text_there)
                    said_there[number] = text.strip()
            made["student_widths"] = np.concatenate(taken)
            made["teacher_widths"] = np.concatenate(taken_there)
            spans = align_answers(taken[earlier:], taken_there, said_there)
            before = sum(map(len, taken[:earlier]))
            made["spans"] = np.concatenate([spans.student + before, spans.teacher], 1).ravel()
            tally.spans += len(spans)
            tally.one_to_one += int(spans.one_to_one.sum())
        except AlignmentError as error:
            tally.unaligned.append({"row": row["row"], "reason": str(error)})
        tally.rows += 1
        tally.tokens += len(ids)
        tally.answer_tokens += sum(mask[1:])
        own = {"input_ids": ids, "response_mask": mask, "row_hash": sha256_json([ids, mask])}
        yield row | own | made | {"of": row["row_hash"]}


def read_by(speaker: Speaker, found: Conversation) -> tuple[list[int], list[int], str]:
    """(ids, mask, why there is nothing to align or "") of a conversation in a model's own tokens: up to its
    last answer, and of the answers before that those that read the same there."""
    try:
        encoded = template.encode(speaker.tokenizer, speaker.chat, found)
    except template.RefusedError as error:
        return *NOTHING, str(error)
    ids, mask = encoded[-1]
    if speaker.positions and len(ids) > speaker.positions:
        return *NOTHING, f"{len(ids)} tokens of the teacher's, which has {speaker.positions} positions"
    return ids, mask, ""


def around(speaker: Speaker) -> tuple[str, str]:
    """The white space that a template writes before and behind an answer."""
    asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    (said,) = texts(speaker, Conversation(asked, learned=[1]))
    before, _, behind = said.partition(PROBE)
    return ("", "") if (before + behind).strip() else (before, behind)


def reasons(unaligned: list[dict], most: int = 3) -> str:
    """The commonest reasons, as a line."""
    counted = Counter(each["reason"].split(", from byte")[0] for each in unaligned).most_common(most)
    return "; ".join(f"{count} x {reason}" for reason, count in counted)

"""One answer in the tokens of two tokenizers: which of the student's and of the teacher's say the same bytes.

    spelt = spelling(tokenizer)                what each of its tokens spells, in bytes; once per tokenizer
    widths(spelt, ids, text)                   bytes of the text that each token of an answer takes
    align(student, teacher)                    the spans, from the widths of both
    align_row(student, teacher, ...)           the spans of a whole row, from its ids and masks

Tokens are spelled from the vocabulary, and neither from `decode` of single tokens, which makes U+FFFD of a
part of a character, nor from a tokenizer's offsets, which count characters, give each part of a character all
of it, and give an added blank the place of the character behind it. That the spelled bytes are the text's is
checked row by row: a tokenizer that changes a text (NFC, lower case, blanks that are put together) is found
by that, and the row has no alignment. A blank that a tokenizer puts before a text by itself (SentencePiece's
dummy prefix) is the one change that is taken: its token, or that part of its token, has no bytes in the text.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdag.job.errors import UserError

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
BLANK = "\u2581"  # SentencePiece writes a blank as this
# Each is spelled back to the byte by a tokenizer that keeps what it is given; more than one kind of text,
# since a vocabulary without byte fallback may lack all of one.
PROBES = (
    "two words",
    "  two\n\tlines",
    "201 A.b",
    "caf\u00e9",
    "\u4e2d\u6587",
    "\U0001f600",
    "<0x41>",
    "\u0120x",
)
SHOWN = 12  # characters of a text, around where it is changed, in a reason


class AlignmentError(ValueError):
    """Why an answer has no alignment: one line. The row is left out; another row may have one."""


@dataclass(frozen=True)
class Spelling:
    """The bytes of each token of a vocabulary, by id: None where a token stands for unknown text or for none.

    control: the control tokens (beginning, end, roles), which say no bytes of a text, with their names.
    fallback: the ids of tokens for a byte that no other token has (SentencePiece's <0xE2>).
    """

    pieces: tuple[bytes | None, ...]
    control: dict[int, str]
    fallback: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Spans:
    """The spans of an answer, in order. student, teacher [K, 2]: the first of a span's tokens and the one
    behind its last; bytes [K, 2]: likewise of the text. All int64.

    Together the spans hold every byte of the text once. A token in no span is a control token that the other
    side has no counterpart of.
    """

    student: np.ndarray
    teacher: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def one_to_one(self) -> np.ndarray:
        """[K] bool: one token on either side."""
        return (np.diff(self.student) == 1)[:, 0] & (np.diff(self.teacher) == 1)[:, 0]


# --- what a token spells ------------------------------------------------------------------------


def byte_alphabet() -> dict[str, int]:
    """The characters by which a byte-level vocabulary (GPT-2's and its heirs') writes bytes."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


ALPHABET = byte_alphabet()


def byte_level(piece: str) -> bytes | None:
    """A piece of a byte-level vocabulary: one character is one byte."""
    try:
        return bytes(ALPHABET[character] for character in piece)
    except KeyError:
        return None


def sentencepiece(piece: str) -> bytes | None:
    """A piece of a SentencePiece vocabulary: text with its blanks as U+2581, or one byte as <0xE2>."""
    if byte := BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(BLANK, " ").encode()


@functools.lru_cache(maxsize=4)
def spelling(tokenizer) -> Spelling:
    """What the tokens of a tokenizer of transformers spell, fast or not.

    Of the known ways to write bytes as tokens it is the one that spells most PROBES back. UserError if there
    is none, as for vocabularies that drop blanks (BERT's).
    """
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    control = {number: token.content for number, token in added.items() if token.special}
    best, most = None, 0
    for way in (byte_level, sentencepiece):
        fallback = set()
        pieces: list[bytes | None] = [None] * (max([*vocabulary.values(), *added]) + 1)
        for piece, number in vocabulary.items():
            # Vocabularies of tiktoken's that transformers reads by itself have bytes already.
            pieces[number] = piece if isinstance(piece, bytes) else way(piece)
            if way is sentencepiece and isinstance(piece, str) and BYTE_PIECE.fullmatch(piece):
                fallback.add(number)
        for number, token in added.items():
            # Runs of blanks are added tokens of Gemma's, written as its pieces are.
            text = token.content.replace(BLANK, " ") if way is sentencepiece else token.content
            pieces[number] = None if number in control else text.encode()
        candidate = Spelling(tuple(pieces), control, frozenset(fallback - added.keys()))
        kept = sum(spells(tokenizer, candidate, probe) for probe in PROBES)
        if kept > most:
            best, most = candidate, kept
    if best is None or not spells(tokenizer, best, PROBES[0]):
        raise UserError(
            f"the tokens of {type(tokenizer).__name__} do not spell the text that they are made of: tried as "
            "byte-level and as SentencePiece; a pair with such a tokenizer has no alignment"
        )
    return best


def spells(tokenizer, spelt: Spelling, text: str) -> bool:
    """Is the text what its tokens spell?"""
    try:
        widths(spelt, tokenizer(text, add_special_tokens=False)["input_ids"], text)
    except AlignmentError:
        return False
    return True


def widths(spelt: Spelling, ids: Sequence[int], text: str | bytes) -> np.ndarray:
    """Bytes of the text that each token takes, [n] int64, and -1 of a control token; their sum is the text.

    A blank that stands before the text's own first byte takes none of it. AlignmentError if the tokens do not
    spell the text.
    """
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    pieces = pieces_of(spelt, ids)
    spelled = b"".join(filter(None, pieces))
    taken = np.array([-1 if piece is None else len(piece) for piece in pieces], dtype=np.int64)
    if spelled == text:
        return taken
    if spelled == b" " + text:
        taken[np.flatnonzero(taken > 0)[0]] -= 1
        return taken
    raise AlignmentError(changed(spelled, text))


def pieces_of(spelt: Spelling, ids: Sequence[int]) -> list[bytes | None]:
    """What each token spells, None for a control token; AlignmentError if that is not known of one."""
    pieces: list[bytes | None] = []
    for place, number in enumerate(ids):
        known = 0 <= number < len(spelt.pieces)
        piece = spelt.pieces[number] if known else None
        if piece is None and not (known and number in spelt.control):
            raise AlignmentError(f"token {place} (id {number}) spells no known bytes")
        pieces.append(piece)
    return pieces


def changed(spelled: bytes, text: bytes) -> str:
    """How the tokens of a text spell another one, in a line."""
    if spelled.startswith(b" ") and not text.startswith(b" "):
        spelled = spelled[1:]  # a blank that is put before every text is not what is wrong
    short = min(len(spelled), len(text))
    place = next((i for i in range(short) if spelled[i] != text[i]), short)
    begin = max(place - SHOWN // 2, 0)
    parts = [part[begin : begin + SHOWN].decode(errors="replace") for part in (spelled, text)]
    why = "its tokens spell another text"
    try:
        before, after = text.decode(), spelled.decode()
    except UnicodeDecodeError:
        return f"{why}, from byte {place} on: {parts[0]!r} for {parts[1]!r}"
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        if unicodedata.normalize(form, before) == after:
            why = f"its tokenizer normalises the text ({form})"
            break
    return f"{why}, from byte {place} on: {parts[0]!r} for {parts[1]!r}"


# --- spans --------------------------------------------------------------------------------------


class Side:
    """One side's tokens, taken from the left. at: the next token; end: bytes of the tokens before it."""

    def __init__(self, token_widths: np.ndarray):
        self.widths = token_widths.tolist()
        self.at = self.end = 0

    def empty(self) -> tuple[int, int]:
        """Take the tokens without bytes: (how many up to the last control token, how many others)."""
        start, control = self.at, self.at
        while self.at < len(self.widths) and self.widths[self.at] <= 0:
            self.at += 1
            if self.widths[self.at - 1] < 0:
                control = self.at
        return control - start, self.at - control

    def take(self) -> None:
        self.end += max(self.widths[self.at], 0)
        self.at += 1


def align(student: np.ndarray, teacher: np.ndarray) -> Spans:
    """The finest spans whose ends are ends of tokens on both sides. student, teacher: `widths` of one text.

    Tokens without bytes: where both sides have control tokens between the same two bytes (the end of an
    answer), they are a span of no bytes, or as many as there are if both have the same number; where one side
    has them, they are in no span. The same holds of others, such as a dummy prefix's, but where one side has
    them, they belong to the span that follows, since the model has to predict them to say it, and at the very
    end to the one before. Between the tokens of one span all belong to it.

    AlignmentError if the two do not take the same number of bytes.
    """
    sides = Side(student), Side(teacher)
    sizes = [int(np.maximum(side, 0).sum()) for side in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise AlignmentError(f"the student's tokens spell {sizes[0]} bytes, the teacher's {sizes[1]}")
    spans: list[tuple[int, ...]] = []
    while True:
        s, t = sides
        (s_control, s_other), (t_control, t_other) = s.empty(), t.empty()
        s_begin, t_begin = s.at - s_other, t.at - t_other  # behind the control tokens
        spans += pairs(s_begin - s_control, s_begin, t_begin - t_control, t_begin, s.end)
        if s_other and t_other:
            spans += pairs(s_begin, s.at, t_begin, t.at, s.end)
            s_begin, t_begin = s.at, t.at
        start = s.end
        if start == sizes[0]:
            return spans_from(with_rest(spans, s.at, t.at, s_begin, t_begin))
        s.take(), t.take()
        while s.end != t.end:
            (s if s.end < t.end else t).take()
        spans.append((s_begin, s.at, t_begin, t.at, start, s.end))


def pairs(s_begin: int, s_end: int, t_begin: int, t_end: int, place: int) -> list[tuple[int, ...]]:
    """The spans of no bytes that two runs of tokens at the same place make: none if one run is empty."""
    if s_begin == s_end or t_begin == t_end:
        return []
    if s_end - s_begin != t_end - t_begin:
        return [(s_begin, s_end, t_begin, t_end, place, place)]
    runs = zip(range(s_begin, s_end), range(t_begin, t_end), strict=True)
    return [(s, s + 1, t, t + 1, place, place) for s, t in runs]


def with_rest(spans: list[tuple[int, ...]], s_end: int, t_end: int, s_begin: int, t_begin: int):
    """The spans, the last one with the tokens of no bytes that one side has left, if they follow on it."""
    if not spans or (s_begin == s_end and t_begin == t_end):
        return spans
    s0, s1, t0, t1, *place = spans[-1]
    if s1 == s_begin and t1 == t_begin:
        return [*spans[:-1], (s0, s_end, t0, t_end, *place)]
    return spans


def spans_from(spans) -> Spans:
    """Spans of rows (student's first, behind last, teacher's first, behind last, first byte, behind last)."""
    table = np.array(spans, dtype=np.int64).reshape(-1, 6)
    return Spans(table[:, 0:2], table[:, 2:4], table[:, 4:6])


def align_row(student: Spelling, teacher: Spelling, student_row, teacher_row, texts: Sequence[str]) -> Spans:
    """The spans of the learned answers of a conversation, each row being its (ids [n], mask [n]).

    texts: of the answers, without what ends them. Tokens are counted among the learned ones, as their targets
    and hidden states are stored, from 0 on; bytes over all answers. An answer is a run of learned tokens.

    AlignmentError, with the answer and the side, if one of them does not spell the texts.
    """
    ours = row_widths(student, student_row, texts, "student")
    theirs = row_widths(teacher, teacher_row, texts, "teacher")
    return align_answers(ours, theirs, texts)


def align_answers(ours: list[np.ndarray], theirs: list[np.ndarray], texts: Sequence[str]) -> Spans:
    """`align_row` from the `row_widths` of both sides."""
    spans, before = [], np.zeros(3, dtype=np.int64)  # tokens of either side and bytes of the answers so far
    for *taken, text in zip(ours, theirs, texts, strict=True):
        aligned = align(*taken)
        spans.append(np.concatenate([aligned.student, aligned.teacher, aligned.bytes], 1) + before.repeat(2))
        before = before + [*map(len, taken), len(text.encode())]
    return spans_from(np.concatenate(spans) if spans else [])


def row_widths(
    spelt: Spelling, row, texts: Sequence[str], who: str = "model", ends: Sequence[int] = ()
) -> list[np.ndarray]:
    """`widths` of each learned answer of a row (ids [n], mask [n]), whose texts these are.

    ends: tokens that end an answer, which then say nothing of it, also if they are no control tokens.
    AlignmentError, with the answer and `who`, if the row does not spell them.
    """
    runs = learned_runs(*row)
    if len(runs) != len(texts):
        raise AlignmentError(f"the {who}'s row has {len(runs)} answers for {len(texts)} texts")
    found = []
    for number, (ids, text) in enumerate(zip(runs, texts, strict=True)):
        try:
            ended = ids[-1] in ends and ids[-1] not in spelt.control
            taken = widths(spelt, ids[:-1] if ended else ids, text)
            found.append(np.append(taken, -1) if ended else taken)
        except AlignmentError as error:
            raise AlignmentError(f"answer {number}, {who}: {error}") from error
    return found


def within(taken: np.ndarray, text: str) -> np.ndarray:
    """The `widths` of a text, less the white space around it, which a template may write: the tokens, or the
    parts of tokens, that say it have no bytes then."""
    taken, core = taken.copy(), text.strip()
    lead = text.index(core) if core else 0
    for size, places in (
        (len(text[:lead].encode()), range(len(taken))),
        (len(text[lead + len(core) :].encode()), range(len(taken) - 1, -1, -1)),
    ):
        for place in places:
            less = min(size, max(int(taken[place]), 0))
            taken[place] -= less
            size -= less
    return taken


def learned_runs(ids, mask) -> list[list[int]]:
    """The ids of each run of learned tokens. A row's first token has nothing before it that predicts it."""
    ids, mask = np.asarray(ids), np.asarray(mask).copy()
    mask[:1] = 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [ids[first:last].tolist() for first, last in edges.reshape(-1, 2)]


# --- vocabularies -------------------------------------------------------------------------------


def common_tokens(
    student: Spelling, teacher: Spelling, ends: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that both vocabularies have: (student's ids, teacher's ids), [C] int64, by the teacher's id.

    Two tokens are the same if they spell the same bytes, whatever characters their vocabularies write them
    with ("\u0120the" and "\u2581the"), and control tokens if they have the same name. Where several tokens of
    one vocabulary spell the same, those that fall back to a byte come last, and the first of one side goes
    with the first of the other, the second with the second. ends: the ids with which student and teacher end
    an answer, the same whatever they are called.

    TRL's GOLD compares the names alone, so of a byte-level and a SentencePiece vocabulary no token that
    begins with a blank is common to it.
    """
    ours, theirs = by_text(student), by_text(teacher)
    shared = [
        (s, t) for text, numbers in theirs.items() for t, s in zip(numbers, ours.get(text, ()), strict=False)
    ]
    if ends:
        shared = [pair for pair in shared if pair[0] != ends[0] and pair[1] != ends[1]] + [ends]
    table = np.array(sorted(shared, key=lambda pair: pair[1]), dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def by_text(spelt: Spelling) -> dict[bytes | str, list[int]]:
    """The tokens that spell the same bytes, or have the same name as control tokens."""
    ids: dict[bytes | str, list[int]] = {name: [number] for number, name in spelt.control.items()}
    numbers = range(len(spelt.pieces))
    for number in sorted(numbers, key=lambda number: number in spelt.fallback):
        if spelt.pieces[number] is not None:
            ids.setdefault(spelt.pieces[number], []).append(number)
    return ids

"""Answers in the tokens of two tokenizers: the spans, and what is refused."""

import itertools

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdag.data.alignment import (
    AlignmentError,
    Spelling,
    align,
    align_row,
    byte_level,
    common_tokens,
    spelling,
    widths,
)
from kdag.job.errors import UserError

CORPUS = [text for row in tiny.rows(200, seed=1) for text in row.values()]
MORE = [*CORPUS, *(f"201 and {n} caf\u00e9 \u4e2d\u6587 \U0001f600 x" for n in range(100, 400))]
TOKENIZERS = {
    "byte-level": tiny.tokenizer(CORPUS),
    "byte-level-2": tiny.tokenizer(MORE, 900),
    "bpe": tiny.other_tokenizer(CORPUS),
    "unigram": tiny.other_tokenizer(MORE, "unigram", 700),
}
PAIRS = list(itertools.combinations_with_replacement(TOKENIZERS, 2))
# Every kind of text in which tokenizers differ, but U+2581 and <0xE2>, which mean another thing to some.
KINDS = ["the ", "river", " ", "  ", "\n", "\t", "201", "2 0 1", "e\u0301", "\u00e9", "\u0120", "\ufffd"]
KINDS += ["\u4e2d\u6587", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ufb01", "s>x", "\0"]
PIECES = st.one_of(
    st.sampled_from(KINDS),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=4),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def ids_of(name: str, text: str) -> list[int]:
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


def spans_of(text: str, student: str, teacher: str):
    sides = [widths(spelling(TOKENIZERS[name]), ids_of(name, text), text) for name in (student, teacher)]
    return align(*sides), sides


def check(spans, sides, size: int) -> None:
    """Spans follow each other, hold every byte and every token that takes one, and cannot be cut further."""
    assert spans.bytes[:, 0].tolist() == [0, *spans.bytes[:-1, 1]][: len(spans)]
    assert (spans.bytes[-1, 1] if len(spans) else 0) == size
    ends = []
    for runs, token_widths in zip((spans.student, spans.teacher), sides, strict=True):
        assert (runs[:, 0] < runs[:, 1]).all() and (runs[1:, 0] >= runs[:-1, 1]).all()
        place = np.concatenate([[0], np.maximum(token_widths, 0).cumsum()])
        assert np.array_equal(place[runs], spans.bytes)  # so no token between two runs takes a byte
        ends.append(set(place.tolist()))
    assert {0, *spans.bytes[:, 1].tolist()} == ends[0] & ends[1]


@settings(derandomize=True, database=None, deadline=None, max_examples=1000)
@given(st.lists(TEXTS, min_size=10, max_size=10))
def test_spans_hold_every_byte_of_10_000_texts_once_for_every_pair_of_tokenizers(texts):
    for text in texts:
        sides = {name: widths(spelling(TOKENIZERS[name]), ids_of(name, text), text) for name in TOKENIZERS}
        for first, second in PAIRS:
            spans = align(sides[first], sides[second])
            check(spans, (sides[first], sides[second]), len(text.encode()))
            if first == second:
                assert spans.one_to_one.all() and len(spans) == len(sides[first])


def said(name: str, ids) -> list[str]:
    return TOKENIZERS[name].convert_ids_to_tokens(list(ids))


def test_an_emoji_over_several_tokens_is_cut_where_both_cut_it():
    text = "a\U0001f600b"
    assert said("bpe", ids_of("bpe", text)) == ["\u2581a", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "b"]
    spans, _ = spans_of(text, "byte-level", "bpe")
    assert spans.one_to_one.all() and spans.bytes[:, 1].tolist() == [1, 2, 3, 4, 5, 6]
    assert said("byte-level-2", ids_of("byte-level-2", text)) == ["a", "\u00f0\u0141", "\u013a\u0122", "b"]
    spans, _ = spans_of(text, "byte-level-2", "bpe")
    assert spans.student.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert spans.teacher.tolist() == [[0, 1], [1, 3], [3, 5], [5, 6]]
    spans, _ = spans_of(text, "byte-level-2", "unigram")
    # The dummy prefix is a token here, and goes with the first word; the emoji is one token.
    assert spans.student.tolist() == [[0, 1], [1, 3], [3, 4]]
    assert spans.teacher.tolist() == [[0, 2], [2, 3], [3, 4]]


def test_a_number_in_one_token_is_one_span_with_its_digits():
    text = "201"
    assert len(ids_of("byte-level-2", text)) == 1
    spans, _ = spans_of(text, "byte-level-2", "bpe")
    assert said("bpe", ids_of("bpe", text)) == ["\u2581", "2", "0", "1"]
    assert spans.student.tolist() == [[0, 1]] and spans.teacher.tolist() == [[0, 4]]
    assert spans.bytes.tolist() == [[0, 3]]


def test_cjk_of_three_bytes_a_character():
    spans, _ = spans_of("\u4e2d\u6587", "byte-level", "unigram")
    assert spans.bytes[-1, 1] == 6
    assert spans.bytes[:, 1].tolist()[-1] == 6 and len(spans) >= 2


@pytest.mark.parametrize("text", [" two", "  two", "\n two", "two ", ""])
def test_leading_blanks_are_the_text_s_but_the_one_that_is_put_before_it(text):
    for first, second in PAIRS:
        spans, sides = spans_of(text, first, second)
        check(spans, sides, len(text))
    taken = widths(spelling(TOKENIZERS["unigram"]), ids_of("unigram", text), text)
    assert taken.sum() == len(text) and (taken[:1] == 0).all()


def test_a_blank_inside_the_first_word_s_token_takes_no_byte():
    assert said("bpe", ids_of("bpe", "river")) == ["\u2581river"]
    assert widths(spelling(TOKENIZERS["bpe"]), ids_of("bpe", "river"), "river").tolist() == [5]


# --- control tokens -----------------------------------------------------------------------------


def with_control(name: str, text: str, before=(), after=()) -> np.ndarray:
    tokenizer = TOKENIZERS[name]
    control = [tokenizer.convert_tokens_to_ids(list(tokens)) for tokens in (before, after)]
    return widths(spelling(tokenizer), [*control[0], *ids_of(name, text), *control[1]], text)


def test_the_beginning_of_one_side_is_in_no_span_and_moves_nothing():
    text = "the river 201"
    plain, _ = spans_of(text, "byte-level", "bpe")
    begun = align(with_control("byte-level", text), with_control("bpe", text, before=["<s>"]))
    assert begun.student.tolist() == plain.student.tolist()
    assert begun.teacher.tolist() == (plain.teacher + 1).tolist()
    assert begun.bytes.tolist() == plain.bytes.tolist()


def test_both_ends_are_a_span_of_no_bytes():
    text = "the river"
    ended = align(
        with_control("byte-level", text, after=["<|im_end|>"]), with_control("bpe", text, after=["</s>"])
    )
    assert ended.bytes[-1].tolist() == [9, 9] and ended.one_to_one[-1]
    one = align(with_control("byte-level", text), with_control("bpe", text, after=["</s>"]))
    assert one.bytes[-1].tolist()[1] == 9 and len(one) == len(ended) - 1
    two = align(
        with_control("byte-level", text, after=["<|im_end|>", "<|endoftext|>"]),
        with_control("bpe", text, after=["</s>"]),
    )
    assert (two.student[-1, 1] - two.student[-1, 0], two.teacher[-1, 1] - two.teacher[-1, 0]) == (2, 1)


def test_both_beginnings_and_only_one_dummy_prefix():
    spans = align(np.array([-1, 3, -1]), np.array([-1, 0, 3, -1]))
    assert spans.student.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert spans.teacher.tolist() == [[0, 1], [1, 3], [3, 4]]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([0, 2, 1], [3], [(0, 3, 0, 1)]),  # of no bytes before, on one side: with what follows
        ([0, 3], [0, 3], [(0, 1, 0, 1), (1, 2, 1, 2)]),  # on both: a span of its own
        ([0, 0, 3], [0, 3], [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ([3, 0], [3], [(0, 2, 0, 1)]),  # at the end: with what was before
        ([3, 0], [1, 2, 0], [(0, 1, 0, 2), (1, 2, 2, 3)]),
        ([1, 0, 2], [3], [(0, 3, 0, 1)]),  # inside
        ([1, -1, 2], [3], [(0, 3, 0, 1)]),
        ([1, -1, 2], [1, 2], [(0, 1, 0, 1), (2, 3, 1, 2)]),
        ([1, 0, 2], [1, 2], [(0, 1, 0, 1), (1, 3, 1, 2)]),
        ([0], [], []),
        ([-1], [-1], [(0, 1, 0, 1)]),
        ([], [], []),
        ([2, -1, 0], [2], [(0, 1, 0, 1)]),
        ([2, 0, -1], [2, -1], [(0, 1, 0, 1), (1, 3, 1, 2)]),
    ],
)
def test_tokens_without_bytes(student, teacher, expected):
    sides = np.array(student, dtype=np.int64), np.array(teacher, dtype=np.int64)
    spans = align(*sides)
    found = [(*s, *t) for s, t in zip(spans.student.tolist(), spans.teacher.tolist(), strict=True)]
    assert found == expected


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(st.data())
def test_spans_of_any_widths(data):
    size = data.draw(st.integers(0, 12))

    def side():
        cuts = sorted(data.draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
        found = np.diff([0, *cuts, size]).tolist() if size else []
        for _ in range(data.draw(st.integers(0, 3))):
            found.insert(data.draw(st.integers(0, len(found))), data.draw(st.sampled_from([0, -1])))
        return np.array(found, dtype=np.int64)

    sides = side(), side()
    spans = align(*sides)
    check(spans, sides, size)
    assert (align(sides[0], sides[0]).one_to_one).all()


# --- TRL's issue 4393 ---------------------------------------------------------------------------


def by_decoded_texts(student: list[str], teacher: list[str]) -> list[tuple[list[int], list[int]]]:
    """TRL's alignment before its issue 4393 was closed: two texts grow by decoded tokens; a group ends where
    they are equal."""
    groups, taken, texts, at = [], ([], []), ["", ""], [0, 0]
    tokens = student, teacher
    while at[0] < len(student) or at[1] < len(teacher):
        side = 0 if (len(texts[0]) <= len(texts[1]) and at[0] < len(student)) or at[1] >= len(teacher) else 1
        texts[side] += tokens[side][at[side]]
        taken[side].append(at[side])
        at[side] += 1
        if texts[0] == texts[1] and texts[0]:
            groups.append(taken)
            taken, texts = ([], []), ["", ""]
    return [*groups, taken] if any(taken) else groups


def test_trl_4393_a_beginning_on_one_side_leaves_the_rest_aligned():
    """With decoded texts the beginning's own text keeps the two apart to the end, and all is one group."""
    text = "the river falls"
    student = ["<s>", "the", " river", " falls"]
    assert by_decoded_texts(student[1:], student[1:]) == [([n], [n]) for n in range(3)]
    assert by_decoded_texts(student, student[1:]) == [([0, 1, 2, 3], [0, 1, 2])]
    spans = align(with_control("bpe", text, before=["<s>"]), with_control("byte-level", text))
    assert len(spans) >= 3 and (spans.bytes[:, 1] - spans.bytes[:, 0]).max() < len(text)


def test_trl_4393_parts_of_a_character_have_their_own_bytes():
    """Decoded one by one each part is U+FFFD, of the same length as the character and never the same text."""
    text = "a \U0001f600 b"
    decoded = [
        [TOKENIZERS[name].decode([number]) for number in ids_of(name, text)]
        for name in ("byte-level", "byte-level-2")
    ]
    assert "\ufffd" in decoded[0] and "\ufffd" not in "".join(decoded[1])
    (*_, last) = by_decoded_texts(*decoded)
    assert len(last[0]) > 4  # everything behind the emoji with it
    spans, sides = spans_of(text, "byte-level", "byte-level-2")
    check(spans, sides, 8)
    assert spans.bytes.tolist()[-1] == [6, 8] and spans.one_to_one[-1]


def test_trl_s_walk_over_offsets_is_the_same_where_all_tokens_take_bytes():
    trainer = pytest.importorskip("trl.experimental.gold.gold_trainer")
    for text in ("the river 201 falls", "\u4e2d \U0001f600 x", "201 caf\u00e9"):
        spans, sides = spans_of(text, "byte-level", "byte-level-2")
        ends = [side.cumsum() for side in sides]
        offsets = [np.stack([end - side, end], 1).tolist() for end, side in zip(ends, sides, strict=True)]
        groups = trainer.ULDLoss._align_by_byte_offsets(*offsets)
        for runs, found in zip((spans.student, spans.teacher), groups, strict=True):
            assert [list(range(*run)) for run in runs.tolist()] == found


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text"), [("NFC", "cafe\u0301 x"), ("NFD", "caf\u00e9 x"), ("NFKC", "\ufb01x")]
)
def test_a_tokenizer_that_normalises_refuses_the_texts_that_it_changes_and_says_how(form, text):
    tokenizer = tiny.other_tokenizer(CORPUS, normalizer=getattr(normalizers, form)())
    spelt = spelling(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(AlignmentError, match=rf"normalises the text \({form}\), from byte"):
        widths(spelt, ids, text)
    plain = "the river 201"
    assert widths(spelt, tokenizer(plain, add_special_tokens=False)["input_ids"], plain).sum() == len(plain)


def test_another_change_of_the_text_is_told_with_its_place():
    tokenizer = tiny.other_tokenizer(CORPUS, normalizer=normalizers.Lowercase())
    ids = tokenizer("the River", add_special_tokens=False)["input_ids"]
    with pytest.raises(AlignmentError, match=r"another text, from byte 4 on: 'the river' for 'the River'"):
        widths(spelling(tokenizer), ids, "the River")


def test_the_character_that_sentencepiece_writes_for_a_blank_is_refused():
    for name in ("bpe", "unigram"):
        with pytest.raises(AlignmentError, match="another text"):
            widths(spelling(TOKENIZERS[name]), ids_of(name, "a\u2581b"), "a\u2581b")
    text = "a\u2581b"
    assert widths(spelling(TOKENIZERS["byte-level"]), ids_of("byte-level", text), text).sum() == 5


def test_a_text_that_looks_like_a_byte_is_text_or_refused_and_never_a_byte():
    """The Unigram model of `tokenizers` takes it for that byte's token, BPE by its characters."""
    text = "<0xE2>"
    for name in ("byte-level", "bpe"):
        assert widths(spelling(TOKENIZERS[name]), ids_of(name, text), text).sum() == 6
    with pytest.raises(AlignmentError, match="another text"):
        widths(spelling(TOKENIZERS["unigram"]), ids_of("unigram", text), text)


def test_an_unknown_token_spells_nothing():
    spelt = Spelling((b"a", None, b"b"), {})
    with pytest.raises(AlignmentError, match=r"token 1 \(id 1\) spells no known bytes"):
        widths(spelt, [0, 1], "ax")
    with pytest.raises(AlignmentError, match="id 7"):
        widths(spelt, [7], "x")


def test_answers_of_different_lengths_are_not_aligned():
    with pytest.raises(AlignmentError, match="spell 3 bytes, the teacher's 2"):
        align(np.array([3]), np.array([2]))


def test_a_cut_answer_is_refused_since_its_tokens_spell_less():
    ids = ids_of("byte-level", "the river falls")
    with pytest.raises(AlignmentError, match="from byte 9 on"):
        widths(spelling(TOKENIZERS["byte-level"]), ids[:-1], "the river falls")


def test_a_vocabulary_that_drops_blanks_is_refused():
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "two": 1, "words": 2, "##s": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="do not spell the text"):
        spelling(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))


# --- rows ---------------------------------------------------------------------------------------


def row_of(name: str, prompts: list[str], answers: list[str]) -> tuple[list[int], list[int]]:
    ids, mask = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        given, learned = ids_of(name, prompt), [*ids_of(name, answer), TOKENIZERS[name].eos_token_id]
        ids += given + learned
        mask += [0] * len(given) + [1] * len(learned)
    return ids, mask


PAIR = "byte-level-2", "bpe"


def test_a_row_s_spans_are_those_of_its_answers_among_the_learned_tokens():
    answers = ["the river 201", "\u4e2d \U0001f600"]
    rows = [row_of(name, ["Q: ", " next?"], answers) for name in PAIR]
    found = align_row(*(spelling(TOKENIZERS[name]) for name in PAIR), *rows, answers)
    assert [found.student[-1, 1], found.teacher[-1, 1]] == [sum(mask) for _, mask in rows]
    assert found.bytes[-1].tolist() == [13 + 8, 13 + 8]  # the end of the second answer
    ends = ["<|im_end|>"], ["</s>"]
    first = align(*(with_control(name, answers[0], after=end) for name, end in zip(PAIR, ends, strict=True)))
    assert np.array_equal(found.student[: len(first)], first.student)
    assert np.array_equal(found.teacher[: len(first)], first.teacher)
    learned = [np.asarray(ids)[np.asarray(mask) == 1] for ids, mask in rows]
    words = []
    for name, ids, runs in zip(PAIR, learned, (found.student, found.teacher), strict=True):
        decode = TOKENIZERS[name].decode
        words.append([decode(ids[first:last], skip_special_tokens=True).strip() for first, last in runs])
    assert words[0] == words[1] and "201" in words[0]


def test_rows_of_other_answers_are_refused():
    spelt = [spelling(TOKENIZERS[name]) for name in PAIR]
    prompts, texts = ["a", "b"], ["the", "river falls"]
    rows = [row_of(name, prompts, texts) for name in PAIR]
    for wrong, message in (
        (["the"], "the student's row has 2 answers for 1 texts"),
        (["the", "River falls"], "answer 1, student: its tokens spell another text, from byte 0 on"),
    ):
        with pytest.raises(AlignmentError, match=message):
            align_row(*spelt, *rows, wrong)
    ids, mask = rows[1]
    with pytest.raises(AlignmentError, match="answer 1, teacher: its tokens spell another text, from byte"):
        align_row(*spelt, rows[0], (ids[:-2], mask[:-2]), texts)
    with pytest.raises(AlignmentError, match="the teacher's row has 1 answers for 2 texts"):
        align_row(*spelt, rows[0], row_of("bpe", ["a"], ["the"]), texts)


def test_a_row_without_an_answer_has_no_span():
    spelt = spelling(TOKENIZERS["bpe"])
    assert len(align_row(spelt, spelt, ([5, 6], [0, 0]), ([5, 6], [0, 0]), [])) == 0
    # A first token is predicted by nothing, so it is not learned.
    assert len(align_row(spelt, spelt, ([300], [1]), ([300], [1]), [])) == 0


# --- spelling -----------------------------------------------------------------------------------


def test_the_byte_alphabet_is_that_of_tokenizers():
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert {byte_level(letter) for letter in letters} == {bytes([byte]) for byte in range(256)}
    for byte in range(128):
        (found,) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
            chr(byte)
        )
        assert byte_level(found[0]) == bytes([byte])


def test_words_that_a_tokenizer_only_keeps_whole_are_text():
    tokenizer = tiny.tokenizer(CORPUS)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    text = "<think>the"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert widths(spelling(tokenizer), ids, text)[0] == 7
    spans = align(widths(spelling(tokenizer), ids, text), with_control("bpe", text))
    assert spans.bytes[0].tolist() == [0, 7]


def test_a_tokenizer_that_puts_a_blank_first_spells_the_text_all_the_same():
    from tokenizers import pre_tokenizers as before

    tokenizer = tiny.tokenizer(CORPUS)
    tokenizer.backend_tokenizer.pre_tokenizer = before.ByteLevel(add_prefix_space=True)
    ids = tokenizer("river", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("\u0120")
    assert widths(spelling(tokenizer), ids, "river").sum() == 5


def test_common_tokens_of_one_vocabulary_are_all_of_it():
    for name in TOKENIZERS:
        ours, theirs = common_tokens(spelling(TOKENIZERS[name]), spelling(TOKENIZERS[name]))
        assert ours.tolist() == theirs.tolist() == list(range(len(TOKENIZERS[name])))


def test_common_tokens_of_two_vocabularies_spell_the_same():
    student, teacher = TOKENIZERS["byte-level"], TOKENIZERS["bpe"]
    found = dict(
        zip(*(ids.tolist() for ids in common_tokens(spelling(student), spelling(teacher))), strict=True)
    )
    assert len(set(found.values())) == len(found)
    names = {student.convert_ids_to_tokens(s): teacher.convert_ids_to_tokens(t) for s, t in found.items()}
    assert names["\u0120river"] == "\u2581river" and names["\u00f0"] == "<0xF0>"
    assert names["a"] == "a"  # and not <0x61>, which is never said
    assert "<|im_end|>" not in names
    ends = student.eos_token_id, teacher.eos_token_id
    with_ends = common_tokens(spelling(student), spelling(teacher), ends)
    assert ends in set(zip(*(ids.tolist() for ids in with_ends), strict=True))
    assert len(with_ends[0]) == len(found) + 1

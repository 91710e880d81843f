"""Rows, template, mask and split."""

import pandas as pd
import pytest
import tiny

from kdag.config.chat import Chat as Settings
from kdag.config.sources import Data
from kdag.data import chat, rows
from kdag.job.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])


def subset(data, tokenizer, positions=None, **changes):
    """(train, heldout, report), the parts as data frames."""
    keys = {"train_rows": 10, "heldout_rows": 4, "max_tokens": 200, "overlong": "drop", **changes}
    parts = {"train": [], "heldout": []}
    report = rows.subset(
        data,
        tokenizer,
        chat.settle(Settings(), tokenizer, tokenizer, {tokenizer.eos_token_id}),
        Data(id="some/rows", **keys),
        lambda part, row: parts[part].append(row),
        positions,
    )
    return pd.DataFrame(parts["train"]), pd.DataFrame(parts["heldout"]), report


def test_mask_covers_the_answer_and_its_end_token_and_nothing_else(tokenizer):
    train, heldout, report = subset(tiny.rows(14), tokenizer)
    for row, source in zip(train.to_dict("records"), tiny.rows(14), strict=False):
        learned = [t for t, m in zip(row["input_ids"], row["response_mask"], strict=True) if m]
        assert tokenizer.decode(learned) == source["output"] + "<|im_end|>"
        given = [t for t, m in zip(row["input_ids"], row["response_mask"], strict=True) if not m]
        assert tokenizer.decode(given).endswith("<|im_start|>assistant\n")
    assert report["train"]["rows"] == 10
    assert list(heldout["row"]) == [10, 11, 12, 13]


def test_targets_are_shifted_once():
    assert rows.targets([7, 8, 9, 2], [0, 0, 1, 1]).tolist() == [-100, 9, 2, -100]


def test_end_token_is_learned_where_padding_equals_it(tokenizer):
    """The mask knows positions, not ids: pad = eos must not hide the end of an answer."""
    train, _, _ = subset(tiny.rows(14), tokenizer)
    row = train.iloc[0]
    assert rows.targets(row["input_ids"], row["response_mask"])[-2] == tokenizer.eos_token_id


def test_heldout_never_holds_a_row_that_trains(tokenizer):
    rows = tiny.rows(14)
    rows[12] = {**rows[3], "output": "Another answer."}
    train, heldout, report = subset(rows, tokenizer)
    assert report["heldout_repeats_train"] == [12]
    assert not set(train["prompt"]) & set(heldout["prompt"])


def test_overlong_rows_are_dropped_cut_or_refused(tokenizer):
    rows = tiny.rows(14)
    rows[5]["output"] = tiny.sentence(__import__("random").Random(0), 120)
    train, _, report = subset(rows, tokenizer, max_tokens=100)
    assert report["dropped_overlong"] == [5] and len(train) == 9
    train, _, report = subset(rows, tokenizer, max_tokens=100, overlong="truncate")
    assert report["truncated"] == [5] and len(train.iloc[5]["input_ids"]) == 100
    with pytest.raises(UserError, match="row 5 has"):
        subset(rows, tokenizer, max_tokens=100, overlong="error")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": ""}, "row 3: field 'output' is empty"),
        ({"output": "  \n"}, "row 3: field 'output' is empty"),
        ({"output": 7}, "row 3: field 'output' must be text, got int"),
        ({"instruction": None}, "row 3: field 'instruction' must be text, got NoneType"),
        ({"input": ["x"]}, "row 3: field 'input' must be text, got list"),
    ],
)
def test_bad_row_stops_with_number_and_reason(tokenizer, change, reason):
    rows = tiny.rows(14)
    rows[3] |= change
    with pytest.raises(UserError, match=reason.replace("(", r"\(")):
        subset(rows, tokenizer)


def test_a_row_without_a_field_is_named(tokenizer):
    rows = tiny.rows(14)
    del rows[2]["output"]
    with pytest.raises(UserError, match="row 2: field 'output' is missing; the row has instruction, input"):
        subset(rows, tokenizer)


def settle(teacher, student, **keys):
    return chat.settle(Settings(**keys), teacher, student, {teacher.eos_token_id})


def test_pair_with_other_vocabulary_or_template_is_refused(tokenizer):
    other = tiny.tokenizer(["quite another corpus of text"] * 50, vocabulary=300)
    with pytest.raises(UserError, match="different vocabularies"):
        settle(tokenizer, other)
    retold = tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])
    settle(tokenizer, retold)
    retold.chat_template = retold.chat_template.replace("a tiny assistant", "a large assistant")
    with pytest.raises(UserError, match="different chat templates"):
        settle(tokenizer, retold)


def test_real_rows(tokenizer, shared_data):
    import json

    rows = json.loads((shared_data / "instructions" / "alpaca_999.json").read_text())
    train, heldout, report = subset(rows, tokenizer, train_rows=900, heldout_rows=99, max_tokens=4096)
    assert (
        report["train"]["rows"]
        + report["heldout"]["rows"]
        + sum(len(report[key]) for key in ("dropped_overlong", "heldout_repeats_train"))
        == 999
    )
    assert all(row[-1] == 1 for row in train["response_mask"])


def test_rows_beyond_the_models_positions_are_overlong(tokenizer):
    data = tiny.rows(14)
    data[5]["output"] = tiny.sentence(__import__("random").Random(0), 120)
    _, _, report = subset(data, tokenizer, positions=100, max_tokens=4096)
    assert report["dropped_overlong"] == [5]
    with pytest.raises(UserError, match="row 5 has .* the models have 100 positions"):
        subset(data, tokenizer, positions=100, max_tokens=4096, overlong="error")


def test_bad_rows_are_left_out_and_listed_if_the_configuration_says_so(tokenizer):
    data = tiny.rows(14)
    data[2]["output"], data[11] = "", {"instruction": 3, "output": "x"}
    train, heldout, report = subset(data, tokenizer, bad_rows="drop")
    assert (len(train), len(heldout)) == (9, 3)
    assert [entry["row"] for entry in report["bad"]] == [2, 11]
    assert report["bad"][0]["reason"] == "field 'output' is empty"
    with pytest.raises(UserError, match="bad_rows: drop"):
        subset(data, tokenizer)


def test_nan_in_an_optional_column_is_empty(tokenizer):
    data = tiny.rows(14)
    for row in data:
        row["input"] = float("nan")
    assert len(subset(data, tokenizer)[0]) == 10


def test_rows_with_reasoning_need_a_word_on_it(tokenizer):
    data = tiny.rows(14)
    data[1]["output"] = "<think>\nHm.\n</think>\n\nWren."
    with pytest.raises(UserError, match="row 1: it has reasoning; chat.thinking"):
        subset(data, tokenizer)


def test_a_base_student_takes_the_teachers_template(tokenizer):
    base = tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])
    base.chat_template = None
    assert settle(tokenizer, base).template == tokenizer.chat_template
    assert settle(base, tokenizer).template == tokenizer.chat_template
    with pytest.raises(UserError, match=r"chat\.template names a file"):
        settle(base, base)


def test_a_refused_pair_works_with_the_key_that_is_named(tokenizer, tmp_path):
    other = tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])
    other.chat_template = other.chat_template.replace("a tiny assistant", "a large assistant")
    with pytest.raises(UserError, match=r"chat\.template: teacher \(or student\)"):
        settle(tokenizer, other)
    assert settle(tokenizer, other, template="teacher").template == tokenizer.chat_template
    assert settle(tokenizer, other, template="student").template == other.chat_template
    file = tmp_path / "own.jinja"
    file.write_text(other.chat_template)
    assert settle(tokenizer, tokenizer, template=str(file)).template == other.chat_template
    with pytest.raises(UserError, match="known are teacher, student"):
        settle(tokenizer, other, template="chatlm")


def test_what_ends_an_answer_of_either_model_ends_it(tokenizer):
    made = chat.settle(Settings(), tokenizer, tokenizer, {0})
    assert made.end_ids == (0, tokenizer.eos_token_id), "the template's own end, and what was given"

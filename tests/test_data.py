"""Rows, template, mask and split."""

import pytest
import tiny

from kdag.data import rows, template
from kdag.job.errors import UserError

FIELDS = rows.Fields("instruction", "input", "output")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])


def subset(data, tokenizer, **changes):
    settings = {"train_rows": 10, "heldout_rows": 4, "max_tokens": 200, "overlong": "drop", **changes}
    return rows.subset(data, tokenizer, {tokenizer.eos_token_id}, fields=FIELDS, **settings)


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


def test_missing_field_and_too_few_rows(tokenizer):
    rows = tiny.rows(14)
    del rows[2]["output"]
    with pytest.raises(UserError, match="row 2: field 'output' is missing; the row has instruction, input"):
        subset(rows, tokenizer)
    with pytest.raises(UserError, match="but the data set has 9 rows"):
        subset(tiny.rows(9), tokenizer)


def test_pair_with_other_vocabulary_or_template_is_refused(tokenizer):
    other = tiny.tokenizer(["quite another corpus of text"] * 50, vocabulary=300)
    with pytest.raises(UserError, match="different vocabularies"):
        template.check_pair(tokenizer, other)
    retold = tiny.tokenizer([text for row in tiny.rows(100, seed=1) for text in row.values()])
    template.check_pair(tokenizer, retold)
    retold.chat_template = retold.chat_template.replace("a tiny assistant", "a large assistant")
    with pytest.raises(UserError, match="different chat templates"):
        template.check_pair(tokenizer, retold)


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

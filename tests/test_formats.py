"""Rows of every format as conversations, and files of every kind as rows."""

import csv
import gzip
import json

import pandas as pd
import pytest

from kdag.config.columns import Columns
from kdag.data.formats import conversation
from kdag.files import readers
from kdag.job.errors import UserError

ROW = {"instruction": "Name a bird.", "input": "", "output": "Wren."}
USER, SAID = {"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "Wren."}


def messages(row, **keys):
    return conversation(Columns(**keys), row).messages


def test_instruction_columns_with_system_and_history():
    row = {**ROW, "input": "In Wales.", "system": "Be brief.", "history": [["Hi", "Hello."]]}
    assert messages(row) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a bird.\n\nIn Wales."},
        SAID,
    ]


def test_messages_and_sharegpt_say_the_same():
    turns = [("system", "Be brief."), ("user", "Name a bird."), ("assistant", "Wren.")]
    openai = {"messages": [{"role": role, "content": text} for role, text in turns]}
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = {"conversations": [{"from": names[role], "value": text} for role, text in turns]}
    assert messages(openai) == messages(sharegpt) == [{"role": "system", "content": "Be brief."}, USER, SAID]
    assert messages({"talk": openai["messages"]}, messages_field="talk") == messages(openai)
    assert messages({"conversation": openai["messages"]}) == messages(openai)


def test_an_answer_of_weight_0_is_given_and_not_learned():
    talk = [USER, {**SAID, "weight": 0}, USER, {**SAID, "weight": 1}]
    found = conversation(Columns(), {"messages": talk})
    assert found.learned == [3] and found.messages == [USER, SAID, USER, SAID]


@pytest.mark.parametrize("thought", ["<think></think>", "<think>\n\n</think>\n\n"])
def test_an_empty_block_is_no_reasoning(thought):
    assert messages({**ROW, "output": f"{thought}Wren."}) == [USER, SAID]


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_a_call_may_have_no_arguments(arguments):
    call = {"function": {"name": "now", "arguments": arguments}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert messages(row)[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_parts_of_text_are_one_text_and_pictures_are_refused():
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a bird."}]
    assert messages({"messages": [{"role": "user", "content": parts}, SAID]}) == [USER, SAID]
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(ValueError, match="turn 0: only text can be learned, not image_url"):
        messages({"messages": [{"role": "user", "content": picture}, SAID]})


CALL = {"type": "function", "function": {"name": "find", "arguments": {"bird": "wren"}}}


@pytest.mark.parametrize(
    "turns",
    [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "1"}]},
                {"role": "tool", "content": "small", "tool_call_id": "1"},
                SAID,
            ]
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "find", "arguments": '{"bird": "wren"}'}}],
                },
                {"role": "tool", "content": "small"},
                SAID,
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "Name a bird."},
                {"from": "function_call", "value": '{"name": "find", "arguments": {"bird": "wren"}}'},
                {"from": "observation", "value": "small"},
                {"from": "gpt", "value": "Wren."},
            ]
        },
    ],
    ids=["openai", "arguments as text", "sharegpt"],
)
def test_calls_of_tools_and_their_results(turns):
    tool = {"type": "function", "function": {"name": "find", "parameters": {}}}
    found = conversation(Columns(), {**turns, "tools": json.dumps([tool])})
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = found.messages[1]["tool_calls"]
    assert call["function"] == CALL["function"], "arguments as an object, however they were written"
    assert found.tools == [tool] and found.learned == [1, 3]
    assert conversation(Columns(), turns, learn="last").learned == [3]


@pytest.mark.parametrize(
    "row",
    [
        {**ROW, "reasoning_content": "A small one."},
        {**ROW, "output": "<think>\nA small one.\n</think>\n\nWren."},
        {"messages": [USER, {**SAID, "reasoning_content": "A small one."}]},
        {"messages": [USER, {**SAID, "content": "<think>A small one.</think>Wren."}]},
    ],
)
def test_reasoning_is_told_apart_from_the_answer(row):
    assert messages(row)[-1] == {**SAID, "reasoning_content": "A small one."}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "must be a list of turns"),
        ({"messages": [["user", "x"]]}, "must be a list of turns"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "turn 0: role is 'narrator'"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [SAID]}, "first turn is assistant"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "turn 1 .assistant. is empty"),
        ({"messages": [USER, SAID, {"role": "system", "content": "x"}]}, "turn 2 is a system prompt"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{"}]},
            "not JSON",
        ),
        ({**ROW, "output": "Write </think> to end it."}, "a </think> that is the end of no <think>"),
        ({**ROW, "output": "<think>a</think>b", "reasoning_content": "c"}, "two reasonings for one answer"),
        ({"messages": [USER, {**SAID, "weight": 0}]}, "all its answers have weight 0"),
        ({"messages": [USER, {**SAID, "tool_calls": {"name": "x"}}]}, "tool_calls must be a list"),
        ({**ROW, "history": "Hi"}, "field 'history' cannot be a str"),
        ({**ROW, "history": [["Hi"]]}, r"must be a list of \[question, answer\]"),
        ({**ROW, "system": ["x"]}, "field 'system' must be text"),
        ({**ROW, "tools": "[{"}, "field 'tools' is not JSON"),
        ({**ROW, "tools": '["x"]'}, "must be a list of tools"),
    ],
)
def test_a_row_that_cannot_be_learned_says_why(row, reason):
    with pytest.raises(ValueError, match=reason):
        messages(row)


@pytest.mark.parametrize(
    ("columns", "keys", "problem"),
    [
        (["instruction", "context", "output"], {"input_field": "contxt"}, "no row has a column 'contxt'"),
        (["instruction", "context", "output"], {}, "input_field: the column 'context' would be left out"),
        (["instruction", "system_prompt", "output"], {}, "system_field: the column 'system_prompt'"),
        (["instruction", "input", "output", "chat_history"], {}, "history_field: the column 'chat_history'"),
        (["question", "answer"], {}, "no row has a column 'instruction'; there are question, answer"),
        (["messages", "system_prompt"], {}, "system_field: the column 'system_prompt'"),
        (["messages", "functions"], {}, "tools_field: the column 'functions'"),
    ],
)
def test_a_column_that_is_missing_or_would_vanish_is_named(columns, keys, problem):
    assert any(problem in line for line in Columns(**keys).problems(columns))


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        (["instruction", "input", "output", "id", "source", "text"], {}),
        (["instruction", "output"], {}),
        (["instruction", "context", "output"], {"input_field": None}),
        (["instruction", "context", "output"], {"input_field": "context"}),
        (["instruction", "input", "output", "system", "history"], {}),
        (["prompt", "prompt_id", "messages"], {}),
        (["conversations", "id", "input"], {}),
    ],
)
def test_columns_that_no_key_names_are_left_alone(columns, keys):
    assert Columns(**keys).problems(columns) == []


ROWS = [{"instruction": f'Say\u2028 {i}, "please".', "output": f"line\n{i}"} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(separator):
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", LINES.encode()),
        ("lines.json", LINES.encode()),
        ("array.json", json.dumps(ROWS).encode()),
        ("array.jsonl", json.dumps(ROWS, indent=1).encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("crlf.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("blank.jsonl", ("\n" + LINES.replace("\n", "\n\n")).encode()),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("packed.jsonl", gzip.compress(LINES.encode(), mtime=0)),
        ("packed.csv.gz", gzip.compress(table(",").encode(), mtime=0)),
        ("table.csv", table(",").encode()),
        ("bom.csv", b"\xef\xbb\xbf" + table(",").encode()),
        ("table.tsv", table("\t").encode()),
    ],
)
def test_every_file_of_text_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert list(readers.rows(tmp_path / name)) == ROWS
    if not name.endswith(".gz") and not content.startswith(b"\x1f"):
        assert readers.first_rows(tmp_path / name)[0] == ROWS[0]


def test_parquet_and_arrow_are_read_without_their_pictures(tmp_path):
    import datasets

    frame = pd.DataFrame(ROWS)
    frame["image"] = b"\x89PNG\xff"
    frame["picture"] = [{"bytes": b"\xff", "path": "x"}] * 5
    frame["number"] = [1.0, None, 3.0, 4.0, 5.0]
    frame["day"] = pd.Timestamp("2024-07-26")
    frame.to_parquet(tmp_path / "rows.parquet")
    datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "rows.parquet", arrow):
        target = tmp_path / "rows.jsonl"
        assert readers.copy(path, target, None) == 5
        found = [json.loads(line) for line in target.read_text().split("\n") if line]
        assert [{k: row[k] for k in ROWS[0]} for row in found] == ROWS
        assert set(found[0]) == {"instruction", "output", "number", "day"}
        assert found[1]["number"] is None


def test_what_a_nested_column_has_for_others_is_no_part_of_a_message(tmp_path):
    """Parquet gives every message every key, and every call the arguments of all tools."""
    calls = [
        {"function": {"name": name, "arguments": {key: "x"}}} for name, key in (("a", "bird"), ("b", "day"))
    ]
    rows = [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {**USER, "name": "n"},
            ]
        }
        for call in calls
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    assert list(readers.rows(tmp_path / "rows.parquet")) == rows


def test_only_as_many_rows_are_read_as_are_wanted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(LINES + "not JSON\n")
    assert readers.copy(file, tmp_path / "out", 5) == 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("x.jsonl", b"[1, 2]\n", "a JSON array of objects"),
        ("x.json", b'{\n"a": 1}', "an array of rows, or one row on each line"),
        ("x.json", b"\xff\xfe", "UTF-8"),
        ("x.jsonl", gzip.compress(LINES.encode(), mtime=0)[:-20], "cannot be read"),
        ("x.jsonl.gz", b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 20, "cannot be read"),
        ("x.parquet", b"PAR1 no", "not Parquet"),
        ("x.arrow", b"ARROW1 no", "not Arrow"),
        ("x.xlsx", b"", "a file that ends in"),
        ("x.csv", b"", "not a table"),
        ("x.csv", b"instruction,output\nHello, there,Hi\nHello, you,Hi\n", "more cells than its header"),
        ("x.csv", b'a,b\n1,2,3\n"', "not a table"),
        ("x.jsonl", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        list(readers.rows(tmp_path / name))
    assert "\n" not in str(error.value)

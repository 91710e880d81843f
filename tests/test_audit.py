"""The audit of printed tables: what it must find, and that it never rules out what is true."""

import math
import subprocess
import sys
from pathlib import Path

import audit
import pandas as pd
import pytest
import worth
from hypothesis import given, settings
from hypothesis import strategies as st

from kdag.report import stats

SCRIPT = Path(__file__).parents[1] / "tools" / "audit_table.py"
IFEVAL = {"prompts": 541, "instructions": 834}


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def cells(*values, name="a"):
    """{row: ...} of one level's values."""
    return pd.DataFrame([[name, *values]], columns=["model", *(f"prompt {i}" for i in range(len(values)))])


def possible(*values, largest=541):
    (row,) = audit.read_cells(cells(*values), {"prompts": [f"prompt {i}" for i in range(len(values))]})
    return audit.possible(row["prompts"], largest)


def test_the_published_table(shared_data):
    """541 and 834 for the students, 100 and 163 for the teacher."""
    table = pd.read_csv(shared_data / "published_table.csv", dtype=str)
    columns = audit.find_columns(list(table.columns[1:]))
    rows = audit.read_cells(table, columns)
    fits = [{unit: audit.possible(row[unit], IFEVAL[unit]) for unit in columns} for row in rows]
    assert fits[0] == {"prompts": [100, 200, 300, 400, 500], "instructions": [163, 326, 489, 652, 815]}
    assert all(row["prompts"] == [541] and 834 in row["instructions"] for row in fits[1:])
    rkl = [[value.count(n) for value in rows[2][unit]] for unit, n in IFEVAL.items()]
    assert rkl == [[320, 340], [560, 584]]

    text = run(
        *("--table", shared_data / "published_table.csv"),
        *("--prompts", shared_data / "ifeval" / "input_data.jsonl"),
    ).stdout
    pairs = text.partition("## The first prompts of the set")[2].splitlines()
    found = [line.split("|")[2].strip() for line in pairs if line.startswith("| ")][1:]
    assert found == ["100 prompts, 163 instructions"] + 4 * ["541 prompts, 834 instructions"]
    assert "No number of prompts up to 541 fits all rows" in text
    assert "541 fits most, 4 of 5 rows; not teacher (7B)." in text
    assert "0.5800 is none, 313/541 is 0.5786, 314/541 is 0.5804" in text
    assert "100, 200, 300, 400, 500 (all multiples of 100)" in text


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 600), st.integers(1, 5), st.booleans(), st.data())
def test_the_truth_is_never_ruled_out(n, decimals, percent, data):
    counts = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=4))
    factor = 100 if percent else 1
    mark = "%" if percent else ""
    assert n in possible(*(f"{factor * k / n:.{decimals}f}{mark}" for k in counts), largest=600)


def test_by_hand():
    assert possible("0.5", largest=10) == [2, 4, 6, 8, 10]  # 4/9 is 0.44, 5/9 is 0.56
    assert possible("0.3333", largest=20) == [3, 6, 9, 12, 15, 18]
    assert (
        possible("33.33", largest=20) == possible("**33.33%**", largest=20) == possible("0.3333", largest=20)
    )
    assert possible("0.125", "0.50", largest=20) == [8, 16]
    assert possible("1.0000", "0.0000", largest=5) == [1, 2, 3, 4, 5]
    assert possible("0.12345", largest=60) == []
    both_ways = audit.Printed("0.13", 13, 100), audit.Printed("0.12", 12, 100)
    assert [value.count(8) for value in both_ways] == [1, 1], "0.125 may have been rounded either way"


def test_chance_is_the_share_of_printed_values_that_n_allows():
    values = [audit.Printed(f"0.{d:03}", d, 1000) for d in range(1000)] + [audit.Printed("1.000", 1000, 1000)]
    for n in (7, 100, 541):
        share = sum(value.count(n) is not None for value in values) / len(values)
        assert audit.chance(values[:1], n) == pytest.approx(share, abs=2e-3)
    assert math.isclose(audit.chance(values[:2], 100), audit.chance(values[:1], 100) ** 2)


def test_rows_that_agree_and_rows_that_fit_nothing():
    table = pd.concat([cells("0.5915", name="a"), cells("0.4769", name="b|\nc")])
    text = audit.audit(table, IFEVAL, IFEVAL)
    assert "All rows can be out of the same number of prompts: " in text and "541" in text
    assert "b/ c" in text and "## Instructions" not in text
    text = audit.audit(cells("0.123456789"), {"prompts": 50}, {"prompts": 50})
    assert "No row's values are rounded counts of any number of prompts" in text
    text = audit.audit(cells("0.58", "0.6102"), IFEVAL, IFEVAL)
    assert "differ in their number of decimals" in text
    text = audit.audit(cells("0.5915"), {"prompts": 100}, {"prompts": 541})
    assert "yes: 320" in text, "the declared number is tried even above the largest"


@pytest.mark.parametrize(
    "text, message",
    [
        ("model,prompt\na,0.5\na,0.6\n", "two of the same name"),
        ("model,prompt\n", "no rows"),
        ("model,prompt\na,\n", "row 'a', prompt: '' is no accuracy"),
        ("model,prompt\na,0.58 ± 0.02\n", "is no accuracy"),
        ("model,prompt\na,150\n", "above 100 %"),
        ("model,accuracy\na,0.5 of 10\n", "is no accuracy"),
        ("model,prompt_or_inst\na,0.5\n", "of prompts or of instructions"),
        ("", "is no CSV"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "table.csv"
    file.write_text(text)
    done = run("--table", file)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


TORCHTUNE = """model,hellaswag_acc,hellaswag_acc_norm,commonsense_qa
Llama-3.2-1B,0.4517,0.6064,0.5536
SFT,0.4595,0.6132,0.5528
KD,0.4603,0.6157,0.5569
"""


def test_a_table_of_other_tasks_and_what_its_differences_are_worth(tmp_path):
    """torchtune's: KD is 8, 25 and 5 questions above SFT, of 10,042, 10,042 and 1,221."""
    (tmp_path / "table.csv").write_text(TORCHTUNE)
    sizes = ("--n", "hellaswag_acc=10042", "--n", "hellaswag_acc_norm=10042", "--n", "commonsense_qa=1221")
    text = run("--table", tmp_path / "table.csv", *sizes).stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "KD - SFT" in line]
    assert [row[3] for row in rows] == ["8", "25", "5"]
    assert [row[2] for row in rows] == ["0.08", "0.25", "0.41"]
    assert rows[0][4] == "-1.3 to 1.5" and rows[0][5] == "12 of 10042 (0.12 %)" and rows[2][5] == "never"
    assert "prompts" not in text.replace("(prompts, ", "")


def test_a_difference_is_found_on_as_many_disagreements_as_the_exact_test_allows():
    for difference in (6, 8, 25, 100):
        most = worth.most_disagreements(difference)
        won, lost = (most + difference) // 2, (most - difference) // 2
        assert won - lost == difference and stats.mcnemar_exact(won, lost) <= 0.05
        assert stats.mcnemar_exact(won + 1, lost + 1) > 0.05
    assert worth.most_disagreements(5) is None, "five of five is chance one time in sixteen"


def test_sizes_that_are_not_known_are_looked_for(tmp_path):
    (tmp_path / "table.csv").write_text("model,score\na,0.5915\nb,0.4769\n")
    text = run("--table", tmp_path / "table.csv").stdout
    assert "not given" in text and "possible numbers of items" in text and " 541" in text
    for wrong, said in (("score", "a whole number"), ("scor=541", "no column is called 'scor'")):
        done = run("--table", tmp_path / "table.csv", "--n", wrong)
        assert done.returncode == 1 and said in done.stderr


def test_output_file_is_what_is_printed(tmp_path):
    (tmp_path / "table.csv").write_text("model,prompt_acc,inst_acc\na,0.5915,0.6715\n")
    printed = run("--table", tmp_path / "table.csv").stdout
    run("--table", tmp_path / "table.csv", "--output", tmp_path / "out.md")
    assert printed and (tmp_path / "out.md").read_text() == printed
    assert "yes: 320" in printed and "yes: 560" in printed

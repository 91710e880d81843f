"""The inputs of ../shared/cases, after public reports, through the DAG as far as the check of both models."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import test_any
from conftest import ROOT, Project
from transformers import AutoTokenizer

pytestmark = pytest.mark.faults
CASES = ROOT.parent / "shared" / "cases"
# What is refused, by words of the one line; the others go through.
REFUSED = {
    "bnb_teacher": "stored quantised (bitsandbytes)",
    "input_field_typo": "contxt",
    "vocab_gt_embed_student": "tokens and its model only",
}
WORKS = (
    *("badgen", "date_template", "derive_smollm3", "eos_config_differs", "image_parquet", "json_with_lines"),
    *("leading_newline", "longer_than_positions", "merged_plus_adapter", "multi_template", "phi3_template"),
    *("qwen3_thinking", "special_in_answer"),
)


@pytest.fixture
def case(tmp_path):
    """case(name) -> (its folder, how the run ended), as far as nothing dear has run."""
    if not CASES.is_dir():
        pytest.skip("the folder ../shared/cases is not here")

    def run(name: str, *targets: str):
        made = subprocess.run(
            [sys.executable, CASES / name / "make.py", tmp_path / "x"],
            env={**os.environ, "KDAG": str(ROOT), "PYTHONPATH": str(CASES)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not made.returncode, made.stderr
        project = Project.__new__(Project)
        project.folder = tmp_path / "run"
        project.folder.mkdir()
        rules = ["-s", str(ROOT / "Snakefile"), "--configfile", str(tmp_path / "x" / "config.yaml")]
        wanted = [f"results/tiny/{target}" for target in targets]
        until = [] if targets else ["--until", "check_models"]
        profile = ["--workflow-profile", str(ROOT / "profiles" / "cpu")]
        command = [sys.executable, "-m", "snakemake", *rules, *profile, *until, "--", *wanted]
        done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=600)
        return project.folder / "results" / "tiny", done

    return run


@pytest.mark.parametrize("name", test_any.EXPERIMENTS)
def test_other_families_reach_the_table(name, tmp_path):
    test_any.through_the_dag(name, tmp_path, "table")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_and_nothing_is_trained(case, name):
    results, done = case(name)
    lines = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if REFUSED[name] in line]
    assert done.returncode and lines and "Traceback" not in done.stdout + done.stderr
    assert not list(results.glob("check/*.json"))


@pytest.mark.parametrize("name", WORKS)
def test_what_can_work_does(case, name):
    further = [f"eval/{model}-untrained/samples.jsonl" for model in ("teacher", "student")]
    results, done = case(name, *(further if name in ("date_template", "eos_config_differs") else ()))
    assert not done.returncode, (done.stdout + done.stderr)[-4000:]
    RIGHT.get(name, lambda results: None)(results)


def learned(results) -> list[str]:
    """The text of what each training row teaches."""
    folder = results.parents[1] / "resources" / "models"
    student = next(folder.glob("student-*/model"), None) or results / "student" / "model"
    tokenizer = AutoTokenizer.from_pretrained(student)
    table = pd.read_parquet(results / "data" / "train.parquet")
    rows = zip(table["input_ids"], table["response_mask"], strict=True)
    return [tokenizer.decode([t for t, learn in zip(ids, mask, strict=True) if learn]) for ids, mask in rows]


def prompts(results, model: str) -> list[str]:
    lines = (results / "eval" / f"{model}-untrained" / "samples.jsonl").read_text().splitlines()
    return [json.loads(line)["rendered_prompt"] for line in lines]


def one_date(results):
    day = json.loads((results / "data" / "chat.json").read_text())["date"]
    assert day[:4] in prompts(results, "teacher")[0]
    assert prompts(results, "teacher") == prompts(results, "student")


def one_set_of_ends(results):
    settings = [
        results / "eval" / f"{model}-untrained" / "generation.json" for model in ("teacher", "student")
    ]
    ends = [json.loads(file.read_text())["eos_token_ids"] for file in settings]
    assert ends[0] == ends[1] and len(ends[0]) > 1


def text_is_text(results):
    """Rows 3 and 4 of the case have control tokens in their answers; what ends an answer is one of them."""
    said = learned(results)
    assert any("<|endoftext|>" in text for text in said)
    table = pd.read_parquet(results / "data" / "train.parquet")
    for ids, mask in zip(table["input_ids"], table["response_mask"], strict=True):
        answer = [t for t, learn in zip(ids, mask, strict=True) if learn]
        assert not set(answer[:-1]) & {0, 1, 2} and answer[-1] == 2


def ends_once(results):
    assert all(text.count("<|end|>") == 1 and text.endswith("<|end|>") for text in learned(results))


def no_empty_thoughts(results):
    assert not any("think>" in text for text in learned(results))


def line_break_kept(results):
    assert sum(text.startswith("\n") for text in learned(results)) == 1


def long_row_left_out(results):
    report = json.loads((results / "data" / "manifest.json").read_text())["report"]
    assert any(5 in rows for rows in report.values() if isinstance(rows, list)), report


RIGHT = {
    "date_template": one_date,
    "eos_config_differs": one_set_of_ends,
    "special_in_answer": text_is_text,
    "phi3_template": ends_once,
    "qwen3_thinking": no_empty_thoughts,
    "leading_newline": line_break_kept,
    "longer_than_positions": long_row_left_out,
}

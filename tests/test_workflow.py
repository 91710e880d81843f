"""The real Snakefile on the tiny experiment: end to end, what reruns after which change, and its style."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml
from conftest import Project
from test_docs import blocks

ROOT = Path(__file__).parents[1]
STRATEGIES = ["fkl", "rkl", "skewed-fkl", "skewed-rkl"]
STUDENTS = ["sft", *STRATEGIES]
TABLE = {"aggregate": 1, "write_report": 1, "write_cards": 1}
EVERY_EVALUATION = {"generate": 8, "score": 8}
FETCHES = ("fetch_dataset", "fetch_nltk_data", "fetch_prompts", "fetch_student", "fetch_teacher")


def planned(project: Project, *arguments) -> tuple[Counter, list[str]]:
    """({rule: jobs}, [wildcards of each job]) that a dry run would execute, without rule all."""
    out = project.snakemake("-n", *arguments).stdout
    rules = Counter(re.findall(r"^(?:local)?rule (\w+):", out, re.M))
    rules.pop("all", None)
    return rules, re.findall(r"^    wildcards: (.*)$", out, re.M)


def test_end_to_end_gives_a_table_of_eight_rows(finished):
    table = (finished.results / "report" / "table.md").read_text()
    header, rule, *rows = [line for line in table.splitlines() if line.startswith("|")][:10]
    assert header.split("|")[1].strip() == "model"
    assert [cell.strip() for cell in header.split("|")[2:6]] == [
        "prompt_level_strict_accuracy",
        "inst_level_strict_accuracy",
        "prompt_level_loose_accuracy",
        "inst_level_loose_accuracy",
    ]
    labels = [row.split("|")[1].strip() for row in rows]
    assert labels == [
        "teacher, untrained",
        "teacher",
        "student, untrained",
        *(f"student - {s}" for s in STUDENTS),
    ]
    assert "4 prompts, 5 instructions" in table
    assert "report/table.md" in finished.log


def test_second_run_does_nothing_and_says_so(finished):
    assert "Nothing to be done" in finished.snakemake().stderr


def test_run_again_from_nothing_gives_the_same_bytes(finished, tmp_path):
    """One strategy's whole chain, up to its answers, scores and fidelity; the others are made like it."""
    again = Project(tmp_path)
    # The same paths, since the configuration and the names of fetched sources hold them.
    raw = yaml.safe_load(finished.config.read_text())
    (again.folder / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    student, measured = "students/skewed-fkl/seed0", "eval/skewed-fkl-seed0"
    wanted = [f"{measured}/scores.json", f"{measured}/fidelity.json"]
    again.snakemake(*(f"results/tiny/{name}" for name in wanted))
    weights = [f"{home}/model/model.safetensors" for home in ("teacher", student)]
    logs = ["teacher/training.jsonl", f"{student}/training.jsonl", f"{measured}/samples.jsonl"]
    for name in ("cache/manifest.json", *weights, *logs, *wanted):
        assert (again.results / name).read_bytes() == (finished.results / name).read_bytes(), name


@pytest.fixture(scope="module")
def changed(finished, tmp_path_factory):
    """Plan the finished experiment under a changed configuration."""
    folder = tmp_path_factory.mktemp("configs")

    def plan(change, text=lambda text: text):
        raw = yaml.safe_load(finished.config.read_text())
        change(raw)
        config = folder / "changed.yaml"
        config.write_text(text(yaml.safe_dump(raw, sort_keys=False)))
        return planned(finished, "--configfile", str(config))

    return plan


def of(*strategies, extra=()):
    """The jobs that each strategy's chain and the table take."""
    n = len(strategies)
    return Counter(
        {
            "distill": n,
            "generate": n,
            "score": n,
            "measure_fidelity": n,
            "aggregate": 1,
            "write_report": 1,
            "write_cards": 1,
            **dict(extra),
        }
    )


@pytest.mark.parametrize(
    ("strategy", "key", "value"),
    [("skewed-rkl", "skew_lambda", 0.3), ("fkl", "temperature", 3), ("rkl", "divergence", "jsd")],
)
def test_a_key_of_one_strategy(changed, strategy, key, value):
    rules, wildcards = changed(lambda raw: raw["strategies"][strategy].update({key: value}))
    assert rules == of(strategy)
    assert all(strategy in w for w in wildcards)


def test_spelling_order_comments_and_defaults_rerun_nothing(changed):
    def respell(raw):
        raw["distillation"]["temperature"] = 2
        raw["distillation"] = dict(reversed(raw["distillation"].items()))
        raw["distillation"]["weight_decay"] = 0.01
        raw["strategies"]["fkl"]["kl_loss_weight"] = 0.5

    rules, _ = changed(respell, lambda text: "# a comment\n" + text.replace("0.001", "1e-3"))
    assert not rules


def test_threads_and_resources_rerun_nothing(finished):
    rules, _ = planned(finished, "--set-resources", "distill:mem_mb=2000")
    assert not rules


def test_add_rename_and_remove_a_strategy(changed):
    rules, wildcards = changed(lambda raw: raw["strategies"].update({"js": {"divergence": "jsd"}}))
    assert rules == of("js") and all("js" in w for w in wildcards)

    def rename(raw):
        raw["strategies"]["kl"] = raw["strategies"].pop("fkl")

    rules, wildcards = changed(rename)
    assert rules == of("kl")
    rules, _ = changed(lambda raw: raw["strategies"].pop("rkl"))
    assert rules == TABLE


OWN = {"answers": "student", "divergence": "rkl"}


@pytest.mark.parametrize(
    ("strategy", "further"),
    [
        ({"method": "seqkd"}, {"answer_teacher": 1}),
        ({"answers": "teacher", "divergence": "fkl"}, {"answer_teacher": 1, "cache_answers": 1}),
        (OWN, {"distill_on_policy": 1, "distill": 0}),
        ({"method": "gkd"}, {"distill_on_policy": 1, "distill": 0}),
    ],
)
def test_a_strategy_on_other_answers_runs_its_own_chain_only(changed, strategy, further):
    rules, wildcards = changed(lambda raw: raw["strategies"].update({"new": strategy}))
    assert rules == +of("new", extra=further)
    assert all("new" in each or "answers=" in each for each in wildcards)


def test_methods_go_through_the_dag_on_the_budget_of_sft(finished, tmp_path):
    """The students only; what has that budget already is not trained again."""
    project = finished.copy(tmp_path / "project")
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    growing = {"from": 0.5, "to": 1, "over": "adaptive"}
    new = {"pairs": {"method": "distillm-2"}, "grown": {"method": "distillm", "student_share": growing}}
    config["strategies"] |= new
    config |= {"sampling": {"max_new_tokens": 5}, "budget": {"equal": "tokens"}}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    wanted = [f"results/tiny/students/{name}/seed0/manifest.json" for name in new]
    rules, _ = planned(project, "--", *wanted)
    assert rules == {"answer_teacher": 1, "distill_on_policy": 2}
    project.snakemake("--", *wanted)
    sft = json.loads((project.results / "students/sft/seed0/manifest.json").read_text())["cost"]
    for name in new:
        cost = json.loads((project.results / f"students/{name}/seed0/manifest.json").read_text())["cost"]
        log = [
            json.loads(line) for line in (project.results / f"students/{name}/seed0/training.jsonl").open()
        ]
        largest = max(step["answer_tokens"] for step in log)
        assert abs(cost["answer_tokens"] - sft["answer_tokens"]) <= largest < cost["answer_tokens"]
        assert cost["sampled_tokens"] > 0 and cost["steps"] == len(log)
    assert "heldout_ce" in log[0] and log[0]["student_share"] == 0.5


def test_sampling_concerns_those_who_sample(changed):
    def sampled(raw, **sampling):
        raw["strategies"] |= {"seqkd": {"method": "seqkd"}, "opd": OWN}
        raw["sampling"] = sampling

    assert not changed(lambda raw: raw.update({"sampling": {"temperature": 0.5}}))[0]
    both, _ = changed(sampled)
    warm, _ = changed(lambda raw: sampled(raw, temperature=0.5))
    assert both == warm  # nothing of the six strategies and baselines that are there


def test_reordering_strategies_remakes_the_table(changed):
    def reverse(raw):
        raw["strategies"] = dict(reversed(raw["strategies"].items()))

    assert changed(reverse)[0] == TABLE


def test_an_evaluation_key(changed):
    rules, _ = changed(lambda raw: raw["evaluation"].update(max_new_tokens=10))
    assert rules == {**EVERY_EVALUATION, **TABLE}


def test_a_distillation_key(changed):
    rules, _ = changed(lambda raw: raw["distillation"].update(learning_rate=2e-3))
    assert rules == of(*STUDENTS, extra={"distill": 4, "sft_student": 1}.items())
    rules, _ = changed(lambda raw: raw["distillation"].update(temperature=3))
    assert rules == of(*STRATEGIES)


def test_a_teacher_key_leaves_the_plain_student_alone(changed):
    rules, wildcards = changed(lambda raw: raw["teacher_training"].update(learning_rate=2e-3))
    assert rules == {
        "sft_teacher": 1,
        "cache_teacher": 1,
        "distill": 4,
        "generate": 5,
        "score": 5,
        "measure_fidelity": 6,
        "aggregate": 1,
        "write_report": 1,
        "write_cards": 1,
    }
    rules, _ = changed(lambda raw: raw["teacher_training"].update(lora_rank=2))
    assert rules["check_models"] == rules["sft_teacher"] == 1 and rules["distill"] == 4
    rules, _ = changed(lambda raw: raw["teacher_cache"].update(rows_per_shard=7))
    assert "sft_student" not in rules and rules["cache_teacher"] == 1


def test_a_chat_key_runs_what_renders_and_fetches_nothing(changed):
    rules, _ = changed(lambda raw: raw.update(chat={"system": "Be brief."}))
    assert rules["settle_chat"] == rules["subset"] == rules["sft_teacher"] == 1
    assert rules["generate"] == 8 and rules["distill"] == 4
    assert not {rule for rule in rules if rule.startswith("fetch") or rule == "select_prompts"}


def test_a_data_key_leaves_the_chat_and_the_untrained_models_alone(changed):
    rules, _ = changed(lambda raw: raw["data"].update(train_rows=20))
    assert rules["subset"] == 1 and rules["generate"] == 6
    assert "settle_chat" not in rules and "fetch_dataset" not in rules


def test_sweep_is_one_strategy_per_value(changed):
    def sweep(raw):
        raw["strategies"]["skewed-fkl"] |= {"skew_lambda": [0.1, 0.3], "temperature": [1, 2]}

    rules, wildcards = changed(sweep)
    assert rules["distill"] == 4
    assert any("skewed-fkl-skew_lambda0.3-temperature2" in w for w in wildcards)


def test_statistics_touch_the_table_alone(changed):
    rules, _ = changed(lambda raw: raw.update(statistics={"family": ["untrained"]}))
    assert rules == TABLE


def test_online_teacher_needs_no_cache_of_the_training_rows(changed):
    rules, _ = changed(lambda raw: raw["teacher"].update(online=True))
    assert rules == of(*STRATEGIES, extra={"cache_teacher": 1, "measure_fidelity": 6}.items())


def test_one_strategy_with_a_live_teacher_next_to_others_that_read_the_cache(changed):
    rules, _ = changed(lambda raw: raw["strategies"]["rkl"].update(online=True))
    assert rules == of("rkl")


def test_another_seed(changed):
    rules, _ = changed(lambda raw: raw.update(seeds=[0, 1]))
    assert rules == of(*STUDENTS, extra={"distill": 4, "sft_student": 1}.items())


def edit(finished, file, old, new, expected):
    path = finished.folder / "workflow" / "scripts" / file
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1))
        assert planned(finished)[0] == expected
    finally:
        path.write_text(text)
    assert not planned(finished)[0], "the same code again, only touched"


def test_editing_code_reruns_what_imports_it(finished):
    students = {
        "distill": 4,
        "sft_student": 1,
        "generate": 5,
        "score": 5,
        "measure_fidelity": 6,
        "aggregate": 1,
        "write_report": 1,
        "write_cards": 1,
    }
    edit(
        finished,
        "kdag/evaluation/generation.py",
        '"""',
        '"""Edited. ',
        {**EVERY_EVALUATION, **TABLE},
    )
    edit(
        finished,
        "kdag/losses/fused.py",
        '"""',
        '"""Edited. ',
        {"sft_teacher": 1, "cache_teacher": 1, **students, "generate": 6, "score": 6},
    )
    edit(finished, "distill.py", '"""', '"""Edited. ', of(*STRATEGIES))
    edit(finished, "score_ifeval.py", '"""', '"""Edited. ', {"score": 8, **TABLE})


# What changes no result runs nothing; what one strategy uses runs its chain and the table.
@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("kdag/losses/divergences/akl.py", "Adaptive KL", "The adaptive KL", {}),
        ("kdag/losses/divergences/skewed_fkl.py", "Skewed forward", "A skewed forward", of("skewed-fkl")),
        ("kdag/losses/parameters.py", '    "taid"', '    "none": {},\n    "taid"', {}),
        ("kdag/job/cli.py", "no space left", "no room left", {}),
        ("kdag/job/gpu_lease.py", "LOG_LINES = 60.0", "LOG_LINES = 30.0", {}),
        ("check_models.py", '"""', '"""Edited. ', {}),
        ("plan.py", "{:<17}", "{:<18}", {}),
        ("kdag/evaluation/tasks/ifbench.py", '"""', '"""Edited. ', {}),
    ],
)
def test_an_edit_runs_what_it_changes_and_no_more(finished, file, old, new, expected):
    edit(finished, file, old, new, expected)


def test_a_new_divergence_runs_nothing(finished):
    """The file and the line that docs/how-to.md shows."""
    function, line, _ = (b for b in blocks("how-to.md", "python") if "hellinger" in b)
    added = finished.folder / "workflow" / "scripts" / "kdag" / "losses" / "divergences" / "hellinger.py"
    try:
        added.write_text(function)
        edit(finished, "kdag/losses/parameters.py", '    "taid"', f'    {line.strip()}\n    "taid"', {})
    finally:
        added.unlink()


def test_new_import_in_a_script_is_seen(finished):
    module = finished.folder / "workflow" / "scripts" / "kdag" / "mine.py"
    script = finished.folder / "workflow" / "scripts" / "distill.py"
    text = script.read_text()
    try:
        module.write_text("A = 1\n")
        script.write_text(text.replace("import json\n", "import json\nfrom kdag import mine\n", 1))
        assert planned(finished)[0] == of(*STRATEGIES)
    finally:
        module.unlink()
        script.write_text(text)


def test_changed_data_file_is_seen(finished):
    path = finished.folder / "tiny" / "rows.jsonl"
    text = path.read_text()
    try:
        tiny.write_jsonl(path, tiny.rows(40, seed=5))
        rules, _ = planned(finished)
        assert rules["fetch_dataset"] == 1 and rules["distill"] == 4
    finally:
        path.write_text(text)


def test_changed_chat_template_is_seen(finished):
    path = finished.folder / "tiny" / "teacher" / "chat_template.jinja"
    text = path.read_text()
    try:
        path.write_text(text + "{# edited #}")
        rules, _ = planned(finished)
        assert rules["fetch_teacher"] == 1 and rules["sft_teacher"] == 1
    finally:
        path.write_text(text)


def test_cut_off_where_nothing_really_changed(finished):
    """A rebuilt artifact with the same bytes does not rerun what lies below it, in the next call."""
    copy = finished.results / "data" / "manifest.json"
    before = copy.read_bytes()
    finished.snakemake("--force", "subset", "--until", "subset")
    assert copy.read_bytes() == before
    assert not planned(finished)[0]


def test_real_rows_and_prompts_through_the_same_dag(finished, shared_data, tmp_path):
    """Published data: 999 alpaca rows and the first 24 of IFEval's prompts, with the tiny models."""
    raw = yaml.safe_load(finished.config.read_text())
    raw["experiment"] = "real"
    raw["data"] = {
        "source": "path",
        "path": str(shared_data / "instructions" / "alpaca_999.json"),
        "train_rows": 64,
        "heldout_rows": 16,
        "max_tokens": 300,
        "overlong": "truncate",
    }
    raw["strategies"] = {"rkl": {"divergence": "rkl"}}
    raw["evaluation"]["prompts"]["path"] = str(shared_data / "ifeval" / "input_data.jsonl")
    raw["evaluation"]["limit"] = 24
    config = tmp_path / "real.yaml"
    config.write_text(yaml.safe_dump(raw))
    finished.snakemake("--configfile", str(config))
    table = pd.read_csv(finished.folder / "results" / "real" / "report" / "table.csv")
    assert len(table) == 5 and set(table["n_prompts"]) == {24} and table["n_instructions"].nunique() == 1


def test_bad_configuration_stops_before_anything_runs(finished, tmp_path):
    raw = yaml.safe_load(finished.config.read_text())
    raw["strategies"]["skew"] = {"divergence": "skewed-fkl", "skwe_lambda": 0.1}
    raw["distilation"] = {}
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(raw))
    done = finished.snakemake("--configfile", str(config), check=False)
    assert done.returncode != 0
    assert "skwe_lambda" in done.stderr and "did you mean `skew_lambda`?" in done.stderr
    assert "distilation: no such key; did you mean `distillation`?" in done.stderr
    assert "Traceback" not in done.stderr and "rule " not in done.stderr


def bare(folder: Path, *arguments):
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120)


def test_bare_dry_run_of_the_default_experiment_plans_the_whole_dag(tmp_path):
    for name in ("Snakefile", "workflow", "profiles", "envs", "config.yaml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    done = bare(tmp_path, "-n", "--quiet", "rules")
    stats = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.M))
    assert done.returncode == 0, done.stderr
    assert stats["distill"] == "4" and stats["generate"] == "8"
    for rule in FETCHES:
        assert stats[rule] == "1"


def test_lint():
    done = bare(ROOT, "--lint")
    assert "Congratulations" in done.stderr + done.stdout, done.stderr + done.stdout

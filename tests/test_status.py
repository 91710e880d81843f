"""`make status`: what is done, running, failed, interrupted and waiting, and that asking changes nothing."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import tiny
import yaml
from conftest import Project

from kdag.operate import status

DRY_RUN = """Building DAG of jobs...
[Tue Nov 24 01:18:50 2026]
localrule fetch_teacher:
    input: workflow/scripts/fetch_model.py
    output: resources/models/t/model, resources/models/t/manifest.json
    log: results/tiny/logs/fetch_teacher.log
    jobid: 4
[Tue Nov 24 01:18:50 2026]
rule distill:
    output: results/tiny/students/fkl/seed0/model
    log: results/tiny/logs/distill/fkl-seed0.log
    wildcards: strategy=fkl, seed=0
[Tue Nov 24 01:18:50 2026]
rule all:
    input: results/tiny/report/table.md
"""
STARTED = "\n  Host: {}\nJob stats:\n"
FAILURE = "Error in rule distill:\n    log: results/tiny/logs/distill/fkl-seed0.log (check log file(s) for)\n"
QUIET = "Command 'set -euo pipefail;  python x.py --log-file logs/a.log' returned non-zero exit status 1.\n"


def test_jobs_of_a_dry_run():
    fetch, distill = status.jobs(DRY_RUN)
    assert fetch.outputs == ("resources/models/t/model", "resources/models/t/manifest.json")
    assert (str(fetch), str(distill)) == ("fetch_teacher", "distill fkl 0")
    assert distill.log == "results/tiny/logs/distill/fkl-seed0.log"


def test_run_names_its_failed_jobs():
    name = "2026-11-24T011431.357246.snakemake.log"
    run = status.run(name, STARTED.format("vm") + FAILURE + QUIET)
    assert run.failed == {"results/tiny/logs/distill/fkl-seed0.log", "logs/a.log"}
    assert (run.host, run.ended) == ("vm", False)
    assert status.run(name, "Complete log(s): x\nElapsed time: 0:00:05\n").ended


def mark(folder, output, record, width=200):
    """A record as Snakemake writes it, a long name cut into folders."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[i : i + width] for i in range(0, len(name), width)]
    file = folder.joinpath(*("@" + part for part in parts[:-1]), parts[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))


def test_records_also_of_long_names(tmp_path):
    mark(tmp_path, "a/b", {"external_jobid": "7"})
    mark(tmp_path, "c/" * 200, {"starttime": 1.0})
    (tmp_path / "half").write_text("{")
    assert status.records(tmp_path) == {"a/b": {"external_jobid": "7"}, "c/" * 200: {"starttime": 1.0}}
    assert status.records(tmp_path / "away") == {}


@pytest.mark.parametrize(
    ("begun", "ended", "alive", "expected"),
    [
        ({}, {}, True, "waiting"),
        ({"out": {"external_jobid": None}}, {}, True, "running"),
        ({"out": {"external_jobid": "71"}}, {}, True, "in the queue"),
        ({"out": {"external_jobid": None}}, {}, False, "interrupted"),
        ({}, {"out": {"starttime": 150.0}}, False, "failed"),
        ({}, {"out": {"starttime": 50.0}}, False, "waiting"),  # done by the run before; now made anew
    ],
)
def test_state(begun, ended, alive, expected):
    job = status.Job("distill", "strategy=fkl", ("out",), "away.log")
    past = [
        status.Run(100.0, False, "vm", frozenset({"away.log"})),
        status.Run(10.0, True, "vm", frozenset()),
    ]
    assert status.state(job, begun, ended, past, alive) == expected


# --- a real folder ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A project whose `subset` has failed at a bad row."""
    project = Project(tmp_path_factory.mktemp("stopped"))
    rows = tiny.rows(40)
    rows[3]["output"] = 7
    tiny.write_jsonl(project.folder / "tiny" / "rows.jsonl", rows)
    done = project.snakemake("--until", "subset", check=False)
    assert done.returncode != 0
    return project


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped.folder, tmp_path / "project", symlinks=True)


def told(folder, *arguments) -> str:
    script = folder / "workflow" / "scripts" / "status.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def contents(folder) -> dict:
    """{file: when it was changed}, without what Python and a dry run keep for themselves."""
    kept = ("__pycache__", "iocache")
    files = (file for file in folder.rglob("*") if not any(name in file.parts for name in kept))
    return {str(file): file.lstat().st_mtime_ns for file in files if not file.is_dir()}


def test_failed_job_has_its_log_s_last_line_and_asking_changes_nothing(folder):
    before = contents(folder)
    said = told(folder)
    assert "; no run is going on" in said
    assert "failed       subset   results/tiny/logs/subset.log\n" in said
    assert "             bad rows in the data: row 3: field 'output' must be text" in said
    assert re.search(r"^distill +4$", said, re.M)
    assert before == contents(folder)


def test_a_configuration_of_another_name(folder):
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw | {"strategies": {"js": {"divergence": "jsd"}}}))
    assert re.search(r"^distill +1$", told(folder, "--config", "mine.yaml"), re.M)
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw | {"seed": 0}))
    said = told(folder, "--config", "mine.yaml")
    assert "The configuration is not valid" in said and "seed: no such key; did you mean `seeds`?" in said
    assert "error: gone.yaml: no such file" in told(folder, "--config", "gone.yaml")


def test_interrupted_running_and_queued(folder):
    """The markers of a run that was killed; then beside a process that looks like a run."""
    inside = folder / ".snakemake" / "incomplete"
    output = "results/tiny/data/prompts.jsonl"
    mark(inside, output, {"external_jobid": None})
    log = folder / "results" / "tiny" / "logs" / "select_prompts.log"
    log.write_text("01:00:00 select_prompts: half way\n\n")
    begun = (folder / ".snakemake" / "log" / "2099-01-01T000000.000001.snakemake.log").write_text
    begun(f"\n  Host: {os.uname().nodename}\nJob stats:\n")
    said = told(folder)
    assert "interrupted  select_prompts   results/tiny/logs/select_prompts.log" in said
    assert "select_prompts: half way" in said
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "snakemake"], cwd=folder)
    try:
        time.sleep(0.5)
        said = told(folder)
        assert "; a run is going on" in said and "running      select_prompts" in said
        mark(inside, output, {"external_jobid": "71"})
        log.unlink()
        assert "in the queue select_prompts" in told(folder)
    finally:
        run.kill()
        run.wait()

"""The same experiment from another configuration, folder, checkout or workflow, and with results moved."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project

pytestmark = pytest.mark.timeout(1500)


def tree(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def moved(finished, tmp_path) -> Project:
    """The finished experiment's results and resources in a fresh folder, their dates lost on the way."""
    project = finished.copy(tmp_path / "fresh")
    shutil.rmtree(project.folder / ".snakemake")
    for folder in ("results", "resources"):
        for file in sorted((project.folder / folder).rglob("*")):
            os.utime(file, follow_symlinks=False)
    return project


def adopt(project, config="config.yaml", check=True):
    return project.script("adopt", "--config", config, check=check)


def test_moved_results_are_refused_then_adopted(moved):
    before = tree(moved.folder / "results")
    done = moved.snakemake(check=False)
    assert done.returncode
    assert "Nothing has run and nothing is deleted" in done.stderr + done.stdout
    assert "make adopt" in done.stderr + done.stdout
    assert tree(moved.folder / "results") == before

    told = adopt(moved).stdout
    assert "does not fit" not in told
    assert "Nothing to be done" in moved.snakemake().stderr
    assert tree(moved.folder / "results") == before


def test_what_does_not_fit_is_named_and_kept(moved):
    raw = yaml.safe_load(moved.config.read_text())
    raw["strategies"]["skewed-fkl"]["skew_lambda"] = 0.3
    (moved.folder / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    damaged = moved.results / "students" / "rkl" / "seed0" / "model" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    before = tree(moved.folder / "results")
    done = adopt(moved, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("does not fit")]
    assert any("distill skewed-fkl 0: it was made with other parameters" in line for line in lines)
    assert any("distill rkl 0:" in line and "has changed since" in line for line in lines)
    assert not any(" fkl" in line or "subset" in line or "teacher" in line for line in lines), lines
    assert tree(moved.folder / "results") == before
    refused = moved.snakemake(check=False)
    assert refused.returncode
    assert "students/rkl/seed0" in refused.stderr + refused.stdout
    for student in ("rkl", "skewed-fkl"):
        shutil.rmtree(moved.results / "students" / student)
        shutil.rmtree(moved.results / "eval" / f"{student}-seed0")
    shutil.rmtree(moved.results / "report")
    planned = moved.snakemake("-n").stdout
    assert planned.count("rule distill:") == 2
    assert "rule sft_teacher" not in planned


def test_a_given_configuration_is_the_whole_one(finished, tmp_path):
    """config.yaml, another experiment, lies in the folder, and no further flag is needed."""
    project = finished.copy(tmp_path / "own")
    shutil.copy(ROOT / "config.yaml", project.folder / "config.yaml")
    done = project.snakemake("-n", "--configfile", str(project.config))
    assert "Nothing to be done" in done.stdout + done.stderr
    changed = project.snakemake(
        "-n", "--configfile", str(project.config), "--config", "evaluation={max_new_tokens: 9}"
    )
    assert "rule generate:" in changed.stdout
    assert "rule sft_teacher:" not in changed.stdout


def test_a_job_that_reads_another_configuration_computes_nothing(finished, tmp_path):
    project = finished.copy(tmp_path / "edited")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--mode", "subprocess"]
    command += ["--target-jobs", "aggregate:", "--allowed-rules", "aggregate", "--force", "--nolock"]
    environment = os.environ | {"KDAG_CONFIGURATION": "of the run"}
    done = subprocess.run(command, cwd=project.folder, env=environment, text=True, capture_output=True)
    assert done.returncode
    assert "another configuration than the run that started it" in done.stderr + done.stdout


def checkout(folder: Path) -> Path:
    """The workflow as users clone it, in a folder whose name has a space."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "Snakefile", folder)
    for name in ("workflow", "profiles", "envs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def run(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_one_checkout_serves_another_folder_and_a_users_own_workflow(finished, tmp_path):
    """Stages without a model run; that all jobs are planned says the rest of the paths are right."""
    rules = checkout(tmp_path / "my checkout" / "kdag") / "Snakefile"
    here = tmp_path / "run"
    here.mkdir()
    shutil.copy(finished.config, here / "config.yaml")
    options = ("--workflow-profile", "none", "-s", rules, "-d", here)
    assert "total                  42" in run(tmp_path, *options, "-n").stdout
    run(tmp_path, *options, "results/tiny/data/manifest.json")
    assert (here / "results" / "tiny" / "data" / "train.parquet").is_file()

    own = tmp_path / "own"
    own.mkdir()
    (own / "Snakefile").write_text(
        f"import yaml\nconfig = yaml.safe_load(open({str(finished.config)!r}))\n"
        f"module kdag:\n    snakefile: {str(rules)!r}\n    config: config\n\n"
        "use rule * from kdag as kdag_*\n\n"
        "rule mine:\n    default_target: True\n    input: 'results/tiny/report/table.md'\n"
        "    output: 'mine.txt'\n    shell: 'cp {input} {output}'\n"
    )
    planned = run(own, "--workflow-profile", "none", "-n").stdout
    assert "rule mine:" in planned
    assert "rule kdag_distill:" in planned
    run(own, "--workflow-profile", "none", "results/tiny/data/manifest.json")
    assert (own / "results" / "tiny" / "data" / "train.parquet").is_file()


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {scripts!r})
from kdag.job import cli
from kdag.files.records import recorded

def arguments():
    parser = cli.parser("a stage that takes its time")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=0)
    return parser

def main(args):
    print("noise", file=sys.stderr)
    import logging
    logging.info("at work")
    Path("began").open("a").write("x")
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        logging.info("still at work")
    args.output.write_text("made")
    logging.info("done")

if __name__ == "__main__":
    cli.run(recorded(main), arguments())
"""


@pytest.fixture
def slow(tmp_path) -> Path:
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(scripts=str(ROOT / "workflow" / "scripts")))
    return script


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def test_a_job_ends_with_its_snakemake(slow, tmp_path):
    (tmp_path / "Snakefile").write_text(
        f"rule slow:\n    output: 'out/made'\n    shell: '{sys.executable} slow.py --seconds 600 "
        "--output {output} --log-file job.log'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"]
    process = subprocess.Popen(command, cwd=tmp_path)
    until((tmp_path / "began").exists)
    process.kill()
    process.wait()
    until(lambda: "the snakemake that started this job is gone" in (tmp_path / "job.log").read_text(), 20)
    until(lambda: not running(slow), 5)
    assert not (tmp_path / "out" / "made").exists()


def running(script: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], text=True, capture_output=True).stdout
    return [line for line in listed.splitlines() if " slow.py --seconds" in line and "ps -eo" not in line]


def test_the_second_job_for_a_result_waits_and_takes_what_the_first_made(slow, tmp_path):
    """Through a link to the folder, as two clones see one scratch folder."""
    (tmp_path / "scratch").mkdir()
    for clone in ("a", "b"):
        (tmp_path / clone).mkdir()
        (tmp_path / clone / "results").symlink_to(tmp_path / "scratch")
    started = []
    for clone in ("a", "b"):
        command = [sys.executable, str(slow), "--seconds", "4", "--output", "results/x/made"]
        started.append(subprocess.Popen(command, cwd=tmp_path / clone, stderr=subprocess.PIPE, text=True))
        until((tmp_path / clone / "began").exists) if clone == "a" else None
    first, second = (process.communicate(timeout=60)[1] for process in started)
    assert "done" in first
    assert f"waiting: process {started[0].pid} on" in second
    assert "made meanwhile" in second
    assert not (tmp_path / "b" / "began").exists()
    assert json.loads((tmp_path / "scratch" / "x" / "job-slow.json").read_text())["config"] is None


def test_a_terminal_that_dies_takes_no_result_with_it(slow, tmp_path):
    command = [
        sys.executable,
        str(slow),
        "--seconds",
        "3",
        "--output",
        "x/made",
        "--log-file",
        "logs/job.log",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    until((tmp_path / "began").exists)
    process.stderr.close()
    assert process.wait(60) == 0
    assert (tmp_path / "x" / "made").read_text() == "made"
    assert (tmp_path / "logs" / "job.log").read_text().splitlines()[-1].endswith("slow: done")


def test_one_command_goes_on_after_a_kill(finished, tmp_path):
    """`make run`: says who runs, and takes away the lock of a run that nobody lives of."""
    project = finished.copy(tmp_path / "killed")
    shutil.rmtree(project.results / "report")
    locks = project.folder / ".snakemake" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").write_text("results/tiny/report/table.md\n")
    done = project.script("run", "--config", "config.yaml", "--profile", "cpu")
    assert "its lock is taken away" in done.stderr
    assert (project.results / "report" / "index.html").is_file()

    shutil.rmtree(project.results / "report")
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").write_text("results/tiny/report/table.md\n")
    other = [sys.executable, "-c", "import time; time.sleep(600)", "snakemake"]
    living = subprocess.Popen(other, cwd=project.folder)
    try:
        done = project.script("run", "--config", "config.yaml", check=False)
    finally:
        living.kill()
    assert done.returncode == 1
    assert f"locked by process {living.pid} on this machine" in done.stderr
    assert not (project.results / "report").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"\xff\xfea: 1\n", "cannot be read as UTF-8 text"),
        (b"a: [1\nb: 2\n", "line 2: no YAML"),
        (b"- a\n", "keys with values are needed at the top"),
    ],
)
def test_a_configuration_file_that_is_none_is_one_line(finished, tmp_path, content, words):
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    done = finished.script("run", "--config", file, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr

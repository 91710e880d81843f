"""The tiny experiment on a real SLURM cluster of two nodes with fake GPUs, undisturbed and through faults.

`make test-slurm` runs this; plain `make test` does not. Every run must end with the bytes of a run on this
machine without a cluster, whatever happened on the way.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cluster as lab
import pytest
import yaml
from conftest import ROOT, Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

OWN = "mine.yaml"  # as the README says to run one's own
# How the test cluster differs from a real one: one thread per job, and answers within seconds.
STAGES = ["sft_teacher", "cache_teacher", "sft_student", "distill", "generate", "measure_fidelity"]
HERE = [
    *("--workflow-profile", "profiles/slurm", "--latency-wait", "10"),
    *("--slurm-init-seconds-before-status-checks", "2"),
    *("--default-resources", "slurm_account=distillers", "gpu_model=fake", "nodes=1"),
]
THREADS = ["--set-threads", *(f"{stage}=1" for stage in STAGES)]
# A copy of checkpoints.py saves often and does at each step what a file in the working directory says.
HOOK = """

_on_step_end = Follow.on_step_end


def _hooked(self, args, state, control, **kwargs):
    _on_step_end(self, args, state, control, **kwargs)
    if Path("each_step.py").is_file():
        exec(Path("each_step.py").read_text(), {"folder": args.output_dir, "step": state.global_step})


Follow.on_step_end = _hooked
"""
EACH_STEP = """
import time
time.sleep(3 if "/skewed-rkl/" in folder else 1)
if "/sft/" in folder and step == 40:
    large = b"1" * 2_000_000_000
    time.sleep(4)
"""


@pytest.fixture(scope="module")
def cluster():
    reason = lab.install() or lab.unavailable()
    if reason:
        pytest.skip(f"no SLURM to test on: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="kdag-slurm-"))
    started = lab.Cluster(folder)
    try:
        started.up()
        yield started
    finally:
        started.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Project:
    """The experiment with two strategies, run on this machine without any disturbance."""
    project = Project(tmp_path_factory.mktemp("reference"))
    raw = yaml.safe_load(project.config.read_text())
    raw["strategies"] = {name: raw["strategies"][name] for name in ("fkl", "skewed-rkl")}
    raw["distillation"]["epochs"] = 20
    (project.folder / OWN).write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(ROOT / "config.yaml", project.folder)  # another experiment, as in a clone
    file = project.folder / "workflow" / "scripts" / "kdag" / "training" / "checkpoints.py"
    often = re.sub(
        r"(?m)^SECONDS_BETWEEN_CHECKPOINTS = .*", "SECONDS_BETWEEN_CHECKPOINTS = 1", file.read_text()
    )
    file.write_text(often + HOOK)
    project.snakemake("--configfile", OWN)
    return project


class Run:
    """A copy of the reference project, and one snakemake at a time that runs it on the cluster."""

    def __init__(self, cluster, reference: Project, folder: Path, without=(), partition="gpu"):
        shutil.copytree(reference.folder, folder, symlinks=True)
        self.cluster, self.folder, self.partition = cluster, folder, partition
        self.results = folder / "results" / "tiny"
        self.log = folder / "snakemake.log"
        for student in without:
            shutil.rmtree(self.results / "students" / student)
            shutil.rmtree(self.results / "eval" / f"{student}-seed0")
        shutil.rmtree(self.results / "report")
        self.before = self.finished()

    def finished(self) -> dict[Path, int]:
        """When each file of a result was written; not logs, benchmarks, and what is made of all scores."""
        made_of_all = ("README.md", "job-write_cards.json", ".lock-write_cards")
        files = [f for part in ("data", "teacher", "cache", "students", "eval") for f in self.files(part)]
        return {file: file.lstat().st_mtime_ns for file in files if file.name not in made_of_all}

    def files(self, part: str) -> list[Path]:
        return [f for f in (self.results / part).rglob("*") if f.is_file() and ".checkpoints" not in str(f)]

    def start(self, *arguments) -> None:
        resources = [*HERE, f"slurm_partition={self.partition}"]
        command = [sys.executable, "-m", "snakemake", "--configfile", OWN, *resources, *THREADS, *arguments]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | self.cluster.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"snakemake did not end in {seconds} s:\n{self.tail()}") from None

    def tail(self) -> str:
        return self.log.read_text()[-6000:]

    def job_log(self, student: str) -> str:
        name = "sft_student/seed0" if student == "sft" else f"distill/{student}-seed0"
        file = self.results / "logs" / f"{name}.log"
        return file.read_text() if file.is_file() else ""

    def has_checkpoint(self, student: str) -> bool:
        return any((self.results / "students" / student).glob("seed0/.checkpoints-*/checkpoint-*/seal.json"))

    def running(self) -> dict[str, str]:
        """{student: id of the job that trains it now}."""
        listing = self.cluster.call("squeue", "-h", "-t", "R", "-o", "%i|%k|%Z")
        jobs = [line.split("|") for line in listing.splitlines()]
        return {self.student(rule): id for id, rule, folder in jobs if folder == str(self.folder)}

    def history(self) -> dict[str, list[tuple[str, str, str]]]:
        """{rule with its wildcards: [(state, start, end) of each of its SLURM jobs]}."""
        fields = "WorkDir,Comment,State,Start,End"
        listing = self.cluster.call("sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", fields)
        jobs = {}
        for folder, rule, *job in (line.split("|") for line in listing.splitlines()):
            if folder == str(self.folder):
                jobs.setdefault(self.student(rule), []).append(tuple(job))
        return jobs

    @staticmethod
    def student(rule: str) -> str:
        return {"rule_sft_student_wildcards_0": "sft"}.get(
            rule, re.sub(r"rule_distill_wildcards_(.*)_0", r"\1", rule)
        )

    def states(self, student: str) -> list[str]:
        return [state.split()[0] for state, *_ in self.history()[student]]

    def check(self, reference: Project) -> None:
        """The same bytes as undisturbed, nothing made twice at a time, nothing made again that was there."""
        for name in ("table.md", "comparisons.csv"):
            ours, theirs = (r / "report" / name for r in (self.results, reference.results))
            assert ours.read_bytes() == theirs.read_bytes(), name
        for model in reference.results.rglob("model.safetensors"):
            assert (self.results / model.relative_to(reference.results)).read_bytes() == model.read_bytes()
        for rule, jobs in self.history().items():
            by_start = sorted((start, end) for _, start, end in jobs if start not in ("None", "Unknown"))
            for (_, end), (start, _) in zip(by_start, by_start[1:], strict=False):
                assert start >= end, f"{rule}: two jobs at the same time: {jobs}"
        after = self.finished()
        changed = [str(file) for file, written in self.before.items() if after.get(file) != written]
        assert not changed
        assert not list(self.folder.rglob(".*.partial-*"))


def test_the_whole_dag_runs_through_the_cluster(cluster, reference, tmp_path):
    run = Run(cluster, reference, tmp_path / "whole")
    for made in ("results", "resources", ".snakemake"):
        shutil.rmtree(run.folder / made)
    run.before = {}
    run.start()
    assert run.wait() == 0, run.tail()
    run.check(reference)
    jobs = run.history()
    assert len(jobs) == 16 and all(len(attempts) == 1 for attempts in jobs.values())
    assert all(run.states(rule) == ["COMPLETED"] for rule in jobs)


def test_a_job_with_two_gpus_runs_its_script_once(cluster, tmp_path):
    """One task, both devices visible: the plugin's flags for GPUs do not multiply the job."""
    (tmp_path / "Snakefile").write_text(
        "rule two:\n"
        "    output: 'seen.txt'\n"
        "    resources: gpu=2, mem_mb=1000, runtime=5\n"
        "    shell: 'echo $CUDA_VISIBLE_DEVICES >> {output}'\n"
    )
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    command = [sys.executable, "-m", "snakemake", *HERE, "slurm_partition=gpu"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen.txt").read_text().strip() == "0,1"


@pytest.fixture(scope="module")
def night(cluster, reference, tmp_path_factory):
    """Three runs side by side, six jobs in training, and everything that can befall them."""
    folder = tmp_path_factory.mktemp("night")
    both = ("fkl", "skewed-rkl")
    struck = Run(cluster, reference, folder / "struck", ("sft", *both), partition="first")
    stranded = Run(cluster, reference, folder / "stranded", ("fkl",))
    killed = Run(cluster, reference, folder / "killed", both, partition="first")
    runs = {struck: ("sft", *both), stranded: ("fkl",), killed: both}
    limited = "1 if attempt == 1 and wildcards.strategy == 'skewed-rkl' else 30"
    for run in runs:
        (run.folder / "each_step.py").write_text(EACH_STEP)
    struck.start("--set-resources", "sft_student:mem_mb=attempt*1600", f"distill:runtime={limited}")
    stranded.start()
    killed.start()
    try:
        cluster.wait(
            "not every job has a checkpoint",
            lambda: all(run.has_checkpoint(student) for run, names in runs.items() for student in names),
            240,
        )
        cluster.stop("slurmctld")
        time.sleep(20)
        cluster.start_controller()
        time.sleep(10)  # until it knows the nodes' GPUs again, a step that asks for one is refused

        cluster.wait("no job to cancel", lambda: "fkl" in struck.running(), 60)
        cluster.call("scancel", struck.running()["fkl"])
        cluster.call("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        strike_dead(killed)
        for run in runs:
            run.code = run.wait()
        yield struck, stranded, killed
    finally:
        for run in runs:
            run.process.kill()
        cluster.call("scontrol", "update", "nodename=n2", "state=resume", check=False)


def strike_dead(run: Run) -> None:
    """kill -9 of snakemake. Beside its jobs it refuses to start; one of them ends, the other is cancelled."""
    run.cluster.wait("no jobs to leave", lambda: len(run.running()) == 2, 60)
    run.orphans = run.running()
    run.process.send_signal(signal.SIGKILL)
    run.process.wait(30)
    run.start("--unlock")
    assert run.wait(60) == 0, run.tail()
    run.log.write_text("")
    run.start()
    run.refused, run.refusal = run.wait(60), run.tail()
    run.still = run.running()
    script = [sys.executable, "workflow/scripts/orphans.py"]
    run.listed = run.cluster.call(*script, "--folder", run.folder)
    run.cluster.call("scancel", run.orphans["skewed-rkl"])
    run.cluster.wait("the orphan does not end", lambda: not run.running(), 180)
    run.cluster.call(*script, "--folder", run.folder, "--cancel")
    run.start()


def test_scancel(night, reference):
    struck, *_ = night
    assert struck.code == 0, struck.tail()
    assert struck.states("fkl") == ["CANCELLED", "COMPLETED"]
    assert "going on from" in struck.job_log("fkl")
    struck.check(reference)


def test_time_limit(night):
    struck, *_ = night
    assert struck.states("skewed-rkl") == ["TIMEOUT", "COMPLETED"]
    assert "going on from" in struck.job_log("skewed-rkl")


def test_over_memory(night):
    struck, *_ = night
    first, second = struck.states("sft")
    assert first in ("FAILED", "OUT_OF_MEMORY", "CANCELLED") and second == "COMPLETED"
    assert "going on from" in struck.job_log("sft")


def test_node_down(night, reference):
    _, stranded, _ = night
    assert stranded.code == 0, stranded.tail()
    assert stranded.states("fkl") == ["NODE_FAIL", "COMPLETED"]
    assert "going on from" in stranded.job_log("fkl")
    stranded.check(reference)


def test_slurmctld_away_for_twenty_seconds(night):
    """Six jobs trained meanwhile: no run lost one, which would have hung it for ever."""
    assert [run.code for run in night] == [0, 0, 0]
    for run in night:
        assert all(run.states(rule)[-1] == "COMPLETED" for rule in run.history())


def test_snakemake_killed_and_started_beside_its_jobs(night, reference):
    *_, killed = night
    assert killed.refused == 1 and "Nothing has run" in killed.refusal
    assert all(id in killed.refusal and id in killed.listed for id in killed.orphans.values())
    assert killed.still == killed.orphans, "the refused run touched nothing"
    assert killed.code == 0, killed.tail()
    assert killed.states("fkl") == ["COMPLETED"], "what the orphan finished is kept"
    assert killed.states("skewed-rkl") == ["CANCELLED", "COMPLETED"]
    assert "going on from" in killed.job_log("skewed-rkl")
    killed.check(reference)


def test_a_controller_that_goes_away_on_a_cluster_without_accounting(cluster, reference, tmp_path):
    """sacct never answers there; squeue does when the controller is back, and is asked."""
    bare = lab.Cluster(tmp_path / "cluster", accounting=False)
    try:
        bare.up()
        run = Run(bare, reference, tmp_path / "run", ("fkl",))
        (run.folder / "each_step.py").write_text(EACH_STEP)
        run.start()
        bare.wait("fkl does not train", lambda: run.has_checkpoint("fkl"), 120)
        bare.stop("slurmctld")
        time.sleep(45)
        bare.start_controller()
        assert run.wait(240) == 0, run.tail()
        assert "Falling back to 'sacct'" not in run.log.read_text()
    finally:
        bare.down()


def test_comparisons_are_not_empty(reference):
    """The bytes that every run is compared with say something."""
    with open(reference.results / "report" / "comparisons.csv") as file:
        assert len(list(csv.DictReader(file))) >= 5

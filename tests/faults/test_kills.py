"""What a run survives: kills at any moment, a full disk, a second run in its folder, a strategy that fails.

`make test-faults` runs this; plain `make test` does not. Every run must end with the bytes of an undisturbed
one. Faults of a cluster are in tests/slurm.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Project

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

KILLS = 4
# The seconds in which a job of each stage is sure to be at work: its random moment lies in them.
STAGES = {
    **dict.fromkeys(("check_models", "sft", "cache_teacher", "distill", "generate", "measure_fidelity"), 4),
    **dict.fromkeys(
        ("settle_chat", "subset", "score_ifeval", "aggregate", "write_report", "write_cards"), 0.7
    ),
    "select_prompts": 0,
}
REPORT = ["table.md", "table.csv", "comparisons.csv", "verdict.md", "fidelity.csv"]
RESULTS = ["manifest.json", "scores.json", "fidelity.json", "generation.json"]


@pytest.fixture
def untouched(finished, tmp_path) -> Project:
    """The project with what was fetched, which Snakemake knows, and nothing else."""
    project = finished.copy(tmp_path / "project")
    shutil.rmtree(project.results)
    return project


@pytest.fixture
def moments() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def check(project: Project, finished: Project) -> None:
    """The report, every model and every manifest to the byte; nothing half-written anywhere."""
    results = finished.results
    files = [results / "report" / name for name in REPORT]
    files += [file for name in ["*.safetensors", *RESULTS] for file in results.rglob(name)]
    assert len(files) > 40
    for file in files:
        ours = project.results / file.relative_to(results)
        assert ours.read_bytes() == file.read_bytes(), ours
    assert not list(project.folder.rglob(".*.partial-*"))
    assert "Nothing to be done" in project.snakemake().stderr


def whole(project: Project) -> dict[Path, tuple[int, bytes]]:
    """Of every finished result when it was written, and its bytes; what a check tries is none."""
    files = [f for name in RESULTS for f in project.results.rglob(name) if "scratch" not in f.parts]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def start(project: Project) -> subprocess.Popen:
    """A run in a session of its own; what it says goes to the file `said`."""
    with open(project.folder / "said", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/cpu"],
            cwd=project.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stages_of(run: subprocess.Popen) -> dict[str, psutil.Process]:
    """{script: its process} of the jobs that a run has started."""
    found = {}
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if len(words) > 1 and words[1].startswith("workflow/scripts/"):
            found[Path(words[1]).stem] = process
    return found


def kill_one_of_each(run: subprocess.Popen, left: dict, moments: random.Random) -> set[str]:
    """While a run lasts, kill -9 the first job of each stage in `left` at a random moment; those killed."""
    doomed, killed = {}, set()
    while run.poll() is None:
        for stage, process in stages_of(run).items():
            if stage in left and stage not in doomed:
                doomed[stage] = (time.monotonic() + moments.uniform(0, left[stage]), process)
        for stage, (when, process) in doomed.items():
            if stage not in killed and time.monotonic() > when and process.is_running():
                process.kill()
                killed.add(stage)
        time.sleep(0.05)
    return killed


def test_every_stage_is_killed_and_nothing_finished_is_made_again(untouched, finished, moments):
    killed = set()
    for _ in range(2 * len(STAGES)):
        before = whole(untouched)
        run = start(untouched)
        now = kill_one_of_each(run, {k: v for k, v in STAGES.items() if k not in killed}, moments)
        killed |= now
        after = whole(untouched)
        assert before.items() <= after.items(), "a finished result was made again"
        if run.returncode == 0:
            break
        assert now, (untouched.folder / "said").read_text()[-3000:]
    print("killed:", *sorted(killed))
    assert killed >= STAGES.keys() - {"select_prompts"}, "the others had ended before their moment"
    check(untouched, finished)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(untouched, finished, moments):
    """kill -9 of everything at once."""
    for _ in range(KILLS):
        run = start(untouched)
        time.sleep(moments.uniform(4, 40))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        untouched.snakemake("--unlock")
    untouched.snakemake()
    check(untouched, finished)


def test_a_full_disk_is_said_and_the_run_completes_once_there_is_room(untouched, finished):
    """The disk grows a little each time, so that it fills up in stage after stage."""
    disk = untouched.results.parent
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    filled = set()
    try:
        for kib in range(300, 8000, 400):
            subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
            before = whole(untouched)
            done = untouched.snakemake(check=False)
            if not done.returncode:
                break
            assert "Traceback" not in done.stderr, done.stderr[-3000:]
            said = [
                line for line in done.stderr.splitlines() if "error: no space left on the disk of" in line
            ]
            assert said and all("MiB are free" in line for line in said), done.stderr[-3000:]
            filled |= {line.split()[1].split("/")[0] for line in said}
            assert before.items() <= whole(untouched).items(), "an earlier result was lost"
            assert not list(disk.rglob(".*.partial-*"))
        assert not done.returncode
        print("filled:", *sorted(filled))
        assert len(filled) >= 4
        check(untouched, finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_run_in_the_same_folder_is_told(untouched, finished):
    first = start(untouched)
    locks = untouched.folder / ".snakemake" / "locks"
    while not (locks.is_dir() and any(locks.iterdir())):
        assert first.poll() is None
        time.sleep(0.2)
    second = untouched.snakemake(check=False)
    assert second.returncode and "cannot be locked" in second.stderr
    assert first.wait(timeout=600) == 0, (untouched.folder / "said").read_text()[-3000:]
    check(untouched, finished)


def test_a_strategy_that_fails_is_a_marked_row_and_the_others_go_on(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    wild = config["strategies"] | {"wild": {"divergence": "fkl", "temperature": 1e-30}}
    (project.folder / "config.yaml").write_text(
        yaml.safe_dump(config | {"strategies": wild}, sort_keys=False)
    )
    done = project.snakemake(check=False)
    table = (project.results / "report" / "table.md").read_text()
    assert done.returncode and table in done.stdout
    assert "| student - wild | missing | missing | missing | missing |" in table
    assert "Incomplete: 1 of 9 rows are missing" in table
    assert "`distill wild 0` failed: step 1: loss is nan" in table
    assert not (project.results / "students" / "wild" / "seed0" / "model").exists()
    whole_table = (finished.results / "report" / "table.md").read_text()
    for label in ("teacher", "student, untrained", "student - rkl"):
        assert cells(table, label) == cells(whole_table, label)
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    project.snakemake()
    check(project, finished)


def cells(text: str, label: str) -> list[str]:
    """The first row that begins with the label, without spaces and bold."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip(" *") for cell in row.split("|")]

"""What a cluster is asked for, with stubs of SLURM's commands. On a real one: tests/slurm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Project

from kdag.job.errors import UserError
from kdag.operate import orphans
from kdag.planning.jobsize import host_mb, minutes, model_bytes

ROOT = Path(__file__).parents[1]
PROFILE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
RUN = "11111111-2222-3333-4444-555555555555"


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder first on PATH, for stubs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def queue(commands: Path, *lines: str) -> None:
    text = "\n".join(lines)
    stub(commands, "squeue", f"cat <<'END'\n{text}\nEND")


def test_orphans_are_our_jobs_of_this_folder(commands, tmp_path):
    queue(
        commands,
        f"7|kdag_{RUN}|RUNNING|rule_distill_wildcards_fkl_0|{tmp_path}",
        f"8|kdag_{RUN}|PENDING|rule_generate|{tmp_path}",
        f"9|kdag_{RUN}|RUNNING|rule_generate|{tmp_path}/elsewhere",
        f"10|kdag-2_{RUN}|RUNNING|rule_generate|{tmp_path}",
        f"11|kdag_mine|RUNNING|(null)|{tmp_path}",
    )
    assert [job.id for job in orphans.orphans(tmp_path)] == ["7", "8"]
    assert [job.id for job in orphans.orphans(tmp_path, "kdag-2")] == ["10"]
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert len(orphans.orphans(link)) == 2


def test_orphans_without_slurm_and_with_slurm_out_of_reach(commands, tmp_path, monkeypatch):
    stub(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="Unable to contact"):
        orphans.orphans(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert orphans.orphans(tmp_path) == []


def test_listing_and_cancelling_orphans(commands, tmp_path):
    queue(commands, f"7|kdag_{RUN}|RUNNING|rule_distill_wildcards_fkl_0|{tmp_path}")
    stub(commands, "scancel", f'echo "$*" > {tmp_path}/cancelled')
    script = [sys.executable, ROOT / "workflow/scripts/orphans.py", "--folder", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert "7  running  rule_distill_wildcards_fkl_0" in done.stdout
    assert not (tmp_path / "cancelled").exists()
    subprocess.run([*script, "--cancel"], capture_output=True, timeout=60, check=True)
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_a_model_that_is_not_there_has_no_size(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        model_bytes(tmp_path / "model")
    assert error.value.filename == str(tmp_path / "model"), "by which Snakemake knows its input"


def test_memory_and_time_grow_with_the_model():
    seven, three = 15_200_000_000, 6_200_000_000
    assert host_mb(seven) > host_mb(three) > host_mb(0) == 4000
    assert host_mb(three, processes=2) == 2 * host_mb(three)
    assert minutes(seven) > minutes(three) > minutes(0) == 60


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory) -> Project:
    """The finished experiment, to be changed: its paths stay, so nothing is planned."""
    return finished.copy(tmp_path_factory.mktemp("copy") / "project")


def submit(project: Project, commands: Path, *arguments) -> tuple[list[str], str]:
    """The command lines of sbatch, which refuses every job, and what snakemake says."""
    calls = commands.parent / "calls"
    calls.unlink(missing_ok=True)
    stub(
        commands, "sbatch", f'echo "$*" | sed "s/ --wrap.*//" | head -1 >> {calls}; echo refused >&2; exit 1'
    )
    stub(commands, "scontrol", "echo 'MinJobAge = 300 sec'; echo 'MaxArraySize = 1001'")
    stub(commands, "sacctmgr", f"echo {PROFILE['default-resources']['slurm_account']}")
    for name in ("sinfo", "sacct"):
        stub(commands, name, "true")
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", "--retries", "0"]
    done = subprocess.run(
        [*command, *arguments], cwd=project.folder, text=True, capture_output=True, timeout=120
    )
    return calls.read_text().splitlines() if calls.exists() else [], done.stdout + done.stderr


def test_what_is_submitted(copy, commands):
    queue(commands)
    shutil.rmtree(copy.results / "students" / "fkl")
    shutil.rmtree(copy.results / "eval" / "teacher")
    calls, said = submit(copy, commands)
    assert len(calls) == 2, said
    defaults = PROFILE["default-resources"]
    for call, rule in zip(sorted(calls), ("distill", "generate"), strict=True):
        assert f"--comment rule_{rule}" in call.replace("'", "")
        assert "--job-name kdag_" in call and "--array" not in call and "--no-requeue" in call
        assert f"-p {defaults['slurm_partition']} " in call and f"-A {defaults['slurm_account']} " in call
        assert "-t 60 " in call and "--mem 400" in call and "--nodes=1 " in call
        assert "gpu_mb" not in call and "planned" not in call, "not for SLURM"
        assert "--cpus-per-task=8" in call and "--ntasks-per-gpu" not in call
        assert call.endswith(f"--gpus={defaults['gpu_model']}:1")


def test_a_run_beside_orphans_is_refused_and_a_dry_run_is_not(copy, commands):
    queue(commands, f"7|kdag_{RUN}|RUNNING|rule_distill_wildcards_fkl_0|{copy.folder}")
    shutil.rmtree(copy.results / "students" / "rkl", ignore_errors=True)
    calls, said = submit(copy, commands)
    assert not calls and "Nothing has run" in said and "7  running  rule_distill" in said
    assert "--slurm-jobname-prefix kdag-2" in said and "Traceback" not in said
    local = copy.snakemake(check=False)
    assert local.returncode == 1 and "Nothing has run" in local.stderr
    assert "rule distill" in copy.snakemake("-n").stdout
    queue(commands)
    assert len(submit(copy, commands)[0]) >= 1

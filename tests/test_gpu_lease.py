"""Leases of GPUs between real processes, on a machine whose nvidia-smi is a script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kdag.job import gpu_lease
from kdag.job.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
JOB = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from kdag.job import gpu_lease
from kdag.job.errors import UserError
gpu_lease.SECONDS_BETWEEN_TRIES = 0.05
try:
    gpu_lease.take(int(sys.argv[1]))
except UserError as error:
    sys.exit(f"error: {error}")
print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""


class Jobs:
    def __init__(self, folder: Path):
        self.started = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"},
            "TMPDIR": str(folder),
            "PYTHONPATH": str(SCRIPTS),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, gpus: int = 1, **environment) -> subprocess.Popen:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(gpus)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(job)
        return job


def sees(job: subprocess.Popen) -> str:
    """What the job says once it has its lease; its log line comes before."""
    for line in job.stdout:
        if line.startswith("sees "):
            return line.split()[1]
    raise AssertionError(job.stderr.read())


def cards(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


TWO = cards("GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)", "GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)")
CUT = cards(
    "GPU 0: NVIDIA H200 (UUID: GPU-aaaa-1)",
    "  MIG 3g.71gb     Device  0: (UUID: MIG-cccc-3)",
    "  MIG 3g.71gb     Device  1: (UUID: MIG-dddd-4)",
    "GPU 1: NVIDIA H200 (UUID: GPU-bbbb-2)",
)


def list_as(listed: str, folder: Path) -> str:
    """A PATH whose nvidia-smi lists these cards."""
    folder.mkdir(exist_ok=True)
    (folder / "cards").write_text(listed)
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] && exec cat {folder}/cards\necho 535.54.03\n')
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def jobs(tmp_path):
    made = Jobs(tmp_path)
    made.environment["PATH"] = list_as(TWO, tmp_path / "bin")
    yield made
    for job in made.started:
        job.kill()
        job.communicate()


def test_jobs_get_gpus_of_their_own_and_a_third_waits_its_turn(jobs):
    first, second = jobs.start(), jobs.start()
    mine = {sees(first), sees(second)}
    assert mine == {"GPU-aaaa-1", "GPU-bbbb-2"}
    third = jobs.start()
    assert third.stdout.readline() == "waiting for 1 of 2 GPUs; other jobs have leased them\n"
    second.send_signal(signal.SIGKILL)  # nothing of it can tidy up
    second.wait()
    freed = sees(third)
    assert freed in mine
    first.terminate()
    first.wait()
    assert sees(jobs.start()) in mine - {freed}


def test_a_job_that_needs_two_takes_both_or_none(jobs):
    one = jobs.start()
    taken = sees(one)
    both = jobs.start(2)
    assert both.stdout.readline().startswith("waiting for 2 of 2 GPUs")
    assert sees(jobs.start()) != taken  # what the waiting job could have had is free for others
    for job in (one, jobs.started[-1]):
        job.kill()
        job.wait()
    assert sees(both) == "GPU-aaaa-1,GPU-bbbb-2"


def test_what_somebody_else_decided_stays(jobs):
    sees(jobs.start(2))
    assert sees(jobs.start(2, CUDA_VISIBLE_DEVICES="7")) == "7"


def test_one_gpu_or_none_needs_no_lease(jobs, tmp_path):
    assert sees(jobs.start(PATH=list_as(TWO.splitlines()[0], tmp_path / "one"))) == "None"
    (tmp_path / "empty").mkdir()
    assert sees(jobs.start(3, PATH=str(tmp_path / "empty"))) == "None"


def test_more_gpus_than_there_are_is_one_clear_line(jobs):
    job = jobs.start(3)
    out, error = job.communicate(timeout=30)
    assert job.returncode == 1 and not out
    assert error == "error: this job is to have 3 GPUs (resources.gpus), this machine has 2\n"


def test_a_gpu_cut_into_instances_counts_as_these(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", list_as(CUT, tmp_path / "cut"))
    assert gpu_lease.list_gpus() == ["MIG-cccc-3", "MIG-dddd-4", "GPU-bbbb-2"]


def test_a_gpu_that_torch_does_not_see_is_an_error_unless_the_cpu_is_asked_for(tmp_path, monkeypatch):
    """A driver too old for torch's CUDA: the default experiment would take days on the CPU, unsaid."""
    monkeypatch.setenv("PATH", list_as(TWO, tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match="535.54.03.*driver 580 or newer.*CUDA_VISIBLE_DEVICES="):
        gpu_lease.refuse_unused()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="is a build without CUDA"):
        gpu_lease.refuse_unused()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu_lease.refuse_unused()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu_lease.refuse_unused()


def test_files_of_an_earlier_boot_are_in_nobodys_way(jobs, tmp_path):
    folder = tmp_path / f"kdag-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700)
    (folder / "GPU-aaaa-1").write_text("")
    start = time.monotonic()
    assert sees(jobs.start()) == "GPU-aaaa-1"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("asked", "visible", "expected"), [(1, 2, False), (2, 1, False), (2, 2, True)])
def test_a_model_is_spread_only_where_the_job_has_several(monkeypatch, tiny_models, asked, visible, expected):
    import torch
    import transformers

    from kdag.models import decoding, load

    given = []

    def stopped(directory, **named):
        given.append(named)
        raise LookupError("before anything is loaded")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(visible))))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", stopped)
    for module in (load, decoding):
        with pytest.raises(LookupError, match="before anything"):
            module.load_model(tiny_models / "student", "float32", gpus=asked)
    assert [named.get("device_map") for named in given] == [("auto" if expected else None)] * 2

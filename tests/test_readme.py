"""The README's commands, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What a command that is run here says; its experiment has been run, under the name mine.yaml.
SAYS = {
    "snakemake -n": "fetch_teacher",  # the default experiment
    "make run CONFIG=mine.yaml": "Nothing to be done",
    "snakemake --configfile mine.yaml": "Nothing to be done",
    "make adopt CONFIG=mine.yaml": "41 of 41 jobs are done here",
    "make doctor": "teacher",
    "make plan CONFIG=mine.yaml": "GPU hours",
    "make status CONFIG=mine.yaml": "jobs done; no run is going on",
}
# .ci/run runs these, or they need a network and a GPU.
ELSEWHERE = {
    "make demo",
    "make test",
    "source .venv/bin/activate",
    "snakemake --cores all",
    "snakemake --workflow-profile profiles/slurm",
}


def commands(name: str = "README.md") -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_is_tried_somewhere():
    assert set(commands()) == SAYS.keys() | ELSEWHERE


@pytest.fixture(scope="module")
def clone(finished, tmp_path_factory) -> Path:
    """The finished experiment beside the default one, as after `make install`."""
    folder = finished.copy(tmp_path_factory.mktemp("readme") / "project").folder
    shutil.move(folder / "config.yaml", folder / "mine.yaml")
    for name in ("config.yaml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


@pytest.mark.parametrize("command", SAYS)
def test_command(clone, command):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env=os.environ | {"PATH": path},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert SAYS[command] in done.stdout + done.stderr, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0 or command == "make doctor"  # which finds no GPU and no network here
    assert "Traceback" not in done.stderr

"""Shared fixtures: the tiny experiment, a copy of the project to run it in, the real data if it is there."""

import functools
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from kdag.job import arithmetic

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
arithmetic.make_reproducible()


def without_extras() -> dict[str, str]:
    """The environment of jobs that see what requirements.txt installs: PEFT would import bitsandbytes."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "without_extras")}


@functools.cache
def share_of(file: str) -> str:
    """A file is run by one worker, and those that read `finished`, a minute of work, by the same."""
    return "finished" if re.search(r"\bfinished\b", (ROOT / file).read_text()) else file


@pytest.hookimpl(optionalhook=True)  # without xdist nobody asks
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Shares(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return share_of(super()._split_scope(nodeid))

    return Shares(config, log)


def pytest_collection_modifyitems(items):
    # What takes longest begins.
    items.sort(key=lambda item: share_of(str(item.path.relative_to(ROOT))) != "finished")


def pytest_collection_finish():
    """What the imports made stays: statsmodels collects garbage in each of thousands of corrections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real prompts, answers and rows, which do not belong to the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared/data with real data is not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with teacher/ and student/."""
    folder = tmp_path_factory.mktemp("tiny_models")
    tiny.save_models(folder)
    return folder


class Project:
    """A copy of the workflow in a folder of its own, with the tiny experiment beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Snakefile", "workflow", "profiles", "envs"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        shutil.rmtree(folder / "workflow" / "scripts" / "__pycache__", ignore_errors=True)
        self.config = tiny.write_experiment(folder / "tiny")
        shutil.copy(self.config, folder / "config.yaml")
        self.results = folder / "results" / "tiny"

    def copy(self, folder: Path) -> "Project":
        """The project as it stands with its results, to be changed; models and data stay where they are."""
        shutil.copytree(self.folder, folder, symlinks=True)
        made = Project.__new__(Project)
        made.folder, made.config, made.results = folder, self.config, folder / "results" / "tiny"
        return made

    def snakemake(self, *arguments, timeout=1400, check=True, prefix=()) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy as on a machine without a GPU; `prefix`: a command that runs it."""
        command = [
            *prefix,
            sys.executable,
            "-m",
            "snakemake",
            "--workflow-profile",
            "profiles/cpu",
            *arguments,
        ]
        done = subprocess.run(
            command, cwd=self.folder, timeout=timeout, text=True, capture_output=True, env=without_extras()
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done

    def script(self, name: str, *arguments, check=True) -> subprocess.CompletedProcess:
        """Run a stage script by hand from the project's folder."""
        command = [sys.executable, f"workflow/scripts/{name}.py", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, text=True, capture_output=True, timeout=900, env=without_extras()
        )
        if check and done.returncode:
            raise AssertionError(f"{name} failed:\n{done.stderr[-6000:]}")
        return done


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose tiny experiment has run once, in each worker of the tests.

    Tests read it, or change a file and put it back; those that change results take a copy.
    """
    project = Project(tmp_path_factory.mktemp("project"))
    project.log = project.snakemake().stderr
    return project

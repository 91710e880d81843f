"""Each environment of `--sdm conda` holds what the stages that run in it import."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, requires

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

from kdag.files.code import SCRIPTS, files_of


def stages() -> dict[str, set[str]]:
    """{environment: the scripts that run in it}, as the rules say."""
    found = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^\s*rule ", file.read_text(), flags=re.M)[1:]:
            script = re.search(r'code=(?:ancient\()?code\("(\w+)"\)', rule)
            named = re.search(r'conda:\s+(?:"../../envs/(\w+).yaml"|(ANSWERS))', rule)
            if script and named:
                for name in [named[1]] if named[1] else ["eval", "vllm"]:
                    found.setdefault(name, set()).add(script[1])
    return found


def held(environment: str) -> set[str]:
    """The distributions of an environment: those that it names and what these need."""
    named = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"][-1]["pip"]
    todo, found = [(line, "") for line in named], set()
    while todo:
        line, extra = todo.pop()
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        for asked in ["", *wanted.extras]:
            key = (bare(wanted.name), asked)
            if key in found:
                continue
            found.add(key)
            try:
                todo += [(each, asked) for each in requires(wanted.name) or []]
            except PackageNotFoundError:  # vllm, and what is for other machines
                continue
    return {name for name, _ in found}


ENVIRONMENTS = stages()


def test_every_environment_is_used():
    assert ENVIRONMENTS.keys() == {file.stem for file in (ROOT / "envs").glob("*.yaml")}


def bare(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_holds_what_its_stages_import(environment, tmp_path):
    """Their modules are imported, lazy imports too, where nothing is installed but what it holds."""
    there = held(environment)
    assert not there & {"snakemake", "pytest"}
    for found in distributions():
        if bare(found.metadata["Name"]) in there:
            for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
                if not (tmp_path / top).exists():
                    (tmp_path / top).symlink_to(found.locate_file(top))
    files = {file for script in ENVIRONMENTS[environment] for file in files_of(SCRIPTS / f"{script}.py")}
    modules = sorted(".".join(file.relative_to(SCRIPTS).with_suffix("").parts) for file in files)
    modules = [name for name in modules if name != "kdag.evaluation.vllm"]  # vllm itself is not here
    code = f"import sys; sys.path += [{str(tmp_path)!r}, {str(SCRIPTS)!r}]; import {', '.join(modules)}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr[-1500:]

"""Snakemake's cache between workflows, an opt-in for the teacher and what is stored of it: A -> B -> A."""

import json

import pytest
import yaml
from conftest import Project

TARGET = "results/tiny/cache/manifest.json"


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


def run(project: Project, learning_rate: float) -> tuple[str, dict]:
    """(what Snakemake says, the cache's manifest) of the experiment up to the teacher's cache."""
    raw = yaml.safe_load(project.config.read_text())
    raw["teacher_training"]["learning_rate"] = learning_rate
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    said = project.snakemake("--cache", "--", TARGET).stderr
    return said, json.loads((project.folder / TARGET).read_text())


def test_a_teacher_that_was_trained_before_is_taken_from_the_cache(project, tmp_path, monkeypatch):
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(store))
    _, first = run(project, 1e-3)
    _, other = run(project, 2e-3)
    assert other["inputs"]["teacher"] != first["inputs"]["teacher"]
    log = project.results / "logs" / "sft_teacher.log"
    assert "step 3/3" in log.read_text()
    said, again = run(project, 1e-3)
    assert again == first
    assert not log.read_text(), "Snakemake leaves the log empty where a result comes from the cache"
    assert (project.results / "teacher" / "model" / "model.safetensors").is_file()
    assert "Nothing to be done" in project.snakemake("--cache", "-n", "--", TARGET).stdout

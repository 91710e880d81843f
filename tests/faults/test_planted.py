"""`make why` on experiments that really ran, with a cause planted in each; and on one without."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Project

from kdag.files.hashes import sha256_file

pytestmark = pytest.mark.faults

PLANTED = {
    "wild": {"divergence": "fkl", "learning_rate": 0.5},
    "flat": {"divergence": "rkl", "temperature": 100, "use_ce_loss": False},
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Project:
    """The tiny experiment with a teacher that has learned more than its students will, and two bad ideas."""
    project = Project(tmp_path_factory.mktemp("why"))
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["teacher_training"] |= {"epochs": 12, "learning_rate": 5e-3, "lora_rank": 16}
    config["distillation"] |= {"epochs": 12, "learning_rate": 5e-3, "lora_rank": 16}
    config["strategies"] |= PLANTED
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    project.snakemake()
    return project


def told(project: Project) -> str:
    return project.script("why").stdout.split("\n\n")[-1]


def without(project: Project, names) -> None:
    """The strategies are not asked about."""
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["strategies"] = {k: v for k, v in config["strategies"].items() if k not in names}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def test_a_rate_that_is_too_high_and_a_temperature_that_flattens_are_named(taught):
    said = told(taught)
    assert "`wild` got worse while it trained, or stopped learning" in said
    assert "The temperature flattens the teacher of `flat`" in said
    assert "teacher is worse" not in said and "labels" not in said and "prompt" not in said


@pytest.fixture
def healthy(taught, tmp_path) -> Project:
    project = taught.copy(tmp_path / "project")
    without(project, PLANTED)
    return project


def test_five_healthy_students_are_met_with_silence(healthy):
    said = told(healthy)
    assert "What the evidence points to" not in said
    assert said.startswith("Nothing stands out") or "nothing that is looked at here says why" in said


def test_labels_that_are_shifted_by_one_are_named(healthy):
    """Planted in the one shift of the code."""
    code = healthy.folder / "workflow" / "scripts" / "kdag" / "data" / "rows.py"
    text = code.read_text()
    planted = text.replace("ids[1:]", "ids[:-1]", 1)
    assert planted != text
    code.write_text(planted)
    assert "The labels are shifted" in told(healthy)


def test_a_prompt_in_the_loss_is_named(healthy):
    """Planted in the rows: every token is learned."""
    file = healthy.results / "data" / "train.parquet"
    table = pq.read_table(file)
    masks = [[1] * len(ids) for ids in table["input_ids"].to_pylist()]
    column = table.schema.get_field_index("response_mask")
    field = table.schema.field("response_mask")
    pq.write_table(table.set_column(column, field, pa.array(masks, field.type)), file)
    manifest = healthy.results / "data" / "manifest.json"
    said = json.loads(manifest.read_text())
    said["files"]["train.parquet"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    manifest.write_text(json.dumps(said))
    assert "The prompt is in the loss" in told(healthy)


def test_a_teacher_that_is_worse_than_its_student_is_named(finished, tmp_path):
    """The tiny experiment's own, which has three steps and begins from nothing."""
    project = finished.copy(tmp_path / "project")
    assert "The teacher is worse than the student it teaches" in told(project)
    shutil.rmtree(project.results / "report")
    done = project.script("why", check=False)
    assert done.returncode == 1 and "is not finished: run it first, then ask why" in done.stderr

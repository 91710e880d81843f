"""Damaged files are found before they are used, and named with what rebuilds them.

`make test-faults` runs this; plain `make test` does not. Faults of a cluster are in tests/slurm.
"""

import re
import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def damage(file: Path, how: str, other: Path) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) // 2]
        case "flipped":
            content[len(content) // 2] ^= 1
        case "emptied":
            content = b""
        case "replaced":
            content = other.read_bytes()
    file.write_bytes(content)


# What is damaged, the stage that meets it, and what that stage is given; {r}: the results.
USES = {
    "teacher/model/model.safetensors": (
        "cache_teacher",
        "--model {r}/teacher/model --train {r}/data/train.parquet --heldout {r}/data/heldout.parquet"
        " --manifest {t}/manifest.json",
    ),
    "students/fkl/seed0/model/model.safetensors": (
        "generate",
        "--model {r}/students/fkl/seed0/model --chat {r}/data/chat.json --prompts {r}/data/prompts.jsonl"
        ' --output {t}/s.jsonl --settings {t}/g.json --config {"max_new_tokens":2,"batch_size":4,'
        '"repetition_penalty":1.0,"dtype":"float32"}',
    ),
    "data/train.parquet": (
        "sft",
        "--model {s} --train {r}/data/train.parquet --output {t}/model --log {t}/log"
        " --manifest {t}/manifest.json",
    ),
    "cache/head.safetensors": (
        "distill",
        "--model {s} --train {r}/data/train.parquet --teacher {r}/cache/manifest.json --output {t}/model"
        " --log {t}/log --manifest {t}/manifest.json",
    ),
    "cache/manifest.json": (
        "distill",
        "--model {s} --train {r}/data/train.parquet --teacher {r}/cache/manifest.json --output {t}/model"
        " --log {t}/log --manifest {t}/manifest.json",
    ),
}


# A file of the same kind and of another model or part.
OTHERS = {
    "teacher/model/model.safetensors": "students/sft/seed0/model/model.safetensors",
    "students/fkl/seed0/model/model.safetensors": "students/rkl/seed0/model/model.safetensors",
    "data/train.parquet": "data/heldout.parquet",
    "cache/head.safetensors": "cache/train/shard-00000.safetensors",
    "cache/manifest.json": "teacher/manifest.json",
    "eval/fkl-seed0/samples.jsonl": "eval/teacher/samples.jsonl",
    "eval/fkl-seed0/generation.json": "eval/teacher/generation.json",
    "eval/fkl-seed0/scores.json": "eval/teacher/scores.json",
    "eval/fkl-seed0/fidelity.json": "eval/rkl-seed0/fidelity.json",
}


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied", "replaced"])
@pytest.mark.parametrize("file", USES)
def test_damage_is_found_before_use_and_named(finished, tmp_path, file, how):
    project = finished.copy(tmp_path / "project")
    if (file, how) == ("cache/manifest.json", "flipped"):
        pytest.skip("a digit of a manifest that changed shows as the file that it no longer fits")
    target = project.results / file
    damage(target, how, project.results / OTHERS[file])
    stage, words = USES[file]
    student = next(project.folder.glob("resources/models/student-*/model"))
    made = tmp_path / "made"
    made.mkdir()
    places = {"{r}": project.results, "{s}": student, "{t}": made}
    for name, place in places.items():
        words = words.replace(name, str(place))
    done = project.script(stage, *words.split(" "), check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    said = done.stderr.strip().split("\n")[-1]
    assert target.name in said and "snakemake" in said
    assert not list(made.rglob("*.safetensors")) and not (made / "manifest.json").exists()


EVIDENCE = ["samples.jsonl", "generation.json", "scores.json", "fidelity.json"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in EVIDENCE for how in ("flipped", "replaced")),
        ("samples.jsonl", "truncated"),
        ("scores.json", "emptied"),
    ],
)
def test_damaged_evidence_is_named_by_the_run_and_rebuilt(finished, tmp_path, name, how):
    project = finished.copy(tmp_path / "project")
    target = project.results / "eval" / "fkl-seed0" / name
    damage(target, how, project.results / OTHERS[f"eval/fkl-seed0/{name}"])
    done = project.snakemake(check=False)
    assert done.returncode and "Traceback" not in done.stderr
    (said,) = {line for line in done.stderr.split("\n") if " error: " in line}
    assert str(target.relative_to(project.folder)) in said
    doomed = project.folder / re.search(r"Delete (\S+) and run snakemake again", said)[1]
    shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
    project.snakemake()
    for report in ("table.md", "comparisons.csv", "verdict.md"):
        ours, theirs = (p.results / "report" / report for p in (project, finished))
        assert ours.read_bytes() == theirs.read_bytes()

"""Damaged files are found before they are used, and named with what rebuilds them.

`make test-faults` runs this; plain `make test` does not. Faults of a cluster are in tests/slurm.
"""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) // 2]
        case "flipped":
            content[len(content) // 2] ^= 1
        case "emptied":
            content = b""
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
        "--model {r}/students/fkl/seed0/model --prompts {r}/data/prompts.jsonl --output {t}/s.jsonl"
        ' --settings {t}/g.json --config {"max_new_tokens":2,"batch_size":4,"repetition_penalty":1.0,'
        '"dtype":"float32"}',
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


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
@pytest.mark.parametrize("file", USES)
def test_damage_is_found_before_use_and_named(finished, tmp_path, file, how):
    project = finished.copy(tmp_path / "project")
    if (file, how) == ("cache/manifest.json", "flipped"):
        pytest.skip("a digit of a manifest that changed shows as the file that it no longer fits")
    target = project.results / file
    damage(target, how)
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

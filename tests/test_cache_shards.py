"""The teacher's cache written by several jobs: the same files and manifest, each share redone alone."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Project
from test_workflow import planned

import cache_teacher
import gather_cache
from kdag.job.errors import UserError
from kdag.teacher.cache import files_of_share


def content(folder: Path) -> dict[str, bytes]:
    """{name: bytes} of every file but Snakemake's own notes and the records of jobs."""
    files = [f for f in folder.rglob("[!.]*") if f.is_file() and not f.name.startswith("job-")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def write_share(results: Path, target: Path, number: int, count: int) -> Path:
    settings = json.loads((results / "cache" / "manifest.json").read_text())["params"]
    home = target / f"{number}-of-{count}"
    arguments = {
        "config": json.dumps(settings),
        "model": results / "teacher" / "model",
        "train": results / "data" / "train.parquet",
        "heldout": results / "data" / "heldout.parquet",
        "share": f"{number}/{count}",
        "files": home / "files",
        "manifest": home / "manifest.json",
    }
    given = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    cache_teacher.main(cache_teacher.arguments().parse_args(given))
    return home / "manifest.json"


def gather(shares: list[Path], target: Path) -> None:
    given = ["--shares", *map(str, shares), "--manifest", str(target / "manifest.json")]
    gather_cache.main(gather_cache.arguments().parse_args(given))


@pytest.fixture(scope="module")
def shares(finished, tmp_path_factory) -> list[Path]:
    """The manifests of three shares of the finished experiment's cache of four files."""
    target = tmp_path_factory.mktemp("cache") / "cache-shards"
    return [write_share(finished.results, target, number, 3) for number in range(3)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_shares_in_order_are_all_files_once(count):
    rows, found = {"train": 45, "heldout": 11}, []
    for number in range(count):
        files = files_of_share(rows, 10, number, count)
        found += [(part, file) for part in rows for file in files[part]]
    assert found == [*(("train", n) for n in range(5)), ("heldout", 0), ("heldout", 1)]
    sizes = [sum(map(len, files_of_share(rows, 10, number, count).values())) for number in range(count)]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] > 0


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_cache_is_the_same_however_many_jobs_wrote_it(finished, shares, tmp_path, count):
    made = shares
    if count != 3:
        made = [write_share(finished.results, tmp_path / "shards", n, count) for n in range(count)]
    gather(made, tmp_path / "cache")
    assert content(tmp_path / "cache") == content(finished.results / "cache")
    heads = [path for path in made if (path.parent / "files" / "head.safetensors").is_file()]
    assert heads == made[:1]


def test_gathering_takes_no_disk(shares, tmp_path):
    gather(shares, tmp_path / "cache")
    for path in shares:
        for file in (path.parent / "files").rglob("*.safetensors"):
            name = file.relative_to(path.parent / "files")
            assert file.samefile(tmp_path / "cache" / name), name


def test_without_hard_links_it_is_a_copy(shares, tmp_path, monkeypatch):
    def refuses(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuses)
    gather(shares, tmp_path / "copied")
    monkeypatch.undo()
    gather(shares, tmp_path / "linked")
    assert content(tmp_path / "copied") == content(tmp_path / "linked")


@pytest.mark.parametrize("fault", ["cut off", "missing", "other software"])
def test_shares_that_do_not_fit_are_refused(shares, tmp_path, fault):
    target = tmp_path / "cache-shards"
    shutil.copytree(shares[0].parents[1], target)
    copies = [target / path.parent.name / path.name for path in shares]
    file = next((copies[1].parent / "files").rglob("*.safetensors"))
    match fault:
        case "cut off":
            file.write_bytes(file.read_bytes()[:-1])
        case "missing":
            file.unlink()
        case "other software":
            manifest = json.loads(copies[1].read_text())
            manifest["versions"]["torch"] = "another"
            copies[1].write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="run snakemake again") as caught:
        gather(copies, tmp_path / "cache")
    assert str(copies[1].parent) in str(caught.value)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_shares_of_another_number_of_jobs_are_cleared_away(finished, shares, tmp_path):
    target = tmp_path / "cache-shards"
    shutil.copytree(shares[0].parents[1], target)
    made = [write_share(finished.results, target, 0, 1)]
    gather(made, tmp_path / "cache")
    assert [path.name for path in target.iterdir()] == ["0-of-1"]


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> Project:
    """The finished project with its results, to be changed."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(finished.folder, folder, symlinks=True)
    copy = object.__new__(Project)
    copy.folder, copy.results = folder, folder / "results" / "tiny"
    return copy


def test_another_number_of_gpus_runs_nothing_again(finished, tmp_path):
    raw = yaml.safe_load((finished.folder / "config.yaml").read_text())
    stages = ("sft_teacher", "cache_teacher", "sft_student", "distill", "generate", "measure_fidelity")
    raw["resources"] = {"gpus": dict.fromkeys(stages, 2)}
    config = tmp_path / "gpus.yaml"
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    arguments = ["--configfile", str(config)]
    assert not planned(finished, *arguments)[0]
    printed = finished.snakemake("-n", "-p", "--forceall", *arguments).stdout
    commands = [line for line in printed.splitlines() if "python workflow/scripts/" in line]
    gpus = [command for command in commands if "--gpus" in command]
    assert len(gpus) == 1 + 1 + 1 + 5 + 8 + 6 and all("--gpus 2 " in command for command in gpus)


def with_shards(project: Project, count: int) -> list[str]:
    raw = yaml.safe_load((project.folder / "config.yaml").read_text())
    raw["teacher_cache"]["shards"] = count
    config = project.folder / f"shards{count}.yaml"
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    return ["--configfile", config.name]


def test_another_number_of_jobs_retrains_no_student(copied):
    """Snakemake sees in the next call that the gathered manifest is the one it knows."""
    before = content(copied.results / "cache")
    arguments = with_shards(copied, 3)
    rules, _ = planned(copied, *arguments)
    assert rules["cache_shard"] == 3 and rules["gather_cache"] == 1 and "sft_teacher" not in rules
    copied.snakemake("--until", "gather_cache", *arguments)
    assert content(copied.results / "cache") == before
    assert not planned(copied, *arguments)[0]


def test_a_failed_share_is_redone_alone(copied):
    arguments = with_shards(copied, 3)
    before = content(copied.results / "cache")
    shutil.rmtree(copied.results / "cache-shards" / "1-of-3")
    rules, wildcards = planned(copied, "--until", "gather_cache", "--forcerun", "gather_cache", *arguments)
    assert rules == {"cache_shard": 1, "gather_cache": 1}
    copied.snakemake("--until", "gather_cache", "--forcerun", "gather_cache", *arguments)
    assert content(copied.results / "cache") == before
    assert not planned(copied, *arguments)[0]

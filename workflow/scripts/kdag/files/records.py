"""What a job was given and what it made, in job-<script>.json next to its outputs.

Snakemake knows it too, but in .snakemake/ of the folder where it ran, which stays behind when results are
moved. By the record they are recognised (operate/adopt.py), and a second job for the same outputs, which had
to wait for the first, does not make them again.
"""

import functools
import json
import logging
import os
import sys
from pathlib import Path

from kdag.files import code
from kdag.files.atomic import write_json
from kdag.files.hashes import sha256_file, sha256_json
from kdag.files.reading import rebuild
from kdag.job import cli, launching, lock
from kdag.job.errors import UserError


def recorded(main):
    """main(args), once at a time for a folder, its record written when it is done.

    What exists before is what the job was given; Snakemake has removed its outputs, or there were none.
    """

    @functools.wraps(main)
    def with_record(args):
        if launching.LAUNCHER in os.environ:  # one of several processes; the first one's parent does this
            return main(args)
        paths = cli.paths(args)
        missing = [path for path in paths if not path.exists()]
        script = Path(sys.argv[0]).stem
        if not missing:  # by hand, over what is there, of which a record would no longer be true
            for folder in {path.parent for path in paths}:
                (folder / f"job-{script}.json").unlink(missing_ok=True)
            return main(args)
        waited = lock.take(missing[0].parent / f".lock-{script}")
        target = missing[0].parent / f"job-{script}.json"
        read_now = hashes(inputs(paths, missing, args))
        refuse_changed({path: read_now[str(path)] for path in paths if str(path) in read_now})
        given = {"config": config_of(sys.argv), "inputs": read_now}
        if waited and all(path.exists() for path in missing) and same(target, given):
            return logging.info("made meanwhile by the job that this one waited for")
        target.unlink(missing_ok=True)
        main(args)
        outputs = [path for path in missing if path.exists()]
        names = {path.name for path in outputs}
        for file in target.parent.glob("job-*.json"):  # of another rule that made the same before
            record = read(file)
            if record and names & {Path(name).name for name in record["outputs"]}:
                file.unlink()
        ran = [*code.files_of(Path(sys.argv[0]).resolve()), *code.chosen()]
        return write_json(target, {**given, "code": code.fingerprint(ran), "outputs": hashes(outputs)})

    return with_record


def config_of(words: list[str]) -> str | None:
    """The parameters of a job, as its command line has them."""
    return words[words.index("--config") + 1] if "--config" in words else None


def inputs(paths: list[Path], missing: list[Path], args) -> list[Path]:
    """What was given: files as such, a folder by the manifest next to it, the user's own files besides."""
    there = [path for path in paths if path not in missing]
    config = getattr(args, "config", None)
    own = Path(config["path"]) if isinstance(config, dict) and config.get("path") else None
    if own is not None and own.exists():
        there += sorted(own.rglob("*")) if own.is_dir() else [own]
    beside = [path.parent / "manifest.json" for path in there]
    return [path for path in dict.fromkeys([*there, *beside]) if path.is_file()]


def refuse_changed(files: dict[Path, str]) -> None:
    """UserError unless each of {path: sha256} is what the job that made it left, where a record says what."""
    for path, now in files.items():
        made = [record for record in map(read, path.parent.glob("job-*.json")) if record]
        left = {Path(name).name: sha for record in made for name, sha in record["outputs"].items()}
        if path.name in left and left[path.name] != now:
            raise UserError(f"{path} has changed since it was written. {rebuild(path)}")


def hashes(paths) -> dict[str, str]:
    return {str(path): sha256_tree(path) if path.is_dir() else sha256_file(path) for path in paths}


def sha256_tree(folder: Path) -> str:
    """One hash of the files in a folder, without what Snakemake puts there."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".snakemake")]
    return sha256_json({file.relative_to(folder).as_posix(): sha256_file(file) for file in files})


def same(target: Path, given: dict) -> bool:
    """Is the record `target` of a job with the same parameters and inputs, and its outputs intact?"""
    record = read(target)
    if record is None:
        return False
    return all(record.get(key) == given[key] for key in given) and damaged(record) is None


def damaged(record: dict) -> str | None:
    """The first output that is not what the record says, in words; None where all are."""
    for name, expected in record["outputs"].items():
        if not Path(name).exists():
            return f"{name} is missing"
        if hashes([Path(name)])[name] != expected:
            return f"{name} has changed since it was written"
    return None


def read(file: Path) -> dict | None:
    """A record, or None where there is none that can be read."""
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"config", "code", "inputs", "outputs"} <= set(record)
    return record if whole else None

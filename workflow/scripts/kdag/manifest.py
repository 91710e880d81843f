"""Whole files or none: atomic writes, hashes, and the manifest that says what a stage made and from what.

A stage writes beside its target and renames, so what exists is whole. Its manifest.json is written
last and holds no timestamp: equal inputs give an equal manifest, and Snakemake then runs nothing below.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdag.errors import UserError

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "accelerate",
    "unsloth",
    "lm-eval",
    "safetensors",
)


def canonical_json(value) -> str:
    """One string per value: sorted keys, no spaces. What is hashed, and what Snakemake compares."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_json(value) -> str:
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a directory to; it takes target's place on success."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        _remove(leftover)
    try:
        yield partial
        if partial.is_dir():
            _remove(target)
        os.replace(partial, target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(target: Path, value) -> None:
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(target: Path, rows) -> None:
    write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}. {rebuild(path)}") from error


def write_sealed(target: Path, value: dict) -> None:
    """As write_json, with the hash of the rest under `seal`: for results that no manifest lists."""
    write_json(target, {**value, "seal": sha256_json(value)})


def read_sealed(path: Path) -> dict:
    """What `write_sealed` wrote, without its seal; UserError where it is no longer that."""
    value = read_json(path)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is None or seal != sha256_json(value):
        raise UserError(f"{path} has changed since it was written. {rebuild(path)}")
    return value


def check_source(path: Path, inputs: dict, name: str, source: Path) -> None:
    """UserError unless the result `path` was made from the file `source` as it is now.

    inputs: {name: sha256} of what was read, as the result recorded it.
    """
    if inputs.get(name) != sha256_file(source):
        raise UserError(f"{source} is not the file that {path} was made from. {rebuild(Path(path).parent)}")


def rebuild(path: Path) -> str:
    return f"Delete {path} and run snakemake again to rebuild it."


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON Lines file. UserError names the line that is not a JSON object."""
    rows = []
    try:
        # Not splitlines(): a JSON string may hold U+2028, which is no end of line here.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object is needed, got {line[:60]!r}")
        rows.append(row)
    return rows


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hash_files(root: Path, paths) -> dict[str, dict]:
    """{path relative to root: {bytes, sha256}} of every file in `paths`, directories walked."""
    files = {}
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                name = file.relative_to(root).as_posix()
                files[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    return files


def write_manifest(path: Path, *, stage: str, params: dict, inputs: dict, outputs, **extra) -> dict:
    """Write the manifest of a stage that is done.

    inputs: {name: sha256 of what was read}; outputs: files and directories below the manifest's folder.
    """
    path = Path(path)
    manifest = {
        "stage": stage,
        "params": params,
        "inputs": inputs,
        "files": hash_files(path.parent, outputs),
        "versions": versions(),
        **extra,
    }
    write_json(path, manifest)
    return manifest


def verify_files(manifest_path: Path, prefixes: tuple[str, ...] = ("",)) -> dict:
    """Read a manifest and check every file it lists (whose name begins so) by size and hash.

    Raises UserError naming the damaged file and the way to rebuild it.
    """
    manifest_path = Path(manifest_path)
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict) or "files" not in manifest:
        raise UserError(f"{manifest_path} is not a manifest. {rebuild(manifest_path)}")
    listed = {name: file for name, file in manifest["files"].items() if name.startswith(prefixes)}
    if not listed:
        raise UserError(
            f"{manifest_path} is of another stage: it lists no {prefixes[0]}. {rebuild(manifest_path)}"
        )
    for name, expected in listed.items():
        file = manifest_path.parent / name
        if not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != expected["bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {expected['bytes']}"
        elif sha256_file(file) != expected["sha256"]:
            problem = "has another SHA-256 than when it was written"
        else:
            continue
        raise UserError(f"{file} {problem}. {rebuild(manifest_path)}")
    return manifest


def sha256_beside(path: Path) -> str | None:
    """The hash of the manifest beside a model's folder: which model it is. One made by hand has none."""
    manifest = Path(path).parent / "manifest.json"
    return sha256_file(manifest) if manifest.is_file() else None


def verify_beside(path: Path) -> None:
    """Check a file or folder against the manifest that lies beside it; one made by hand may have none."""
    path = Path(path)
    manifest = path.parent / "manifest.json"
    if manifest.is_file():
        verify_files(manifest, (path.name if path.is_file() else f"{path.name}/",))

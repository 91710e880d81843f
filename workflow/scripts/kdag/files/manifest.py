"""The manifest that says what a stage made and from what, and the check of files against it.

It is written last, when everything else is whole (atomic.py), and holds no timestamp: equal inputs give an
equal manifest, and Snakemake then runs nothing below.
"""

import contextlib
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdag.files.atomic import write_json
from kdag.files.hashes import sha256_file
from kdag.files.reading import read_json, rebuild
from kdag.job.errors import UserError

KEYS = ("stage", "params", "inputs", "files", "versions")  # of every manifest
SUBSET = ("vocabulary_size", "vocabulary_hash", "template_hash")  # of that of the encoded rows besides
CACHE = ("vocabulary_hash", "template_hash", "row_hashes", "store")
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


def read_manifest(path: Path, keys: tuple[str, ...] = ()) -> dict:
    """A manifest that has what every one has, and `keys` besides; UserError where it is another file."""
    manifest = read_json(path)
    whole = isinstance(manifest, dict) and set(keys) | set(KEYS) <= set(manifest)
    if not whole or not all(isinstance(manifest[key], dict) for key in ("inputs", "files")):
        raise UserError(f"{path} is not a manifest. {rebuild(path)}")
    if not all(isinstance(f, dict) and {"bytes", "sha256"} <= set(f) for f in manifest["files"].values()):
        raise UserError(f"{path} is not a manifest. {rebuild(path)}")
    return manifest


def verify_files(manifest_path: Path, prefixes: tuple[str, ...] = ("",), keys: tuple[str, ...] = ()) -> dict:
    """Read a manifest and check every file it lists (whose name begins so) by size and hash.

    Raises UserError naming the damaged file and the way to rebuild it.
    """
    manifest = read_manifest(manifest_path, keys)
    refuse_damaged(listed(manifest_path, manifest, prefixes), manifest_path)
    return manifest


def listed(manifest_path: Path, manifest: dict, prefixes: tuple[str, ...]) -> dict[Path, dict]:
    """{file: {bytes, sha256}} of what a manifest lists and whose name begins so."""
    folder = Path(manifest_path).parent
    found = {folder / name: file for name, file in manifest["files"].items() if name.startswith(prefixes)}
    if not found:
        raise UserError(
            f"{manifest_path} is of another stage: it lists no {prefixes[0]}. {rebuild(manifest_path)}"
        )
    return found


def refuse_damaged(files: dict[Path, dict], manifest_path: Path, *, hashed: bool = True) -> None:
    """UserError, if a file is not as {file: {bytes, sha256}} says; by its size alone, unless `hashed`."""
    for file, expected in files.items():
        if not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != expected["bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {expected['bytes']}"
        elif hashed and sha256_file(file) != expected["sha256"]:
            problem = "has another SHA-256 than when it was written"
        else:
            continue
        raise UserError(f"{file} {problem}. {rebuild(manifest_path)}")


def sha256_beside(path: Path) -> str | None:
    """The hash of the manifest next to a model's folder: which model it is. One made by hand has none."""
    manifest = Path(path).parent / "manifest.json"
    return sha256_file(manifest) if manifest.is_file() else None


def verify_beside(path: Path) -> None:
    """Check a file or folder against the manifest that lies next to it; one made by hand may have none."""
    if manifest := manifest_beside(path):
        verify_files(manifest, (inside(path),))


def manifest_beside(path: Path) -> Path | None:
    """It is called manifest.json, or as a folder that shares its place with others, with .json."""
    path = Path(path)
    for manifest in (path.parent / "manifest.json", path.with_name(f"{path.name}.json")):
        if manifest.is_file():
            return manifest
    return None


def inside(path: Path) -> str:
    """How the names of what belongs to a file or folder begin in the manifest next to it."""
    return Path(path).name + ("" if Path(path).is_file() else "/")


@contextlib.contextmanager
def verified_meanwhile(folder: Path):
    """`verify_beside` of a model's folder, its weights hashed in a thread while the block loads them.

    Only safetensors files wait so long: they hold numbers and nothing that could act. Damage is what is
    raised, whatever became of the block by it.
    """
    manifest_path = manifest_beside(folder)
    if manifest_path is None:
        yield
        return
    files = listed(manifest_path, read_manifest(manifest_path), (inside(folder),))
    weights = {file: expected for file, expected in files.items() if file.suffix == ".safetensors"}
    refuse_damaged({file: files[file] for file in files if file not in weights}, manifest_path)
    refuse_damaged(weights, manifest_path, hashed=False)
    found = []

    def check():
        try:
            refuse_damaged(weights, manifest_path)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=check, daemon=True)  # who interrupts the block does not wait for it
    thread.start()
    try:
        yield
    except Exception as error:
        thread.join()
        if found:
            raise found[0] from error
        raise
    thread.join()
    if found:
        raise found[0]

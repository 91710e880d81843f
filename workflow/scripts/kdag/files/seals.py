"""Results that no manifest lists carry the hash of themselves and of what they were made from."""

from pathlib import Path

from kdag.files.atomic import write_json
from kdag.files.hashes import sha256_file, sha256_json
from kdag.files.reading import read_json, rebuild
from kdag.job.errors import UserError


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

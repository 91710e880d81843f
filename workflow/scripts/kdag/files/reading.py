"""JSON and JSON Lines, with an error that names the file and the line."""

import json
from pathlib import Path

from kdag.job.errors import UserError


def read_json(path: Path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}. {rebuild(path)}") from error


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

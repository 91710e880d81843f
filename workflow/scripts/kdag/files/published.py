"""The files of a teacher's published log-probs, in DistillKit's format (teacher/published.py reads them)."""

import fnmatch
from pathlib import Path

from kdag.job.errors import UserError

SETTINGS = "compression_config.yaml"  # what DistillKit writes next to them
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")


def wanted(folder: Path, pattern: str) -> list[Path]:
    """Those whose name below the folder the pattern is of, `*` being any part of a name with its slashes, as
    it is where a hub's files are chosen; and their settings."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return [path for name, path in named.items() if name == SETTINGS or fnmatch.fnmatch(name, pattern)]


def opened(path: Path):
    """A pyarrow.parquet.ParquetFile that has COLUMNS; UserError names what it lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if lacking := [name for name in COLUMNS if name not in file.schema_arrow.names]:
        raise UserError(f"{path}: no column {lacking[0]}; {', '.join(COLUMNS)} are needed")
    return file

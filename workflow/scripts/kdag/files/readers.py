"""Files of rows: JSON, JSON Lines, CSV, TSV, Parquet and Arrow, packed by gzip or not, one row at a time.

What a file holds counts, and not its ending: many exporters write lines under .json, and arrays under .jsonl.
"""

import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdag.job.errors import UserError

TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
ENDINGS = (*TEXTS, ".parquet", ".arrow")
READABLE = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, or one of them with .gz"
BATCH = 1000  # rows of a table that are turned into objects at a time


def ending(path) -> str:
    """The kind of a file by its name; .gz is no kind."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def rows(path: Path) -> Iterator[dict]:
    """Every row of a file. UserError says what is wrong with it, and where."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    match ending(path):
        case ".json" | ".jsonl" | ".ndjson":
            yield from json_rows(path)
        case ".csv":
            yield from table_rows(path, ",")
        case ".tsv":
            yield from table_rows(path, "\t")
        case ".parquet" | ".arrow":
            yield from arrow_rows(path)
        case _:
            raise UserError(f"{path}: a file that ends in {READABLE} is needed")


@contextmanager
def text(path: Path):
    """The file as text, unpacked, without a byte order mark; UserError where it is none."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opened = gzip.open if packed else open
    try:
        # Only \n ends a line: a JSON string may hold U+2028, and a cell \r. What is left of \r\n is blank.
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def json_rows(path: Path) -> Iterator[dict]:
    """The objects of a JSON array, or one on each line."""
    with text(path) as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if first.lstrip().startswith("["):
            yield from array(path, file.read())
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parsed(path, number, line)


def array(path: Path, content: str) -> list[dict]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: its values are nested too deeply") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path}: a JSON array of objects is needed")
    return found


def parsed(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        hint = " (an array of rows, or one row on each line, is needed)" if line.strip() == "{" else ""
        raise UserError(f"{path}, line {number}: not JSON: {error}{hint}") from error
    except RecursionError as error:
        raise UserError(f"{path}, line {number}: its values are nested too deeply") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: a JSON object is needed, got {line[:60]!r}")
    return row


def table_rows(path: Path, separator: str) -> Iterator[dict]:
    """Rows of a CSV or TSV file with a header, every cell as the text that it is."""
    import pandas as pd

    with text(path) as file:
        try:
            chunks = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, chunksize=BATCH)
            for chunk in chunks:
                if not isinstance(chunk.index, pd.RangeIndex):
                    raise ValueError("its rows have more cells than its header")
                yield from chunk.to_dict("records")
        except ValueError as error:  # pandas' own are kinds of it
            raise UserError(f"{path}: not a table: {error}") from error


def arrow_rows(path: Path) -> Iterator[dict]:
    """Rows of a Parquet or Arrow file, without the columns that hold bytes, such as images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if ending(path) == ".parquet":
            file = pq.ParquetFile(path)
            schema, batches = file.schema_arrow, lambda names: file.iter_batches(BATCH, columns=names)
        else:
            schema, batches = arrow_batches(path)
        names = [field.name for field in schema if not holds_bytes(field.type)]
        for batch in batches(names):
            for row in batch.to_pylist():
                yield {name: tight(value) for name, value in row.items()}
    except (OSError, pa.ArrowException) as error:
        kind = "Parquet" if ending(path) == ".parquet" else "Arrow"
        raise UserError(f"{path}: not {kind}: {str(error).splitlines()[0]}") from error


def tight(value):
    """A nested value without the keys that it has only because others of its column have them."""
    if isinstance(value, dict):
        return {key: tight(each) for key, each in value.items() if each is not None}
    return list(map(tight, value)) if isinstance(value, list) else value


def arrow_batches(path: Path):
    """(schema, function of column names that gives batches) of an Arrow file or stream."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        found = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        source.seek(0)
        file = pa.ipc.open_stream(source)
        found = iter(file)
    return file.schema, lambda names: (batch.select(names) for batch in found)


def holds_bytes(kind) -> bool:
    import pyarrow.types as types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return True
    return any(holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def write_lines(found: Iterator[dict], target: Path, most: int | None = None) -> int:
    """Write rows as JSON Lines, at most so many; returns how many there were."""
    number = -1
    with open(target, "w", encoding="utf-8", newline="\n") as lines:
        for number, row in enumerate(itertools.islice(found, most)):
            try:
                lines.write(json.dumps(plain(row), ensure_ascii=False, default=str) + "\n")
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise UserError(f"row {number}: half a character, {half!a}, is not text") from error
            except RecursionError as error:
                raise UserError(f"row {number}: its values are nested too deeply") from error
    return number + 1


def plain(value):
    """A value without NaN, which tables hold where there is nothing."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


def copy(path: Path, target: Path, most: int | None) -> int:
    """The first rows of a file as JSON Lines."""
    return write_lines(rows(path), target, most)


def first_rows(path) -> list[dict]:
    """Those in the first MiB of a text file; none if it is damaged, which the stage that reads it says."""
    try:
        with text(Path(path)) as file:
            return list(beginning(ending(path), file.read(2**20)))
    except (UserError, OSError, ValueError, RecursionError, csv.Error):
        return []


def beginning(kind: str, content: str) -> Iterator[dict]:
    if kind in (".csv", ".tsv"):
        lines = io.StringIO(content)
        yield from itertools.islice(csv.DictReader(lines, delimiter="," if kind == ".csv" else "\t"), 100)
    elif kind in TEXTS:
        decoder, place = json.JSONDecoder(), 0
        content = content.lstrip().removeprefix("[")
        while (start := json_start(content, place)) is not None:
            try:
                row, place = decoder.raw_decode(content, start)
            except ValueError:
                return
            if isinstance(row, dict):
                yield row


def json_start(content: str, place: int) -> int | None:
    """Where the next object begins, behind white space and commas; None if none does."""
    while place < len(content) and content[place] in " \t\r\n,":
        place += 1
    return place if content[place : place + 1] == "{" else None

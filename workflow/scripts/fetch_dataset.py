"""Fetch the rows of a data set, from a hub, a file or an installed package, and write them as JSON Lines."""

import json
from pathlib import Path

import pandas as pd

from kdag.data.sources import fetching, package_file
from kdag.files import apart
from kdag.files.atomic import write_jsonl
from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.reading import read_jsonl
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError

SECONDS = 3600  # for a file of any size; a damaged one ends at once


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the source, as JSON")
    parser.add_argument("--output", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def read_file(path: Path) -> list[dict]:
    """Rows of a JSON array, JSON Lines or Parquet file, told by its ending."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return read_rows(path)
    except RecursionError as error:
        raise UserError(f"{path}: its values are nested too deeply") from error


def parquet(path: Path) -> str:
    """The rows as a JSON array."""
    return pd.read_parquet(path).to_json(orient="records")


def read_rows(path: Path) -> list[dict]:
    match path.suffix:
        case ".jsonl":
            return read_jsonl(path)
        case ".json":
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: not JSON: {error}") from error
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise UserError(f"{path}: a JSON array of objects is needed")
            return rows
        case ".parquet":
            what = f"{path}: not Parquet"
            return json.loads(apart.run(parquet, path, what=what, seconds=SECONDS))
    raise UserError(f"{path}: a .json, .jsonl or .parquet file is needed")


def read_hub(source: dict) -> tuple[list[dict], str]:
    """Rows and the commit they were read at."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    with fetching(f"data set {source['id']}"):
        commit = HfApi().dataset_info(source["id"], revision=source["revision"]).sha
        rows = load_dataset(source["id"], split=source["split"], revision=commit)
    return rows.to_list(), commit


def main(args):
    source = args.config
    commit = None
    if source["source"] == "hub":
        rows, commit = read_hub(source)
        inputs = {}
    else:
        if source["source"] == "path":
            path = Path(source["path"])
        else:
            path = package_file(source["package"], source["file"])
        rows = read_file(path)
        inputs = {path.name: sha256_file(path)}
    if not rows:
        raise UserError(f"the data set has no rows: {source}")
    try:
        write_jsonl(args.output, rows)
    except UnicodeEncodeError as error:
        row = error.object.count("\n", 0, error.start)
        raise UserError(f"row {row}: half a character, {error.object[error.start]!a}, is not text") from error
    except TypeError as error:
        raise UserError(f"the data set holds values that are no JSON: {error}: {source}") from error
    write_manifest(
        args.manifest,
        stage="fetch_dataset",
        params=source,
        inputs=inputs,
        outputs=[args.output],
        revision=commit,
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), network=True)

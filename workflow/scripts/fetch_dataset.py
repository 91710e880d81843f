"""Fetch the rows of a data set, from a hub, a file or an installed package, and write them as JSON Lines."""

import importlib.metadata
import json
from pathlib import Path

from kdag.data import generated
from kdag.data.sources import fetching, package_file
from kdag.files import apart, readers
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.job.progress import Progress

SECONDS = 3600  # for a file of any size; a damaged one ends at once


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the source, as JSON")
    parser.add_argument("--output", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def from_hub(source: dict, output: Path) -> str:
    """Write as many rows as are wanted: no more are downloaded. Returns the commit they were read at."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    with fetching(f"data set {source['id']}"):
        commit = HfApi().dataset_info(source["id"], revision=source["revision"]).sha
        named = {"name": source.get("name"), "split": source["split"], "revision": commit}
        found = load_dataset(source["id"], streaming=True, **named)
        found = found.remove_columns([name for name, kind in (found.features or {}).items() if is_file(kind)])
        wanted = source.get("rows")
        progress = Progress(wanted, "rows") if wanted else None
        number = readers.write_lines(told(found, progress), output, wanted)
    if not number:
        raise UserError(f"the data set has no rows: {source}")
    return commit


def is_file(kind) -> bool:
    """A column of images, sound or the like."""
    return type(kind).__name__ in ("Image", "Audio", "Video", "Pdf")


def told(found, progress: Progress | None):
    for number, row in enumerate(found, start=1):
        yield {name: readers.tight(value) for name, value in row.items()}
        if progress:
            progress.update(number)


def main(args):
    source, commit, inputs = args.config, None, {}
    with atomic_path(args.output) as partial:
        if source["source"] == "hub":
            commit = from_hub(source, partial)
        elif source["source"] == generated.NAME:
            found = generated.rows(source["id"], source["seed"], source["rows"], source["config"])
            readers.write_lines(found, partial)
            inputs = {generated.NAME: importlib.metadata.version(generated.NAME)}
        else:
            path = Path(source.get("path") or package_file(source["package"], source["file"]))
            # In a child: a damaged Parquet file may be a segmentation fault of its reader.
            number = apart.run(readers.copy, path, partial, None, what=str(path), seconds=SECONDS)
            if not number:
                raise UserError(f"the data set has no rows: {source}")
            inputs = {path.name: sha256_file(path)}
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

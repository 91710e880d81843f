"""Fetch a model, from a hub, a directory or a GGUF file that an installed package ships."""

import json
import logging
import os
import shutil
from pathlib import Path

from kdag.data.sources import fetching, package_file
from kdag.files.atomic import atomic_path
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.models import files

# Weights as safetensors only: a pickle can run code.


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the source, as JSON")
    parser.add_argument("--output", type=Path, required=True, help="the model directory")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def from_hub(source: dict, output: Path) -> str:
    """Download next to the output, where an interrupted download goes on. Returns the commit."""
    from huggingface_hub import HfApi, snapshot_download

    download = output.with_name(f".{output.name}.download")
    what = f"model {source['id']}"
    with fetching(what):
        listed = HfApi().model_info(source["id"], revision=source["revision"])
    has_weights = any(file.rfilename in (files.WHOLE, files.INDEX) for file in listed.siblings)
    # What the small files refuse is refused before the weights, which may take hours.
    for patterns in (["*.json"], list(files.WANTED)):
        with fetching(what):
            snapshot_download(
                source["id"],
                revision=listed.sha,
                local_dir=download,
                allow_patterns=patterns,
                ignore_patterns=list(files.UNWANTED) if has_weights else [],
            )
        files.check_kind(download, has_weights)
    shutil.rmtree(download / ".cache", ignore_errors=True)
    files.check(download)
    download.rename(output)
    return listed.sha


def from_directory(directory: Path, output: Path) -> None:
    """Link the files of a model directory: no second copy of large weights."""
    linked = files.wanted(directory)
    files.check(directory)
    with atomic_path(output) as partial:
        partial.mkdir()
        for file in linked:
            (partial / file.name).symlink_to(file.resolve())


def from_package(source: dict, output: Path) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    from kdag.models.convert import from_gguf

    file = package_file(source["package"], source["file"])
    logging.info("turning %s into safetensors", file.name)
    with atomic_path(output) as partial:
        try:
            from_gguf(file, partial)
        except UserError:
            raise
        except Exception as error:  # whatever its reader stumbles over is the file's fault
            raise UserError(f"{file}: no whole GGUF file of a known kind: {error}") from error


def main(args):
    source, commit = args.config, None
    match source["source"]:
        case "hub":
            commit = from_hub(source, args.output)
        case "path":
            from_directory(Path(source["path"]), args.output)
        case "package":
            from_package(source, args.output)
    write_manifest(
        args.manifest,
        stage="fetch_model",
        params=source,
        inputs={},
        outputs=[args.output],
        revision=commit,
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), network=True)

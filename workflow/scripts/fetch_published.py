"""Fetch the log-probs of a teacher that others published, from a hub's data set or a folder."""

import json
import shutil
from pathlib import Path

from kdag.data.sources import fetching
from kdag.files import published
from kdag.files.atomic import atomic_path
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the source, as JSON")
    parser.add_argument("--output", type=Path, required=True, help="the folder of the files")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def from_hub(source: dict, output: Path) -> str:
    """Download next to the output, where an interrupted download goes on. Returns the commit."""
    from huggingface_hub import HfApi, snapshot_download

    with fetching(f"data set {source['id']}"):
        listed = HfApi().dataset_info(source["id"], revision=source["revision"])
        # Of its own commit: files that a later one has no longer are no part of it.
        download = output.with_name(f".{output.name}.{listed.sha[:12]}")
        snapshot_download(
            source["id"],
            repo_type="dataset",
            revision=listed.sha,
            local_dir=download,
            allow_patterns=[source["files"], published.SETTINGS],
        )
    shutil.rmtree(download / ".cache", ignore_errors=True)
    download.rename(output)
    return listed.sha


def from_directory(folder: Path, pattern: str, output: Path) -> None:
    """Link the files: no second copy."""
    with atomic_path(output) as partial:
        partial.mkdir()
        for file in published.wanted(folder, pattern):
            link = partial / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def main(args):
    source, commit = args.config, None
    if source["source"] == "hub":
        commit = from_hub(source, args.output)
    else:
        from_directory(Path(source["path"]), source["files"], args.output)
    found = sorted(args.output.rglob("*.parquet"))
    if not found:
        raise UserError(f"{source['id'] or source['path']}: no Parquet file is called {source['files']}")
    for path in found:
        published.opened(path)
    write_manifest(
        args.manifest,
        stage="fetch_published",
        params=source,
        inputs={},
        outputs=[args.output],
        revision=commit,
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), network=True)

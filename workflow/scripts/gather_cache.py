"""Put the shares of the teacher's cache together: one folder, one manifest, no second copy of the files."""

import errno
import logging
import os
import shutil
from pathlib import Path

from kdag.files.atomic import atomic_path, write_json
from kdag.files.reading import read_json
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError

HEAD = "head.safetensors"
NO_HARD_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
# What one share has of its own; everything else in their manifests must be the same.
OWN = ("files", "row_hashes", "device", "processor", "weights")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--shares", type=Path, nargs="+", required=True, help="their manifests, in order; files/ next to each"
    )
    parser.add_argument("--manifest", type=Path, required=True, help="the cache's; the cache lies next to it")
    return parser


def main(args):
    shares = {path: read_json(path) for path in args.shares}
    manifest = merge(shares)
    folder = args.manifest.parent
    sources = {
        name.removeprefix("files/"): path.parent / name
        for path, share in shares.items()
        for name in share["files"]
    }
    for name, source in sources.items():
        check(source, manifest["files"][name]["bytes"])
    for part in manifest["row_hashes"]:
        with atomic_path(folder / part) as partial:
            partial.mkdir()
            for name, source in sources.items():
                if name.startswith(f"{part}/"):
                    link(source, partial / source.name)
    with atomic_path(folder / HEAD) as partial:
        link(sources[HEAD], partial)
    write_json(args.manifest, manifest)
    logging.info("%d files of %d shares", len(sources), len(shares))
    # Shares of another number of jobs are in nobody's way, but keep their bytes on disk.
    used = {path.parent for path in args.shares}
    for stale in set(args.shares[0].parents[1].glob("*-of-*")) - used:
        shutil.rmtree(stale)


def merge(shares: dict[Path, dict]) -> dict:
    """The manifest that a single job would have written, of those of all shares in order."""
    (first_path, first), *others = shares.items()
    for path, share in others:
        for key in sorted((first.keys() | share.keys()) - set(OWN)):
            if share.get(key) != first.get(key):
                raise UserError(
                    f"{path} and {first_path} differ in their {key}: the shares were not made alike; delete "
                    f"{path.parents[1]} and run snakemake again"
                )
    return {
        **first,
        "files": {
            name.removeprefix("files/"): file
            for share in shares.values()
            for name, file in share["files"].items()
        },
        "row_hashes": {
            part: [row for share in shares.values() for row in share["row_hashes"][part]]
            for part in first["row_hashes"]
        },
        **{
            key: ", ".join(sorted({share[key] for share in shares.values()}))
            for key in ("device", "processor")
        },
    }


def check(file: Path, size: int) -> None:
    """Its hash is checked by whoever reads it; a file that was cut off is named here."""
    found = file.stat().st_size if file.is_file() else None
    if found != size:
        problem = "is missing" if found is None else f"has {found} bytes instead of {size}"
        raise UserError(f"{file} {problem}; delete the manifest of its share and run snakemake again")


def link(source: Path, target: Path) -> None:
    """The same file under a second name; where the file system has no hard links, a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        logging.warning("%s: no hard links here (%s), so it is copied", source, error.strerror)
        shutil.copyfile(source, target)


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

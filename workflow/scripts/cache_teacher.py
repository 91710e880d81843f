"""Store what the teacher thinks: its last hidden states at every answer position, and its head once.

One job writes the whole cache, or with --share j/N the j-th of N shares of its files, which gather_cache.py
puts together. The files are the same however they are shared out.
"""

import argparse
import json
import shutil
from pathlib import Path

from kdag.config import precision
from kdag.config.training import TeacherCache as Settings
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.gpu_lease import leased


def share(text: str) -> tuple[int, int]:
    """`j/N` -> (j, N)."""
    number, count = map(int, text.split("/"))
    if not 0 <= number < count:
        raise argparse.ArgumentTypeError(f"{text}: shares of {count} are 0 to {count - 1}")
    return number, count


def arguments():
    parser = cli.parser(__doc__.splitlines()[0], gpus=True)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of `teacher_cache`")
    parser.add_argument("--model", type=Path, required=True, help="the fine-tuned teacher's directory")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--parts", nargs="+", choices=("train", "heldout"), default=("train", "heldout"))
    parser.add_argument("--heldout", type=Path, help="heldout.parquet")
    parser.add_argument("--share", type=share, default="0/1", help="j/N: the j-th of N shares, from 0")
    parser.add_argument("--files", type=Path, help="the cache's folder; default: the manifest's")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of what was written")
    return parser


def main(args):
    from kdag.data.rows import read_rows
    from kdag.teacher.writing import write_cache

    settings = Settings(**args.config)
    settings = settings.model_copy(update={"dtype": precision.settle(settings.dtype, "teacher_cache.dtype")})
    folder = args.files or args.manifest.parent
    write_cache(
        args.model,
        {part: read_rows(getattr(args, part)) for part in args.parts},
        read_manifest(args.train.parent / "manifest.json", SUBSET),
        settings,
        args.manifest,
        params=args.config,
        inputs={
            "teacher": sha256_file(args.model.parent / "manifest.json"),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        folder=folder,
        share=args.share,
        gpus=args.gpus,
    )
    if args.share == (0, 1):  # shares of an earlier run would keep their bytes on disk
        shutil.rmtree(folder.with_name("cache-shards"), ignore_errors=True)


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="teacher_cache.batch_tokens")

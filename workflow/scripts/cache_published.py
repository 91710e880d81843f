"""Make a teacher's cache of log-probs that others published in DistillKit's format, without the teacher."""

import json
from pathlib import Path

from kdag.files.hashes import sha256_file
from kdag.files.records import recorded
from kdag.job import cli


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--config", type=json.loads, default={}, help="compressor: DistillKit's logprob_compressor"
    )
    parser.add_argument("--published", type=Path, required=True, help="the folder of fetch_published.py")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet of the encoded rows")
    parser.add_argument("--manifest", type=Path, required=True, help="of the cache, written last")
    return parser


def main(args):
    from kdag.data.rows import read_rows
    from kdag.teacher.published import Published, write_published

    write_published(
        Published(args.published, args.config.get("compressor")),
        read_rows(args.train),
        args.train.parent / "manifest.json",
        args.manifest,
        params=args.config,
        teacher=sha256_file(args.published.parent / "manifest.json"),
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

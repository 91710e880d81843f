"""Make a teacher's cache of log-probs that others published in DistillKit's format, without the teacher.

By hand, as no rule of the workflow asks for it: of a finished run's encoded rows, for distill.py.

    python workflow/scripts/read_published.py --published downloads/Qwen3-235B-Logits
        --train results/mine/data/train.parquet --manifest results/mine/published/manifest.json
    python workflow/scripts/distill.py --teacher results/mine/published/manifest.json ...
"""

import argparse
import json
from pathlib import Path

from kdag.job import cli


def arguments():
    parser = cli.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--published", type=Path, required=True, help="folder of its Parquet files")
    parser.add_argument(
        "--compressor",
        type=json.loads,
        help="DistillKit's logprob_compressor; default: the file next to them",
    )
    parser.add_argument("--train", type=Path, required=True, help="train.parquet of the encoded rows")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="manifest.json of the cache, written last"
    )
    return parser


def main(args):
    from kdag.data.rows import read_rows
    from kdag.teacher.published import Published, write_published

    published = Published(args.published, args.compressor)
    write_published(published, read_rows(args.train), args.train.parent / "manifest.json", args.manifest)


if __name__ == "__main__":
    cli.run(main, arguments())

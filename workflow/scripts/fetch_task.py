"""Fetch an lm-eval task: the documents its prompts are built from, into a folder of their own."""

import json
import logging
from pathlib import Path

from kdag.data.sources import fetching
from kdag.evaluation import harness
from kdag.files.atomic import atomic_path
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="a task of evaluation.tasks")
    parser.add_argument(
        "--apart-from", type=Path, nargs="?", help="rows.jsonl, whose questions are not asked"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder, written")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    with atomic_path(args.output) as partial, fetching(f"task {args.config['name']}"):
        partial.mkdir()
        harness.use_folder(partial)
        apart = {"apart_from": str(args.apart_from)} if args.apart_from else {}
        described = harness.fetch(args.config | apart, partial)
    write_manifest(
        args.manifest, stage="fetch_task", params=args.config, inputs={}, outputs=[], tasks=described
    )
    for name, task in described.items():
        logging.info("%s, version %s: %d documents", name, task["version"], task["documents"])


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), network=True)

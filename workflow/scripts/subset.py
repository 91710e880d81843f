"""Take the first rows to train on, hold out the next, and encode both as the experiment's chat says."""

import itertools
import json
import logging
from pathlib import Path

from kdag.config.section import checked
from kdag.config.sources import Data
from kdag.data import chat as chats
from kdag.data import rows, template
from kdag.files import readers
from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.job.progress import Progress


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of the section `data`")
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, help="directories; the first one's tokenizer"
    )
    parser.add_argument("--train", type=Path, required=True, help="train.parquet, written")
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet, written")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(Data, {"source": "path", "path": str(args.rows), **args.config})
    from kdag.models import load
    from kdag.models.files import positions_of

    tokenizer, chat = load.load_tokenizer(args.models[0]), template.read_chat(args.chat)
    positions = min(filter(None, map(positions_of, args.models)), default=None)
    wanted = settings.train_rows + settings.heldout_rows
    columns, there = look_through(args.rows, wanted)
    if problems := settings.problems(columns):
        raise UserError("\n".join(f"data.{problem}" for problem in problems))
    if there < wanted:
        raise UserError(f"data.train_rows + data.heldout_rows = {wanted}, but the data set has {there} rows")
    found = told(readers.rows(args.rows), wanted)
    files = {"train": args.train, "heldout": args.heldout}
    report = rows.write_subset(found, tokenizer, chat, settings, files, positions)
    for part in ("train", "heldout"):
        logging.info("%s: %s", part, report[part])
    for policy in (*rows.LEFT_OUT, "truncated"):
        if report[policy]:
            logging.info("%s: %d rows: %s", policy, len(report[policy]), report[policy][:20])
    write_manifest(
        args.manifest,
        stage="subset",
        params=args.config,
        inputs={"rows": sha256_file(args.rows), "chat": sha256_file(args.chat)},
        outputs=[args.train, args.heldout],
        report=report,
        vocabulary_size=len(tokenizer),
        vocabulary_hash=chats.vocabulary_hash(tokenizer),
        template_hash=chat.hash(),
        chat=chat.recorded(),
    )


def look_through(path: Path, most: int) -> tuple[list[str], int]:
    """(the columns of the first `most` rows, how many rows there are of them)."""
    columns, there = {}, 0
    for row in itertools.islice(readers.rows(path), most):
        columns |= dict.fromkeys(row)
        there += 1
    return list(columns), there


def told(found, most: int):
    """The first rows, with a word now and then on how far they are."""
    progress = Progress(most, "rows")
    for number, row in enumerate(itertools.islice(found, most), start=1):
        yield row
        progress.update(number)


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

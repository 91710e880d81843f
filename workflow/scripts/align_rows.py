"""Encode the rows for a teacher of another tokenizer, by its own chat, and find which tokens say the same."""

import itertools
import json
import logging
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdag.config.chat import Chat as Settings
from kdag.config.section import checked, path_is
from kdag.config.sources import Data
from kdag.data import chat as chats
from kdag.data.aligned_rows import ALIGNED, Speaker, Tally, aligned, reasons
from kdag.data.alignment import common_tokens, spelling
from kdag.data.rows import conversation
from kdag.data.template import read_chat
from kdag.files import readers
from kdag.files.atomic import atomic_path, write_json
from kdag.files.hashes import sha256_file
from kdag.files.manifest import verify_beside, write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.job.progress import Progress

ROWS_AT_A_TIME = 256


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="the sections `data` and `chat`")
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet of the student")
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet of the student")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of the student")
    parser.add_argument("--student", type=Path, required=True, help="model directory")
    parser.add_argument("--teacher", type=Path, required=True, help="model directory")
    parser.add_argument(
        "--output", type=Path, required=True, help="manifest.json, written; the rest lies next to it"
    )
    return parser


def main(args):
    settings = checked(Data, {"source": "path", "path": str(args.rows), **args.config.get("data", {})})
    from kdag.models import load
    from kdag.models.files import check_fits, positions_of

    student = Speaker(load.load_tokenizer(args.student), read_chat(args.chat))
    tokenizer = load.load_tokenizer(args.teacher)
    check_fits(args.teacher, len(tokenizer), tokenizer.convert_ids_to_tokens(len(tokenizer) - 1))
    own = own_chat(
        checked(Settings, args.config.get("chat", {})), tokenizer, load.end_ids(args.teacher, tokenizer)
    )
    teacher = Speaker(tokenizer, own, positions_of(args.teacher))
    folder = args.output.parent
    write_json(folder / "chat.json", asdict(own))
    spelt = [spelling(side.tokenizer) for side in (student, teacher)]
    ends = (chats.answer_end(side.tokenizer, side.chat) for side in (student, teacher))
    common = common_tokens(*spelt, tuple(ends))
    with atomic_path(folder / "common.parquet") as partial:
        pq.write_table(pa.table(dict(zip(("student", "teacher"), common, strict=True))), partial)
    tallies = {}
    for part in ("train", "heldout"):
        source, target = getattr(args, part), folder / f"{part}.parquet"
        verify_beside(source)
        tallies[part] = Tally()
        write(
            target, aligned(told(source, args.rows, settings, student.chat), student, teacher, tallies[part])
        )
    if not args.config.get("text"):
        refuse_unaligned(tallies["train"])
    report = {part: tally.report() for part, tally in tallies.items()}
    unaligned = {part: tally.unaligned for part, tally in tallies.items()}
    for part, tally in tallies.items():
        logging.info(
            "%s: %d rows, %d without an alignment; %d spans, %.0f %% of one token on both sides",
            *(part, tally.rows, len(tally.unaligned), tally.spans),
            100 * tally.one_to_one / max(1, tally.spans),
        )
        if tally.unaligned:
            logging.warning("%s: not aligned: %s", part, reasons(tally.unaligned))
    logging.info("tokens that both vocabularies have: %d of %d", len(common[0]), len(tokenizer))
    write_manifest(
        args.output,
        stage="align_rows",
        params=args.config,
        inputs={
            "rows": sha256_file(args.rows),
            "chat": sha256_file(args.chat),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=[
            folder / name for name in ("chat.json", "common.parquet", "train.parquet", "heldout.parquet")
        ],
        report=report | {"unaligned": unaligned, "common_tokens": len(common[0])},
        vocabulary_size=len(tokenizer),
        vocabulary_hash=chats.vocabulary_hash(tokenizer),
        template_hash=own.hash(),
        chat=own.recorded(),
    )


def own_chat(settings: Settings, tokenizer, ends: set[int]):
    """The chat of a teacher by itself: its own template, else the file that chat.template names."""
    file = settings.template if settings.template and path_is("is_file", settings.template) else None
    has_own = bool(chats.default(tokenizer.chat_template))
    settings = settings.model_copy(update={"template": None if has_own else file})
    try:
        return chats.settle(settings, tokenizer, tokenizer, ends)
    except UserError as error:
        raise UserError(f"the teacher with another tokenizer: {error}") from error


def told(source: Path, rows: Path, settings: Data, chat):
    """(the student's row, its conversation) of a part, in order."""
    file = pq.ParquetFile(source)
    progress, number = Progress(file.metadata.num_rows, f"{source.stem} rows"), 0
    there, place = enumerate(readers.rows(rows)), (-1, None)
    for batch in file.iter_batches(ROWS_AT_A_TIME):
        for row in batch.to_pylist():
            while place[0] < row["row"]:
                place = next(there)
            number += 1
            progress.update(number)
            yield row, conversation(place[1], settings, chat)


def write(path: Path, rows) -> None:
    with atomic_path(path) as partial, pq.ParquetWriter(partial, ALIGNED) as writer:
        while some := list(itertools.islice(rows, ROWS_AT_A_TIME)):
            writer.write_table(pa.Table.from_pylist(some, ALIGNED))


def refuse_unaligned(tally: Tally) -> None:
    if not tally.spans:
        raise UserError(
            f"none of the {tally.rows} training rows can be aligned with the teacher's tokens: "
            f"{reasons(tally.unaligned)}"
        )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

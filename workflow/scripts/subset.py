"""Take the first rows to train on, hold out the next, and encode both with the models' chat template."""

import json
import logging
from pathlib import Path

from kdag.config.section import checked
from kdag.config.sources import Data
from kdag.data import rows, template
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import write_manifest
from kdag.files.reading import read_jsonl
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.errors import UserError


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of the section `data`")
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--teacher", type=Path, required=True, help="model directory")
    parser.add_argument("--student", type=Path, required=True, help="model directory")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet, written")
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet, written")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(Data, {"source": "path", "path": str(args.rows), **args.config})
    tokenizer, report = encode_rows(args, settings)
    for part in ("train", "heldout"):
        logging.info("%s: %s", part, report[part])
    for policy in ("dropped_overlong", "truncated", "heldout_repeats_train"):
        if report[policy]:
            logging.info("%s: %d rows: %s", policy, len(report[policy]), report[policy][:20])
    write_manifest(
        args.manifest,
        stage="subset",
        params=args.config,
        inputs={"rows": sha256_file(args.rows)},
        outputs=[args.train, args.heldout],
        report=report,
        vocabulary_size=len(tokenizer),
        vocabulary_hash=template.vocabulary_hash(tokenizer),
        template_hash=template.template_hash(tokenizer),
    )


def encode_rows(args, settings: Data):
    from kdag.models import load

    teacher, student = load.load_tokenizer(args.teacher), load.load_tokenizer(args.student)
    for name, tokenizer in (("teacher", teacher), ("student", student)):
        template.check(name, tokenizer, [])
    template.check_pair(teacher, student)
    ends = [load.end_ids(*pair) for pair in ((args.teacher, teacher), (args.student, student))]
    if ends[0] != ends[1]:
        raise UserError(
            f"teacher and student end an answer with different tokens, {sorted(ends[0])} and "
            f"{sorted(ends[1])}: make eos_token_id in their generation_config.json the same"
        )
    train, heldout, report = rows.subset(
        read_jsonl(args.rows),
        student,
        ends[0],
        fields=rows.Fields(settings.instruction_field, settings.input_field, settings.output_field),
        train_rows=settings.train_rows,
        heldout_rows=settings.heldout_rows,
        max_tokens=settings.max_tokens,
        overlong=settings.overlong,
    )
    for frame, path in ((train, args.train), (heldout, args.heldout)):
        with atomic_path(path) as partial:
            frame.to_parquet(partial, index=False)
    return student, report


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

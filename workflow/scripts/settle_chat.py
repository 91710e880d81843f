"""Settle how every stage renders a conversation: one template for both models, and what ends an answer."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from kdag.config.chat import Chat as Settings
from kdag.config.section import checked
from kdag.files.atomic import write_json
from kdag.files.records import recorded
from kdag.job import cli
from kdag.models.files import check_fits


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of the section `chat`")
    parser.add_argument("--teacher", type=Path, required=True, help="model directory")
    parser.add_argument("--student", type=Path, required=True, help="model directory")
    parser.add_argument("--further", type=Path, nargs="*", default=[], help="further teachers' directories")
    parser.add_argument("--output", type=Path, required=True, help="chat.json, written")
    return parser


def main(args):
    settings = checked(Settings, args.config)
    from kdag.data.chat import before_a_question, check_vocabulary, settle
    from kdag.models import load

    teacher, student = load.load_tokenizer(args.teacher), load.load_tokenizer(args.student)
    further = [load.load_tokenizer(directory) for directory in args.further]
    pairs = [(args.teacher, teacher), (args.student, student), *zip(args.further, further, strict=True)]
    for directory, tokenizer in pairs:
        size = len(tokenizer)  # also of one that no tokenizer.json describes
        check_fits(directory, size, tokenizer.convert_ids_to_tokens(size - 1))
    ends = set().union(*(load.end_ids(directory, tokenizer) for directory, tokenizer in pairs))
    for directory, tokenizer in zip(args.further, further, strict=True):
        check_vocabulary(tokenizer, student, f"the teacher in {directory}")
    chat = settle(settings, teacher, student, ends)
    named = ", ".join(teacher.convert_ids_to_tokens(list(chat.end_ids)))
    logging.info("an answer ends with %s; the day is %s", named, chat.date)
    if added := before_a_question(teacher, chat):
        logging.info("before a first question the template itself writes %r", added)
    write_json(args.output, asdict(chat))


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

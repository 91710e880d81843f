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
    parser.add_argument("--output", type=Path, required=True, help="chat.json, written")
    return parser


def main(args):
    settings = checked(Settings, args.config)
    from kdag.data.chat import before_a_question, settle
    from kdag.models import load

    teacher, student = load.load_tokenizer(args.teacher), load.load_tokenizer(args.student)
    for directory, tokenizer in ((args.teacher, teacher), (args.student, student)):
        size = len(tokenizer)  # also of one that no tokenizer.json describes
        check_fits(directory, size, tokenizer.convert_ids_to_tokens(size - 1))
    ends = load.end_ids(args.teacher, teacher) | load.end_ids(args.student, student)
    chat = settle(settings, teacher, student, ends)
    named = ", ".join(teacher.convert_ids_to_tokens(list(chat.end_ids)))
    logging.info("an answer ends with %s; the day is %s", named, chat.date)
    if added := before_a_question(teacher, chat):
        logging.info("before a first question the template itself writes %r", added)
    write_json(args.output, asdict(chat))


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

"""Ask a teacher behind a server to answer the training prompts, once for every strategy that wants it."""

import json
import logging
from pathlib import Path

from kdag.data.template import read_chat
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.teacher import asking


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="keys of `sampling`, and server")
    asking.arguments(parser)
    parser.add_argument("--teacher", type=Path, required=True, help="manifest.json of meet_teacher.py")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet of the data")
    parser.add_argument(
        "--output", type=Path, required=True, help="train.parquet with these answers, written"
    )
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    sampling = {key: value for key, value in args.config.items() if key != "server"}
    chat, data = read_chat(args.chat), read_manifest(args.train.parent / "manifest.json", SUBSET)

    from kdag.data.rows import prompts, read_rows
    from kdag.models import load
    from kdag.teacher.rows import write_rows

    given, tokenizer = prompts(read_rows(args.train)), load.load_tokenizer(args.model)
    server = asking.server_of(args, args.config["server"], tokenizer)
    journal = asking.Journal(args.manifest.with_name(".asked.jsonl"))
    # A seed of each row, as the rows of a teacher that answers here have one.
    sampled = [
        {**sampling, "seed": row} if sampling["temperature"] else sampling for row in range(len(given))
    ]
    answers = asking.answers(
        server, args.teacher, given, sampled, chat.end_ids, journal, parallel=args.parallel, unit="answers"
    )
    said = [[token for token in answer.ids if token not in chat.end_ids] for answer in answers]
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in said]
    write_rows(args.train, given, [a.ids for a in answers], texts, args.output)
    report = {
        "answers": len(answers),
        "sampled_tokens": sum(len(a.ids) for a in answers),
        "cut_off": sum(a.cut_off for a in answers),
    }
    logging.info("the teacher's answers: %s", report)
    write_manifest(
        args.manifest,
        stage="answer_teacher",
        params=args.config,
        inputs={
            "teacher": sha256_file(args.teacher),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=[args.output],
        report=report,
        **{key: data[key] for key in (*SUBSET, "chat")},
    )
    journal.done()


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

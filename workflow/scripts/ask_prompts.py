"""Ask a teacher behind a server to answer a task's prompts, greedily, through lm-eval, as every row does."""

import json
import logging
from pathlib import Path

from kdag.data.template import read_chat
from kdag.files.atomic import write_jsonl
from kdag.files.hashes import sha256_file
from kdag.files.reading import read_jsonl
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli
from kdag.teacher import asking


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--config", type=json.loads, required=True, help="max_new_tokens, repetition_penalty and server"
    )
    asking.arguments(parser)
    parser.add_argument("--teacher", type=Path, required=True, help="manifest.json of meet_teacher.py")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL of select_prompts.py")
    parser.add_argument("--output", type=Path, required=True, help="samples.jsonl")
    parser.add_argument("--settings", type=Path, required=True, help="generation.json")
    return parser


def main(args):
    docs = read_jsonl(args.prompts)
    from kdag.evaluation import generation, server  # seconds of imports, once the arguments are good

    journal = asking.Journal(args.output.with_name(".asked.jsonl"))
    lm = server.GreedyServer(args, args.config, read_chat(args.chat), journal)
    logging.info("%d prompts, %s", len(docs), json.dumps(args.config))
    samples, settings = generation.generate(lm, docs)
    cut_off = sum(sample["cut_off"] for sample in samples)
    logging.info("%d of %d answers cut off at the cap", cut_off, len(samples))
    write_jsonl(args.output, samples)
    inputs = {"model": sha256_file(args.teacher), "samples": sha256_file(args.output)}
    write_sealed(args.settings, {**settings, "inputs": inputs})
    journal.done()


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

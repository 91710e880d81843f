"""Ask a teacher behind a server to answer one lm-eval task, and score it, under the settings of every row."""

import json
from pathlib import Path

from kdag.data.template import read_chat
from kdag.evaluation import harness
from kdag.files.atomic import write_jsonl
from kdag.files.hashes import sha256_file
from kdag.files.reading import read_json
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli
from kdag.teacher import asking


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--config", type=json.loads, required=True, help="generation settings, server, and the task"
    )
    asking.arguments(parser)
    parser.add_argument("--teacher", type=Path, required=True, help="manifest.json of meet_teacher.py")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--task", type=Path, required=True, help="folder of fetch_task.py")
    parser.add_argument("--fetched", type=Path, required=True, help="manifest.json of fetch_task.py")
    parser.add_argument("--output", type=Path, required=True, help="samples.jsonl, written")
    parser.add_argument("--scores", type=Path, required=True, help="scores.json, written")
    return parser


def main(args):
    harness.use_folder(args.task)
    from kdag.evaluation import server  # seconds of imports, once the arguments are good

    journal = asking.Journal(args.output.with_name(".asked.jsonl"))
    lm = server.GreedyServer(args, args.config, read_chat(args.chat), journal)
    scores, samples = harness.evaluate(lm, args.config["task"], args.task, read_json(args.fetched)["tasks"])
    write_jsonl(args.output, samples)
    inputs = {"model": sha256_file(args.teacher), "samples": sha256_file(args.output)}
    write_sealed(args.scores, {**scores, "inputs": inputs})
    journal.done()


if __name__ == "__main__":
    cli.run(recorded(main), arguments(), sklearn=True)

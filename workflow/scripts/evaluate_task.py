"""Answer and score one lm-eval task with one model, offline, under the settings of every other row."""

import json
import logging
from pathlib import Path

from kdag.data.template import read_chat
from kdag.evaluation import harness
from kdag.files.atomic import write_jsonl
from kdag.files.hashes import sha256_file
from kdag.files.manifest import sha256_beside
from kdag.files.reading import read_json
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli
from kdag.job.gpu_lease import leased


def arguments():
    parser = cli.parser(__doc__, gpus=True)
    parser.add_argument("--config", type=json.loads, required=True, help="generation settings and the task")
    parser.add_argument("--model", type=Path, required=True, help="from_pretrained directory")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--task", type=Path, required=True, help="folder of fetch_task.py")
    parser.add_argument("--fetched", type=Path, required=True, help="manifest.json of fetch_task.py")
    parser.add_argument("--output", type=Path, required=True, help="samples.jsonl, written")
    parser.add_argument("--scores", type=Path, required=True, help="scores.json, written")
    return parser


def main(args):
    harness.use_folder(args.task)
    from kdag.evaluation import generation  # seconds of imports, spent only once the arguments are good

    lm = generation.language_model(args.model, args.config, read_chat(args.chat), args.gpus)
    logging.info("%s, %s, %s", args.config["task"]["name"], args.model, lm.settings()["backend"])
    scores, samples = harness.evaluate(lm, args.config["task"], args.task, read_json(args.fetched)["tasks"])
    write_jsonl(args.output, samples)
    inputs = {"model": sha256_beside(args.model), "samples": sha256_file(args.output)}
    write_sealed(args.scores, {**scores, "inputs": inputs})


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="evaluation.batch_size", sklearn=True)

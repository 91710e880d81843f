"""Answer a task's prompts with one model, greedily, through lm-eval.

python workflow/scripts/generate.py --model DIR --chat chat.json --prompts prompts.jsonl \
    --output samples.jsonl --settings generation.json --config '{"max_new_tokens": 1280, "batch_size": 16,
    "repetition_penalty": 1.0, "dtype": "bfloat16"}'
"""

import json
import logging
from pathlib import Path

from kdag.data.template import read_chat
from kdag.files.atomic import write_jsonl
from kdag.files.hashes import sha256_file
from kdag.files.manifest import sha256_beside
from kdag.files.reading import read_jsonl
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli
from kdag.job.gpu_lease import leased


def arguments():
    parser = cli.parser(__doc__.splitlines()[0], gpus=True)
    parser.add_argument("--config", type=json.loads, required=True, help="generation section, JSON")
    parser.add_argument("--model", type=Path, required=True, help="from_pretrained directory")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL of select_prompts.py")
    parser.add_argument("--output", type=Path, required=True, help="samples.jsonl")
    parser.add_argument("--settings", type=Path, required=True, help="generation.json")
    return parser


def main(args):
    docs = read_jsonl(args.prompts)
    from kdag.evaluation import generation  # seconds of imports, spent only once the arguments are good

    lm = generation.language_model(args.model, args.config, read_chat(args.chat), args.gpus)
    logging.info("%d prompts, %s, %s", len(docs), args.model, json.dumps(args.config))
    samples, settings = generation.generate(lm, docs)
    cut_off = sum(sample["cut_off"] for sample in samples)
    logging.info("%d of %d answers cut off at the cap", cut_off, len(samples))

    write_jsonl(args.output, samples)
    inputs = {"model": sha256_beside(args.model), "samples": sha256_file(args.output)}
    write_sealed(args.settings, {**settings, "inputs": inputs})


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="evaluation.batch_size")

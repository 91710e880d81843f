"""Take the first prompts of an IFEval file and check that every one of them can be scored.

python workflow/scripts/select_prompts.py --config '{"limit": 48}' --input all.jsonl \
    --output prompts.jsonl
"""

import json
import logging
from pathlib import Path

from kdag.evaluation.tasks import ifeval
from kdag.files.atomic import write_jsonl
from kdag.files.reading import read_jsonl
from kdag.files.records import recorded
from kdag.job import cli


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help='{"limit": N or null}')
    parser.add_argument("--input", type=Path, required=True, help="JSONL in the IFEval schema")
    parser.add_argument("--output", type=Path, required=True, help="JSONL of the prompts to use")
    parser.add_argument("--nltk-data", type=Path, help="directory with tokenizers/punkt_tab")
    return parser


def main(args):
    limit = args.config["limit"]
    docs = read_jsonl(args.input)
    chosen = docs[:limit]

    ifeval.use_nltk_data(args.nltk_data)
    ifeval.check_prompts(chosen)
    write_jsonl(args.output, chosen)

    if limit is not None and limit > len(docs):
        logging.warning("warning: limit is %d, %s holds only %d", limit, args.input, len(docs))
    instructions = [name for doc in chosen for name in doc["instruction_id_list"]]
    logging.info(
        "%d of %d prompts, %d instructions of %d types",
        len(chosen),
        len(docs),
        len(instructions),
        len(set(instructions)),
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

"""Score saved responses on IFEval's prompts. Generates nothing: equal inputs give equal bytes.

python workflow/scripts/score_ifeval.py --prompts prompts.jsonl --responses samples.jsonl \
    --output scores.json
"""

import logging
from pathlib import Path

from kdag.evaluation.tasks import ifeval
from kdag.files.reading import read_json, read_jsonl
from kdag.files.records import recorded
from kdag.files.seals import check_source, read_sealed, write_sealed
from kdag.job import cli
from kdag.job.errors import UserError


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL in the IFEval schema")
    parser.add_argument(
        "--responses", type=Path, required=True, help="JSONL of {prompt, response}, in that order"
    )
    parser.add_argument("--output", type=Path, required=True, help="scores.json")
    parser.add_argument(
        "--generation", type=Path, help="generation.json of the responses, copied into the scores"
    )
    parser.add_argument("--nltk-data", type=Path, help="directory with tokenizers/punkt_tab")
    return parser


def main(args):
    generation = read_json(args.generation) if args.generation else None
    inputs = {}
    if generation and "seal" in generation:  # generate.py's, not one written by hand
        generation = read_sealed(args.generation)
        inputs = generation.pop("inputs")
        check_source(args.generation, inputs, "samples", args.responses)
    docs, responses = read_jsonl(args.prompts), read_jsonl(args.responses)

    if len(docs) != len(responses):
        raise UserError(
            f"{args.prompts} holds {len(docs)} prompts, {args.responses} {len(responses)} "
            "responses. They are joined by order, one response for each prompt."
        )
    differing = [
        number
        for number, (doc, row) in enumerate(zip(docs, responses, strict=True), start=1)
        if row.get("prompt") != doc.get("prompt")
    ]
    if differing:
        logging.warning(
            "warning: %d of %d responses come with another prompt text (first: row %d); "
            "joined by order all the same",
            len(differing),
            len(docs),
            differing[0],
        )

    ifeval.use_nltk_data(args.nltk_data)
    scores = ifeval.score(docs, responses)
    if generation and generation["prompts_sha256"] != scores["prompts_sha256"]:
        raise UserError(
            f"{args.generation} says that the responses were generated for other prompts than "
            f"{args.prompts}. Generate them again for these prompts."
        )
    write_sealed(args.output, {**scores, "generation": generation, "inputs": inputs})

    for level in ifeval.LEVELS:
        logging.info(
            "%s: %d of %d prompts, %d of %d instructions",
            level,
            scores[f"prompt_level_{level}_correct"],
            scores["n_prompts"],
            scores[f"inst_level_{level}_correct"],
            scores["n_instructions"],
        )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

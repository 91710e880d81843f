"""Say out of how many items the accuracies of a printed table can be, and what their differences are worth.

python tools/audit_table.py --table ifeval.csv --prompts prompts.jsonl
python tools/audit_table.py --table others.csv --n hellaswag=10042 --n arc_easy=2376
"""

import logging
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import audit

from kdag.files.atomic import write_text
from kdag.files.reading import read_jsonl
from kdag.job import cli
from kdag.job.errors import UserError


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--table",
        type=Path,
        required=True,
        help="CSV: names, then accuracies as printed; IFEval's columns have `prompt` or `inst` in their name",
    )
    parser.add_argument(
        "--n",
        action="append",
        default=[],
        metavar="COLUMN=N",
        help="what a column of another table is out of, if it is known",
    )
    parser.add_argument(
        "--prompts", type=Path, help="JSONL in the IFEval schema: what the first n prompts hold"
    )
    parser.add_argument(
        "--declared-n", type=int, default=541, help="prompts that the table says it is out of"
    )
    parser.add_argument("--declared-m", type=int, default=834, help="instructions, likewise")
    parser.add_argument("--max-n", type=int, default=541, help="largest number of prompts to try")
    parser.add_argument("--max-m", type=int, default=834, help="largest number of instructions to try")
    parser.add_argument("--output", type=Path, help="Markdown file; without it the text is printed")
    return parser


def main(args):
    try:  # as text, since 0.5800 has four decimals
        table = pd.read_csv(args.table, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.table} is no CSV that can be read: {error}") from error
    per_prompt = None
    if args.prompts:
        per_prompt = [len(doc["instruction_id_list"]) for doc in read_jsonl(args.prompts)]
    text = audit.audit(
        table,
        {"prompts": args.max_n, "instructions": args.max_m},
        {"prompts": args.declared_n, "instructions": args.declared_m, **sizes(args.n)},
        per_prompt,
    )
    if args.output:
        write_text(args.output, text)
        logging.info("written: %s", args.output)
    else:
        sys.stdout.write(text)


def sizes(given: list[str]) -> dict[str, int]:
    """{column: n}; UserError for what is no COLUMN=N."""
    found = {}
    for text in given:
        column, _, number = text.rpartition("=")
        if not column or not number.isdigit() or not int(number):
            raise UserError(
                f"--n {text!r}: a column's name and a whole number are needed, as in arc_easy=2376"
            )
        found[column] = int(number)
    return found


if __name__ == "__main__":
    cli.run(main, arguments())

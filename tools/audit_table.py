"""Say for which numbers of prompts and instructions the accuracies of a printed table are possible.

python tools/audit_table.py --table table.csv --prompts prompts.jsonl
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
        help="CSV: names, then accuracies as printed; `prompt` or `inst` in each column's name",
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
        {"prompts": args.declared_n, "instructions": args.declared_m},
        per_prompt,
    )
    if args.output:
        write_text(args.output, text)
        logging.info("written: %s", args.output)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    cli.run(main, arguments())

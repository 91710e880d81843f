"""Which teacher each training row learns from: the one that a column of the data names.

python workflow/scripts/route_rows.py --config '{"column": "subject", "teachers": ["teacher", "math"]}' ...
"""

import json
import logging
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from kdag.files import readers
from kdag.files.hashes import sha256_file
from kdag.files.manifest import verify_beside
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli
from kdag.job.errors import UserError

SHOWN = 5


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="column, and teachers: their names")
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON: the teacher's name of each training row"
    )
    return parser


def main(args):
    column, names = args.config["column"], args.config["teachers"]
    verify_beside(args.train)
    numbers = pq.read_table(args.train, columns=["row"])["row"].to_pylist()
    wanted, routes = set(numbers), {}
    for number, row in enumerate(readers.rows(args.rows)):
        if number in wanted:
            if column not in row:
                raise UserError(f"row {number} of the data has no column {column!r}; it has {', '.join(row)}")
            routes[number] = row[column]
        if len(routes) == len(wanted):
            break
    if wrong := {number: name for number, name in routes.items() if name not in names}:
        shown = ", ".join(f"row {number} has {name!r}" for number, name in list(wrong.items())[:SHOWN])
        raise UserError(
            f"the column {column!r} names no teacher in {len(wrong)} training rows: {shown}. The teachers "
            f"are {', '.join(names)}"
        )
    teachers = [routes[number] for number in numbers]
    counts = Counter(teachers)
    if none := [name for name in names if not counts[name]]:
        logging.warning("no training row has the teacher %s", ", ".join(none))
    logging.info("rows of each teacher: %s", ", ".join(f"{name} {counts[name]}" for name in names))
    write_sealed(
        args.output,
        {
            "stage": "route_rows",
            "params": args.config,
            "inputs": {
                "rows": sha256_file(args.rows),
                "data": sha256_file(args.train.parent / "manifest.json"),
            },
            "teachers": teachers,
        },
    )


if __name__ == "__main__":
    cli.run(recorded(main), arguments())

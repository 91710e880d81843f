"""List, and with --cancel end, the SLURM jobs that an earlier snakemake left running for this folder."""

from pathlib import Path

from kdag.job import cli
from kdag.operate import orphans


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="where snakemake was started")
    parser.add_argument("--prefix", default=orphans.PREFIX, help="slurm-jobname-prefix of that run")
    parser.add_argument("--cancel", action="store_true", help="end them")
    return parser


def main(args):
    found = orphans.orphans(args.folder, args.prefix)
    print("\n".join(orphans.describe(found)) or "no jobs of an earlier run")
    if args.cancel and found:
        orphans.cancel(found)
        print("cancelled")


if __name__ == "__main__":
    cli.run(main, arguments())

"""Take over results that were moved here: compare each with what would be run, and tell Snakemake.

python workflow/scripts/adopt.py [--config mine.yaml]

Nothing is run and nothing is deleted. Exit status 1 where a result does not fit; each is listed with why.
"""

import os
import subprocess
import sys
from pathlib import Path

from kdag.job import cli
from kdag.job.errors import UserError
from kdag.operate import adopt, status


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="instead of config.yaml")
    return parser


def main(args):
    os.environ[adopt.ADOPTING] = "1"
    jobs = status.jobs(status.dry_run(args.config, "--forceall", "-p"))
    verdict = adopt.fitting(jobs)
    fits = [job for job, why in verdict.items() if why is None]
    if fits:
        told = [output for job in fits for output in job.outputs]
        command = status.snakemake(args.config, "--touch", "--force", "--quiet", "all")
        done = subprocess.run([*command, "--", *told], text=True, capture_output=True)
        if done.returncode:
            raise UserError(f"Snakemake could not be told: {done.stderr.strip()[-2000:]}")
    print(f"{len(fits)} of {len(jobs)} jobs are done here, by results that fit this experiment.")
    if not verdict:
        raise UserError("there are no results of this experiment here")
    for job, why in verdict.items():
        if why:
            print(f"does not fit: {job}: {why}")
    if len(fits) < len(verdict):
        print(
            "What does not fit would be made anew by the next run, and what lies there deleted. Move it away "
            "first if it is to be kept; until then a run is refused."
        )
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, arguments())

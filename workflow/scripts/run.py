"""Run an experiment, or go on with it, whatever ended the last run.

python workflow/scripts/run.py [--config mine.yaml] [--profile slurm]

Looks whether this machine is ready (doctor.py), says who runs in this folder if somebody does, takes away the
lock of a run that was killed, and becomes `snakemake`. Words after -- are Snakemake's.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kdag.config import yaml_file
from kdag.files.code import SCRIPTS
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.operate import status


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="instead of config.yaml")
    parser.add_argument("--profile", help="of profiles/; default: one GPU, or cpu where there is none")
    parser.add_argument("options", nargs="*", help="of snakemake, after --")
    return parser


def main(args):
    if args.config:
        yaml_file.read_config(args.config)  # Snakemake reads it too, and has other words for what it finds
    given = ["--config", str(args.config)] if args.config else []
    doctor = [sys.executable, str(SCRIPTS / "doctor.py"), "--quiet", *given]
    if subprocess.run(doctor).returncode:
        raise UserError("nothing has run: see the problems above")
    if owner := status.holder(Path()):
        raise UserError(
            f"nothing has run: this folder is locked by {owner}. `make status` says how far it is; if it is "
            "gone for good, `snakemake --unlock` takes its lock away"
        )
    command = [sys.executable, "-m", "snakemake", "-s", os.path.relpath(SCRIPTS.parents[1] / "Snakefile")]
    command += ["--configfile", str(args.config)] if args.config else []
    if any(Path(".snakemake/locks").glob("*")):
        logging.info("the last run in this folder was killed; its lock is taken away")
        subprocess.run([*command, "--cores", "1", "--quiet", "all", "--unlock"], check=True)
    profile = args.profile or ("default" if shutil.which("nvidia-smi") else "cpu")
    command += ["--workflow-profile", str(SCRIPTS.parents[1] / "profiles" / profile), *args.options]
    sys.stdout.flush()
    os.execv(sys.executable, command)


if __name__ == "__main__":
    cli.run(main, arguments())

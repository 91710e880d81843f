"""Jobs of an earlier run that SLURM still runs for this folder.

A snakemake that was killed leaves its jobs running. Another one started next to them would make the same
files a second time, at the same time: it is refused until they have ended.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kdag.job.errors import UserError

PREFIX = "kdag"  # of the names of our jobs: slurm-jobname-prefix in profiles/slurm
SECONDS = 60  # squeue answers within this time, or the cluster is out of reach


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it; `rule` is what the plugin writes into its comment."""

    id: str
    name: str
    state: str
    rule: str
    folder: str


def call(*command: str) -> str:
    """What a client of SLURM prints; UserError with its own words where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer: {error}") from error
    if done.returncode:
        raise UserError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def parse(listing: str) -> list[Job]:
    """The lines of squeue --format '%i|%j|%T|%k|%Z'; a folder may hold any character."""
    return [Job(*line.split("|", 4)) for line in listing.splitlines() if line.count("|") >= 4]


def ours(jobs: list[Job], folder: Path, prefix: str) -> list[Job]:
    """Jobs of the plugin, named <prefix>_<id of the run>, that run in `folder`."""
    named = re.compile(rf"{re.escape(prefix)}_[0-9a-f-]{{36}}")
    here = os.path.realpath(folder)
    return [job for job in jobs if named.fullmatch(job.name) and os.path.realpath(job.folder) == here]


def orphans(folder: Path, prefix: str = PREFIX) -> list[Job]:
    """Jobs named `prefix` that wait or run for `folder`; none where there is no SLURM."""
    if not shutil.which("squeue"):
        return []
    listing = call("squeue", "--noheader", "--me", "--format=%i|%j|%T|%k|%Z")
    return ours(parse(listing), folder, prefix)


def cancel(jobs: list[Job]) -> None:
    call("scancel", *(job.id for job in jobs))


def describe(jobs: list[Job]) -> list[str]:
    return [f"{job.id}  {job.state.lower()}  {job.rule}" for job in jobs]


def refusal(jobs: list[Job], prefix: str) -> list[str]:
    """What a user is told whose run is not started."""
    ids = ",".join(job.id for job in jobs)
    return [
        "Nothing has run: SLURM still has jobs of an earlier run in this folder, and a second run next to "
        "them would write the same files.",
        *describe(jobs),
        f"Let them end (squeue -j {ids}) or cancel them (make orphans CANCEL=1), then start again; what they "
        "finish is kept, and training goes on from its checkpoint.",
        "If they belong to another experiment that is being run from this folder, give this run a name of "
        f"its own: --slurm-jobname-prefix {prefix}-2",
    ]

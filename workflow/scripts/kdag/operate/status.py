"""What of an experiment is done, running, failed or waiting, as Snakemake itself knows it.

Two dry runs say which jobs there are and which are not done; .snakemake/ says of those which have begun
(incomplete/), which have ended (metadata/) and, in the log of their run, which of these failed. Nothing is
locked or changed, so this works next to a run, and as well where the jobs are SLURM's.
"""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kdag.files.code import SCRIPTS
from kdag.job import parent
from kdag.job.errors import UserError

RUNNING, QUEUED, FAILED, INTERRUPTED, WAITING, DONE = (
    *("running", "in the queue", "failed", "interrupted", "waiting", "done"),
)
STATES = (DONE, RUNNING, QUEUED, FAILED, INTERRUPTED, WAITING)


@dataclass(frozen=True)
class Job:
    """A job of the DAG; log: its file, None where the rule has none; command: with `-p` alone."""

    rule: str
    wildcards: str
    outputs: tuple[str, ...]
    log: str | None
    inputs: tuple[str, ...] = ()
    command: str = ""

    def __str__(self):
        values = [part.split("=", 1)[-1] for part in self.wildcards.split(", ")]
        return " ".join([self.rule, *filter(None, values)])


def jobs(dry_run: str) -> list[Job]:
    """The jobs that `snakemake -n` prints, in its order, without the target rule."""
    found, rule, keys = [], None, {}
    for line in [*dry_run.splitlines(), "rule end:"]:
        if heading := re.match(r"(?:local)?rule (\w+):$", line):
            if rule and keys.get("output"):
                outputs, inputs = (tuple(keys.get(key, "").split(", ")) for key in ("output", "input"))
                command = keys.get("Shell command", "")
                found.append(Job(rule, keys.get("wildcards", ""), outputs, keys.get("log"), inputs, command))
            rule, keys = heading[1], {}
        elif entry := re.match(r"(?:    )?(input|output|log|wildcards|Shell command): (.*)$", line):
            keys[entry[1]] = entry[2]
    return found


def snakemake(config: Path | None, *options: str) -> list[str]:
    """The command that runs Snakemake with our rules in this folder, whoever calls it, without a profile."""
    chosen = ["--configfile", str(config)] if config else []
    rules = os.path.relpath(SCRIPTS.parents[1] / "Snakefile")
    command = [sys.executable, "-m", "snakemake", "-s", rules, "--workflow-profile", "none", "--cores", "1"]
    return [*command, "--rerun-incomplete", "--nocolor", *options, *chosen]


def dry_run(config: Path | None, *options: str) -> str:
    """What Snakemake would do; UserError with its own last words where it cannot say."""
    done = subprocess.run(snakemake(config, "-n", *options), text=True, capture_output=True)
    if done.returncode:
        words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        start = next((n for n, line in enumerate(words) if "Error" in line), -1)
        raise UserError("\n".join(words[start:]))
    return done.stdout


# --- what Snakemake keeps of jobs that have begun ---------------------------------------------------------


def record_files(folder: Path) -> dict[str, Path]:
    """{output: file of its record} in .snakemake/incomplete or metadata; a long name lies in folders @..."""
    found = {}
    for file in filter(Path.is_file, Path(folder).rglob("*")):
        name = "".join(part.removeprefix("@") for part in file.relative_to(folder).parts)
        with contextlib.suppress(ValueError):  # nothing of Snakemake's
            found[base64.urlsafe_b64decode(name).decode()] = file
    return found


def records(folder: Path) -> dict[str, dict]:
    """{output: record} of the same."""
    found = {}
    for output, file in record_files(folder).items():
        with contextlib.suppress(OSError, ValueError):  # it is just being written or deleted
            found[output] = json.loads(file.read_text() or "{}")
    return found


@dataclass(frozen=True)
class Run:
    """A run of Snakemake, by its log: when it began [s since 1970], and which job logs it calls failed."""

    began: float
    ended: bool
    host: str
    failed: frozenset[str]


def run(name: str, text: str) -> Run:
    """name: that of the log file, which says when.

    Where rules are not shown (--quiet rules), only the command that failed says which log was its own.
    """
    failed = re.findall(r"^    log: (.*?) \(check log file", text, re.M)
    failed += re.findall(r"--log-file (\S+)' (?:returned non-zero|died with)", text)
    host = re.search(r"^  Host: (.*)$", text, re.M)
    began = datetime.strptime(name.removesuffix(".snakemake.log"), "%Y-%m-%dT%H%M%S.%f").timestamp()
    ended = re.search(r"^(Elapsed time|Complete log)", text, re.M)
    return Run(began, bool(ended), host[1] if host else "", frozenset(failed))


def runs(folder: Path, newest: int = 20) -> list[Run]:
    """The last runs that did something, the newest first."""
    files = sorted(Path(folder).glob("*.snakemake.log"), reverse=True)[:newest]
    texts = [(file.name, file.read_text(encoding="utf-8", errors="replace")) for file in files]
    return [run(name, text) for name, text in texts if "\nJob stats:" in text]


def working_here(folder: Path) -> list[int] | None:
    """The Snakemakes, by process id, that run in `folder` on this machine; None where nobody can tell."""
    if not Path("/proc/self/cwd").exists():
        return None
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if parent.is_snakemake(int(process.name)) and (process / "cwd").samefile(folder):
                found.append(int(process.name))
    return sorted(found)


def going_on(run: Run, folder: Path) -> bool:
    """A run on another machine is believed as long as its log has no end."""
    return not run.ended and (run.host != socket.gethostname() or working_here(folder) != [])


def holder(folder: Path) -> str | None:
    """Who holds the lock that Snakemake keeps in `folder`, in words; None where nobody does who lives."""
    if not any((folder / ".snakemake" / "locks").glob("*")):
        return None
    past = runs(folder / ".snakemake" / "log", newest=1)
    if past and not past[0].ended and past[0].host != socket.gethostname():
        return f"a run on {past[0].host}, which cannot be asked from here"
    living = working_here(folder)
    if living is None:
        return "a run of which this system tells nothing"
    return f"process {living[0]} on this machine" if living else None


# --- what follows -----------------------------------------------------------------------------------------


def state(job: Job, begun: dict, ended: dict, past: list[Run], alive: bool) -> str:
    """The state of a job that is not done. begun, ended: `records`; past: `runs`; alive: one goes on."""
    marked = [begun[output] for output in job.outputs if output in begun]
    if marked and not alive:
        return INTERRUPTED
    if marked:
        in_queue = marked[0].get("external_jobid") and not (job.log and Path(job.log).is_file())
        return QUEUED if in_queue else RUNNING
    starts = [ended[output]["starttime"] for output in job.outputs if "starttime" in ended.get(output, {})]
    for earlier in past:
        if starts and earlier.began <= starts[0] + 1:
            return FAILED if job.log in earlier.failed else WAITING
    return WAITING


def last_line(log: str | None) -> str:
    """The last line of a log that says something; of a long file only the end is read."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, Path(log).stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, TypeError):
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def complaint(log: str | None) -> str:
    """The first error that a stage told in its log, without time and name; empty where it told none."""
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")
    except (OSError, TypeError):
        return ""
    told = next((line for line in text.splitlines() if " error: " in line), "")
    return told.split(" error: ", 1)[-1].strip()


def table(states: dict[Job, str]) -> str:
    """Rules in the order of the DAG, a column per state that occurs."""
    columns = [s for s in STATES if s in states.values()]
    rules = list(dict.fromkeys(job.rule for job in states))
    counts = {(job.rule, s): 0 for job, s in states.items()}
    for job, s in states.items():
        counts[job.rule, s] += 1
    lines = [f"{'':18}" + "".join(f"{column:>14}" for column in columns)]
    for rule in rules:
        cells = "".join(f"{counts.get((rule, c), '') or '':>14}" for c in columns)
        lines.append(f"{rule:18}{cells}".rstrip())
    return "\n".join(lines)


def details(states: dict[Job, str]) -> list[str]:
    """Of every job that runs or stopped: its state, its log, and the log's last line."""
    lines = []
    for wanted in (RUNNING, QUEUED, FAILED, INTERRUPTED):
        for job in (job for job, s in states.items() if s == wanted):
            lines.append(f"{wanted:12} {job}" + (f"   {job.log}" if job.log and wanted != QUEUED else ""))
            said = (wanted == FAILED and complaint(job.log)) or last_line(job.log)
            if wanted != QUEUED and said:
                lines.append(f"{'':12} {said}")
    return lines

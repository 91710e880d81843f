"""Results that were moved here, and which of them are what this experiment would make.

Snakemake's own knowledge of a result, .snakemake/, stays where it ran. A result without it would be made
anew, and deleted before that, or, where its date is right, be believed whatever it was made from. So a run
refuses until each result has been compared, by the record of its job (files/records.py), with what would be
run here.
"""

import shlex
from pathlib import Path

from kdag.files import code, records
from kdag.operate.status import Job, record_files

# What is made from all the others within seconds, and may be made anew.
CHEAP = ("aggregate", "write_report", "write_cards")
# What is run before others and says nothing that they depend on: it is taken over as it is.
GATES = ("check_models",)
MOST_SHOWN = 20
ADOPTING = "KDAG_ADOPTING"  # set by `make adopt` for its own calls of Snakemake, which are not refused


def unknown(records_of: list[Path], outputs: list[str], snakemake: Path) -> list[str]:
    """Outputs that are here and of which Snakemake, in its folder `snakemake`, knows nothing.

    Those that a record in one of the folders `records_of` lists, and `outputs`.
    """
    files = [file for folder in records_of for file in sorted(folder.glob("job-*.json"))]
    made = [records.read(file) for file in files if file.stem.removeprefix("job-") not in CHEAP]
    named = dict.fromkeys([*(name for record in made if record for name in record["outputs"]), *outputs])
    here = [name for name in named if Path(name).exists()]
    if not here:
        return []
    there = record_files(snakemake / "metadata").keys() | record_files(snakemake / "incomplete").keys()
    return [name for name in here if name not in there]


def refusal(outputs: list[str], command: str) -> list[str]:
    """What a user is told whose run is not started."""
    folders = list(dict.fromkeys(str(Path(name).parent) for name in outputs))
    shown = [f"  {folder}" for folder in folders[:MOST_SHOWN]] + ["  ..."] * (len(folders) > MOST_SHOWN)
    return [
        f"Nothing has run and nothing is deleted: {len(outputs)} results are here that this folder has no "
        "record of. Were they moved here? Snakemake would make them anew:",
        *shown,
        f"`{command}` compares each with what would be run here and takes over what is the same. To make "
        "them anew instead, move them away.",
    ]


def why_not(job: Job) -> str | None:
    """Why the outputs of a job are not what it would make here; None where they are."""
    words = shlex.split(job.command)
    script = next(Path(word) for word in words if word.endswith(".py"))
    record = records.read(Path(job.outputs[0]).parent / f"job-{script.stem}.json")
    missing = [output for output in job.outputs if not Path(output).exists()]
    if missing:
        return f"{missing[0]} is missing"
    if record is None:
        return "nothing says what it was made from"
    if record["config"] != records.config_of(words):
        return "it was made with other parameters"
    ours = [file for file in job.inputs if Path(file).resolve().is_relative_to(code.SCRIPTS)]
    if record["code"] != code.fingerprint(ours):
        return "it was made by other code"
    for name, expected in record["inputs"].items():
        if not Path(name).is_file() or records.hashes([Path(name)])[name] != expected:
            return f"its input {name} is missing or another one"
    stray = [name for name in record["inputs"] if not declared(name, job.inputs)]
    if stray:
        return f"it was made from {stray[0]}"
    return records.damaged(record)


def declared(name: str, inputs: tuple[str, ...]) -> bool:
    """Is a file an input, in one that is a folder, or the manifest next to one?"""
    beside = {Path(given).parent / "manifest.json" for given in inputs}
    return Path(name) in beside or any(Path(name).is_relative_to(given) for given in inputs)


def fitting(jobs: list[Job]) -> dict[Job, str | None]:
    """Each job whose outputs are here, at least in part, with why they do not fit, or None.

    What was made from something that does not fit does not fit either: it would be made again as well.
    """
    verdict, refused = {}, set()
    for job in in_order(jobs):
        here = any(Path(output).exists() for output in job.outputs)
        from_refused = [name for name in job.inputs if name in refused]
        why = f"{from_refused[0]} has to be made again" if from_refused else why_not(job)
        if here and job.rule in GATES and not from_refused:
            why = None
        if why:
            refused.update(job.outputs)
        if here:
            verdict[job] = why
    return verdict


def in_order(jobs: list[Job]) -> list[Job]:
    """Every job behind those that make its inputs."""
    maker = {output: job for job in jobs for output in job.outputs}
    done: dict[Job, None] = {}

    def visit(job: Job) -> None:
        for name in job.inputs:
            if name in maker and maker[name] not in done:
                visit(maker[name])
        done.setdefault(job)

    for job in jobs:
        visit(job)
    return list(done)

"""What each job of an experiment should take: the planner's arithmetic on what is there already.

The rules tell the seconds to the jobs, which compare their pace with it (progress.Pace), and the GPU memory
to Snakemake, which can run jobs next to each other by it. Nothing that trains or answers imports this, so an
edit of the planner runs none of that again.
"""

import functools
import logging
import subprocess
from math import ceil
from pathlib import Path

from kdag.config.experiment import Config
from kdag.config.stages import stage_params
from kdag.files.reading import read_json, read_jsonl
from kdag.job.errors import UserError
from kdag.planning import devices, planner
from kdag.planning.devices import Device
from kdag.planning.shapes import Shape

# Of a prompt, without its tokenizer: IFEval's have 4.3 and more, chat templates add 10 to 30 tokens.
CHARACTERS_PER_TOKEN, TEMPLATE = 4, 30
MB = 2**20
WHOLE_GPU = 2**20  # MB, more than any GPU has: Snakemake takes it for all that `--resources gpu_mb` allows


@functools.cache
def device_here() -> Device | None:
    """The slowest of this machine's GPUs, its CPU where it has none; None for a GPU that nobody knows."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    try:
        found = [devices.of_device(name) for name in listed.splitlines() if name.strip()]
    except UserError:
        return None
    return min(found, key=lambda device: device.rate, default=devices.DEVICES["cpu"])


def seconds(
    config: Config, device: Device | None, teacher: Path, student: Path, results: Path
) -> dict[str, int]:
    """{stage: of its longest job}; empty where it cannot be known. The arguments of `stages`."""
    planned = stages(config, device, teacher, student, results)
    return {stage: seconds_of(entry) for stage, entry in planned.items()}


def seconds_of(entry: dict) -> int:
    return max(1, round(3600 * entry["hours_longest"]))


def gpu_mb(entry: dict | None, kind: str | None = None) -> int:
    """MB (2^20 bytes) of GPU memory of a job, of a stage's largest if its kind is not known.

    entry: of `stages`; None where the planner knows nothing of the job, which then has the GPU to itself.
    """
    if entry is None:
        return WHOLE_GPU
    return ceil(entry["gpu_bytes_of"].get(kind, entry["gpu_bytes"]) / MB)


def stages(
    config: Config, device: Device | None, teacher: Path, student: Path, results: Path
) -> dict[str, dict]:
    """{stage: its entry of planner.plan}; empty where it cannot be known.

    teacher, student: folders of the models as fetched; a student cut from the teacher needs none.
    """
    if device is None:
        return {}
    derive = config.student.derive
    try:
        large = Shape.from_config(read_json(teacher / "config.json"))
        small = (
            large.with_layers(len(derive.kept(large.layers)))
            if derive
            else Shape.from_config(read_json(student / "config.json"))
        )
        tokens = counted(config, results, longest_counts=False)
        plan = planner.plan(config, large, small, device, tokens)
    except (UserError, OSError, KeyError, ValueError, ZeroDivisionError):  # no plan is no reason to stop
        return {}
    return {entry["stage"]: entry for entry in plan}


def counted(config: Config, results: Path, *, longest_counts: bool = True) -> dict:
    """What `planner.plan` counts with: the rows of a finished subset where they are these, else means.

    longest_counts: the longest row is read too, on which memory depends and no time.
    """
    folder = results / config.experiment / "data"
    report = longest = None
    if (folder / "manifest.json").is_file():
        manifest = read_json(folder / "manifest.json")
        if manifest["params"] == stage_params(config, "subset"):
            report = manifest["report"]
            longest = longest_row(folder / "train.parquet") if longest_counts else None
        else:
            logging.info("%s is of another configuration and is not used", folder / "manifest.json")
    tokens = planner.default_tokens(config, report, longest)
    prompts, source = folder / "prompts.jsonl", config.evaluation.prompts.path
    if not prompts.is_file() and source and source.endswith(".jsonl"):
        prompts = Path(source)
    if prompts.is_file():
        lengths = [len(row["prompt"]) for row in read_jsonl(prompts)][: config.evaluation.limit]
        tokens["prompts"] = len(lengths)
        tokens["longest_prompt"] = round(max(lengths) / CHARACTERS_PER_TOKEN) + TEMPLATE
    return tokens | {"counted": bool(report)}


def longest_row(file: Path) -> int | None:
    if not file.is_file():
        return None
    import pandas as pd

    return int(pd.read_parquet(file, columns=["input_ids"])["input_ids"].map(len).max())

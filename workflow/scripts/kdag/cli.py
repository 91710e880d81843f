"""What every stage script does first and last: arguments, a log with times, one clear line for an error."""

import argparse
import logging
import os
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

from kdag import precision
from kdag.errors import UserError, missing

# Stages never reach for the network: what they need was fetched. The fetch scripts ask for it by name.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def parser(description: str, *, gpus: bool = False) -> argparse.ArgumentParser:
    """gpus: the stage uses a GPU where there is one."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--name", help="what this job is called in its log lines")
    if gpus:
        what = "GPUs of this job: training processes, or parts of a model"
        made.add_argument("--gpus", type=gpu_count, default=1, help=what)
        what = "seconds that the planner gives this job; 0: not known"
        made.add_argument("--planned", type=float, default=0, help=what)
    return made


def gpu_count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a job has at least one; without a GPU it takes the CPU")
    return int(text)


def run(main, arguments: argparse.ArgumentParser, *, network: bool = False, memory: str = "") -> None:
    """Parse, set up logging, run main(args); an error whose cause is known is one line and exit status 1.

    memory: the key of the configuration to lower where the GPU's memory does not do.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    precision.make_reproducible()
    if not network:
        os.environ.update(OFFLINE, TQDM_DISABLE="1")  # bars would fill a log with carriage returns
    args = arguments.parse_args()
    name = args.name or os.path.basename(sys.argv[0]).removesuffix(".py")
    one_of_several = int(os.environ.get("RANK", 0)) > 0  # the first process speaks for all
    logging.basicConfig(
        level=logging.WARNING if one_of_several else logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s {name}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    if not one_of_several:
        Pace.planned = getattr(args, "planned", 0)
    for noisy in ("httpx", "urllib3", "filelock", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that nothing here uses
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    try:
        main(args)
    except Exception as error:
        line = explained(error, args, memory)
        if line is None:
            raise
        if one_of_several:
            time.sleep(10)  # what the first process says too ends this one before
        logging.error("error: %s", line)
        sys.exit(1)


def explained(error: Exception, args: argparse.Namespace, memory: str = "") -> str | None:
    """What happened and what to do about it; None where only a traceback can tell."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError) and given(error.filename, args):
        return missing(error.filename)
    if "No space left on device" in str(error):  # safetensors and Arrow raise errors of their own
        return no_space(args)
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory: {str(error).split('.')[0]}. A smaller {memory or 'batch'} needs less"
    return None


def no_space(args: argparse.Namespace) -> str:
    """Which of the folders that a stage writes to is full."""
    folders = {path if path.is_dir() else path.parent for path in paths(args) if path.parent.is_dir()}
    fullest = min(folders, key=lambda folder: shutil.disk_usage(folder).free)
    usage = shutil.disk_usage(fullest)
    free, total, read = (round(n / 2**20) for n in (usage.free, usage.total, size(args)))
    return (
        f"no space left on the disk of {fullest}: {free} of {total} MiB are free. This job reads {read} MiB "
        "and may write as much. Make room and run snakemake again: what is finished stays, and nothing "
        "half-written was kept"
    )


def size(args: argparse.Namespace) -> int:
    """Bytes of the files and folders that were given as arguments and exist."""
    found = 0
    for path in paths(args):
        files = path.rglob("*") if path.is_dir() else [path]
        found += sum(file.stat().st_size for file in files if file.is_file())
    return found


def paths(args: argparse.Namespace) -> list[Path]:
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, Path)]


def given(filename, args: argparse.Namespace) -> bool:
    """Does a path lie in or beside one that was given as an argument?"""
    return filename is not None and any(Path(filename).is_relative_to(p.parent) for p in paths(args))


class Progress:
    """Log lines with the share done and the time left, at most one every `every` seconds."""

    def __init__(self, total: int, unit: str, every: float = 5.0):
        self.total, self.unit, self.every = total, unit, every
        self.start = self.last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < self.every:
            return
        self.last = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        logging.info("%d/%d %s, %s left%s", done, self.total, self.unit, clock(left), note)


# When a job says that it is far too slow: not in its first seconds, and compared with a minute at least.
FIRST_SECONDS, TOO_SLOW, SHORTEST_PLAN = 60, 10, 60


class Pace:
    """One warning, once a job, where it will take more than TOO_SLOW times what the planner says.

    total: of whatever is done evenly over time; now: the clock.
    """

    planned = 0.0  # seconds of this job, by --planned; 0: not known, or the warning was given

    def __init__(self, total: float, now=time.monotonic):
        self.total, self.now, self.start, self.done = total, now, now(), 0

    def add(self, done: float) -> None:
        self.reach(self.done + done)

    def reach(self, done: float) -> None:
        self.done = done
        seconds = self.now() - self.start
        if not Pace.planned or seconds < FIRST_SECONDS or not 0 < done < self.total:
            return
        whole = seconds / done * self.total
        if whole > TOO_SLOW * max(Pace.planned, SHORTEST_PLAN):
            logging.warning(
                "this job will take about %s, the plan said %s: `make doctor` says what this machine lacks "
                "(a GPU that is not used, arithmetic that the processor emulates), `make plan` how the plan "
                "was made",
                *(timedelta(seconds=round(length)) for length in (whole, Pace.planned)),
            )
            Pace.planned = 0.0


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

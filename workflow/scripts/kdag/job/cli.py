"""What every stage script does first and last: arguments, a log with times, one clear line for an error."""

import argparse
import errno
import faulthandler
import logging
import os
import shutil
import sys
import time
from pathlib import Path

from kdag.job import arithmetic, launching, lines, parent
from kdag.job.errors import UserError, missing
from kdag.job.progress import Pace

# Stages never reach for the network: what they need was fetched. The fetch scripts ask for it by name.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


# What the operating system may refuse, and what helps.
REFUSED = {
    errno.ENOSPC: "Make room",
    errno.ENOMEM: "Give it more memory",
    errno.EFBIG: "Raise the limit on a file's size (ulimit -f), or take another file system",
    errno.EDQUOT: "Your quota is used up: delete something",
    errno.EROFS: "Mount it otherwise, or work in another folder",
    errno.EACCES: "Give yourself the right to read and write there",
    errno.EPERM: "Give yourself the right to read and write there",
    errno.EMFILE: "Raise the limit on open files (ulimit -n)",
    errno.EIO: "The disk has a fault: look at it",
    errno.ESTALE: "The network file system lost the file: look whether its server is well",
}
KEPT = "what is finished stays, and nothing half-written was kept"


def parser(description: str, *, gpus: bool = False, curves: bool = False) -> argparse.ArgumentParser:
    """gpus: the stage uses a GPU where there is one. curves: it trains."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--name", help="what this job is called in its log lines")
    made.add_argument("--log-file", type=str, help="where the log goes besides the terminal")
    if curves:
        what = "1: write curves for TensorBoard next to the model"
        made.add_argument("--tensorboard", type=int, choices=(0, 1), default=0, help=what)
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


def run(
    main,
    arguments: argparse.ArgumentParser,
    *,
    network: bool = False,
    memory: str = "",
    sklearn: bool = False,
) -> None:
    """Parse, set up logging, run main(args); an error whose cause is known is one line and exit status 1.

    memory: the key of the configuration to lower where the GPU's memory does not do. sklearn: it is used.
    """
    if not sklearn:
        # transformers would, for a way of generating that no stage uses: half a second of a job's start.
        sys.modules.setdefault("sklearn", None)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    arithmetic.make_reproducible()
    if not network:
        os.environ.update(OFFLINE, TQDM_DISABLE="1")  # bars would fill a log with carriage returns
    args = arguments.parse_args()
    name = args.name or os.path.basename(sys.argv[0]).removesuffix(".py")
    one_of_several = int(os.environ.get("RANK", 0)) > 0  # the first process speaks for all
    level = logging.WARNING if one_of_several else logging.INFO
    formatter = lines.Formatter(f"%(asctime)s {name}: %(message)s", "%H:%M:%S")
    logging.basicConfig(level=level, handlers=handlers(args.log_file, formatter), force=True)
    logging.captureWarnings(True)
    lines.clean_others()
    parent.end_with_snakemake()
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
            logging.exception("error: %s: %s", type(error).__name__, error)
            sys.exit(1)
        if one_of_several:
            time.sleep(10)  # what the first process says too ends this one before
        logging.error("error: %s", line)
        sys.exit(1)


class Terminal(logging.StreamHandler):
    """The terminal may go away while a job runs; the log file has what it would have shown."""

    def handleError(self, record):  # noqa: N802, logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class LogFile(logging.FileHandler):
    """The job's own log; a line that the system refuses, on a full disk say, is on the terminal."""

    def handleError(self, record):  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def handlers(log_file: str | None, formatter: logging.Formatter) -> list[logging.Handler]:
    """The terminal, and the job's own log: no pipe whose other end could die."""
    made = [Terminal()]
    if log_file is not None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        one_more = launching.LAUNCHER in os.environ  # of several processes, which share a log
        made.append(LogFile(log_file, mode="a" if one_more else "w", encoding="utf-8"))
        faulthandler.enable(made[-1].stream)  # a crash of a library leaves its place there
    for handler in made:
        handler.setFormatter(formatter)
    return made


def explained(error: Exception, args: argparse.Namespace, memory: str = "") -> str | None:
    """What happened and what to do about it; None where only a traceback can tell."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError) and given(error.filename, args):
        return missing(error.filename)
    code = refusal(error)
    if code == errno.ENOSPC:
        return no_space(args)
    if code == errno.ENOMEM:
        return f"this machine's memory does not do ({error}). A smaller {memory or 'batch'} needs less"
    if code:
        where = getattr(error, "filename", None) or ", ".join(map(str, writable(args)))
        return f"{where}: {os.strerror(code).lower()}. {REFUSED[code]}, and run snakemake again: {KEPT}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory: {str(error).split('.')[0]}. A smaller {memory or 'batch'} needs less"
    return None


def refusal(error: Exception) -> int | None:
    """What the operating system refused, as its number; safetensors and Arrow raise errors of their own."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in REFUSED:
        return error.errno
    return next((c for c in REFUSED if os.strerror(c) in str(error) or f"(os error {c})" in str(error)), None)


def writable(args: argparse.Namespace) -> list[Path]:
    """The folders that a stage may write to."""
    return sorted({path if path.is_dir() else path.parent for path in paths(args) if path.parent.is_dir()})


def no_space(args: argparse.Namespace) -> str:
    """Which of the folders that a stage writes to is full."""
    fullest = min(writable(args), key=lambda folder: shutil.disk_usage(folder).free)
    usage = shutil.disk_usage(fullest)
    free, total, read = (round(n / 2**20) for n in (usage.free, usage.total, size(args)))
    return (
        f"no space left on the disk of {fullest}: {free} of {total} MiB are free. This job reads {read} MiB "
        f"and may write as much. Make room and run snakemake again: {KEPT}"
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
    """Does a path lie in or next to one that was given as an argument?"""
    return filename is not None and any(Path(filename).is_relative_to(p.parent) for p in paths(args))

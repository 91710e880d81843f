"""What every stage script does first and last: arguments, a log with times, one clear line for an error."""

import argparse
import logging
import os
import sys
import time

from kdag.errors import UserError

# Stages never reach for the network: what they need was fetched. The fetch scripts ask for it by name.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--name", help="what this job is called in its log lines")
    return made


def run(main, arguments: argparse.ArgumentParser, *, network: bool = False) -> None:
    """Parse, set up logging, run main(args); a UserError becomes one line and exit status 1."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not network:
        os.environ.update(OFFLINE, TQDM_DISABLE="1")  # bars would fill a log with carriage returns
    args = arguments.parse_args()
    name = args.name or os.path.basename(sys.argv[0]).removesuffix(".py")
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s {name}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for noisy in ("httpx", "urllib3", "filelock", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main(args)
    except UserError as error:
        logging.error("error: %s", error)
        sys.exit(1)


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


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

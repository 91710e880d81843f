"""A job ends with the Snakemake that started it, also where that is killed and can tell nobody.

Otherwise it goes on unseen, and the next run starts the same job next to it.
"""

import logging
import os
import threading
import time
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 1.0
PARENT, STARTED = 1, 19  # of the fields behind the name in /proc/<pid>/stat, proc(5)


def end_with_snakemake() -> None:
    """Watch the nearest Snakemake above this process, if there is one and /proc to see it in."""
    if watched := snakemake_above(os.getpid()):
        threading.Thread(target=watch, args=watched, daemon=True).start()


def watch(process: int, started: str) -> None:
    while stat(process)[STARTED:][:1] == [started]:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    logging.error("error: the snakemake that started this job is gone; the same command goes on from here")
    logging.shutdown()
    os._exit(1)


def snakemake_above(process: int) -> tuple[int, str] | None:
    """(process id, when it started) of the nearest parent that is a Snakemake."""
    while fields := stat(process):
        process = int(fields[PARENT])
        if is_snakemake(process):
            return process, stat(process)[STARTED]
    return None


def stat(process: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, which may hold anything; empty where there are none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_snakemake(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) == b"snakemake" for word in words)

"""How much memory and time a job asks for, from the size of the models that it loads.

Only the scheduler of a cluster reads this. It is meant to be enough, not tight: a job that is killed for
memory or time comes back with twice, then three times as much, and goes on from its checkpoint.
"""

import errno
import os
from pathlib import Path

from kdag.models.files import weight_files

MB = 2**20
HOST_MB = 4000  # Python, torch, CUDA's context and two Snakemake processes
HOST_PER_BYTE = 1.5  # weights pass through host memory when they are loaded and when they are saved
MINUTES = 60
MINUTES_PER_GIGABYTE = 30


def model_bytes(directory: Path) -> int:
    """The size of a model's weights. FileNotFoundError, naming the directory, where it is not made yet."""
    names = weight_files(directory) if Path(directory).is_dir() else []
    if not names:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    return sum((Path(directory) / name).stat().st_size for name in names)


def host_mb(weights: int, processes: int = 1) -> int:
    """Host memory of a job whose processes each load `weights` bytes."""
    return processes * round(HOST_MB + HOST_PER_BYTE * weights / MB)


def minutes(weights: int) -> int:
    """The time limit of a job that works with models of `weights` bytes."""
    return round(MINUTES + MINUTES_PER_GIGABYTE * weights / 2**30)

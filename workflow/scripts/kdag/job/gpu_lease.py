"""A GPU of its own for every job on a workstation with several, by file locks.

Snakemake counts GPUs but hands none out. A job locks one file per GPU it takes and shows itself these GPUs
alone, before torch is imported. The kernel frees the locks when the job dies, however it dies. Where
CUDA_VISIBLE_DEVICES is set (SLURM sets it) somebody else has decided, and nothing is done.
"""

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from kdag.job.errors import UserError

SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_LOG_LINES = 60.0

CPU_ONLY = ("", "-1")  # values of CUDA_VISIBLE_DEVICES by which a user asks for the CPU
LEAST_DRIVERS = {12: 525, 13: 580}  # of a CUDA, by its first number: NVIDIA's table of minor compatibility

_held = []  # open files: what is locked stays locked as long as they are open


def leased(main):
    """main(args) with args.gpus GPUs of its own."""

    def with_lease(args):
        take(args.gpus)
        refuse_unused()
        return main(args)

    return with_lease


def take(count: int) -> None:
    """Lease `count` of this machine's GPUs for the life of this process; waits until there are as many."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    gpus = list_gpus()
    if gpus and count > len(gpus):
        raise UserError(f"this job is to have {count} GPUs (resources.gpus), this machine has {len(gpus)}")
    if len(gpus) < 2:
        return
    folder = lock_folder()
    said = -SECONDS_BETWEEN_LOG_LINES
    while not (mine := try_to_lock(folder, gpus, count)):
        if time.monotonic() - said > SECONDS_BETWEEN_LOG_LINES:
            said = time.monotonic()
            logging.info("waiting for %d of %d GPUs; other jobs have leased them", count, len(gpus))
        time.sleep(SECONDS_BETWEEN_TRIES)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    logging.info("leased %s", ", ".join(mine))


def list_gpus() -> list[str]:
    """The UUIDs of this machine's NVIDIA GPUs; of one that is cut into MIG instances, the instances'."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for uuid in re.findall(r"UUID: ([\w/-]+)", listed):
        if uuid.startswith("MIG") and found and found[-1].startswith("GPU"):
            found.pop()
        found.append(uuid)
    return found


def refuse_unused() -> None:
    """UserError for a GPU that torch cannot use: what takes minutes there takes days on the CPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in CPU_ONLY:
        return
    import torch

    if not torch.cuda.is_available() and list_gpus():
        raise UserError(why_unused(driver(), torch.__version__, torch.version.cuda))


def why_unused(driver: str | None, build: str, cuda: str | None) -> str:
    """What is said of a GPU that torch does not see. build, cuda: torch's version, and that of its CUDA."""
    if cuda is None:
        why = "is a build without CUDA: install torch from pytorch.org/get-started"
    else:
        least = LEAST_DRIVERS.get(int(cuda.split(".")[0]))
        older = f", which needs driver {least} or newer" if least else ""
        why = f"is built for CUDA {cuda}{older}: update the driver, or install a build of torch for it"
    return (
        f"nvidia-smi lists a GPU (driver {driver or 'unknown'}) that torch does not see. torch {build} {why}"
        "; or say CUDA_VISIBLE_DEVICES= in front of the command to compute on the CPU"
    )


def driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said[0] if said else None


def lock_folder() -> Path:
    """On this machine's own disk, the same for all jobs of a user."""
    folder = Path(tempfile.gettempdir(), f"kdag-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else; set TMPDIR or CUDA_VISIBLE_DEVICES")
    opened = os.open(folder, os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_SH)  # systemd-tmpfiles clears old files out of unlocked folders alone
    _held.append(opened)
    return folder


def try_to_lock(folder: Path, gpus: list[str], count: int) -> list[str]:
    """`count` GPUs that no living job has, now locked, or none at all."""
    free = {}
    with open(folder / "choosing", "w") as choosing:
        fcntl.flock(choosing, fcntl.LOCK_EX)  # else two jobs could take half of what each needs
        for gpu in gpus:
            if len(free) == count:
                break
            file = open(folder / gpu.replace("/", "-"), "w")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free[gpu] = file
            except BlockingIOError:
                file.close()
    if len(free) < count:
        for file in free.values():
            file.close()
        return []
    _held.extend(free.values())
    return list(free)

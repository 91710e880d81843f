"""Several processes of one training job, one per GPU, on one machine.

The script that was called starts itself again, once per GPU, through torch's launcher, and stays to hold
the lease of the GPUs; its processes end with it.
"""

import ctypes
import logging
import os
import signal
import sys

from kdag.job import gpu_lease
from kdag.job.errors import UserError

LAUNCHER = "KDAG_LAUNCHER"  # the process id of the script that was called, in the processes it started
PR_SET_PDEATHSIG = 1


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def one_process_per_gpu(main, settings=None):
    """main(args) in args.gpus processes; without GPUs too, where they share the cores.

    settings: what args.config are the keys of. Passes that cannot be shared out are refused at once.
    """

    def started(args):
        if LAUNCHER in os.environ:
            end_with(int(os.environ[LAUNCHER]))
            use_own_gpu()
            return main(args)
        if settings:
            passes_per_process(settings(**args.config).gradient_accumulation, args.gpus)
        gpu_lease.take(args.gpus)
        gpu_lease.refuse_unused()
        return main(args) if args.gpus == 1 else launch(args.gpus)

    return started


def passes_per_process(accumulation: int, count: int) -> int:
    """Forward passes of each process per optimiser step, so that together they are `accumulation`."""
    each, rest = divmod(accumulation, count)
    if rest:
        raise UserError(
            f"gradient_accumulation: {accumulation} forward passes cannot be shared out evenly to {count} "
            "processes (resources.gpus)"
        )
    return each


def launch(count: int) -> None:
    """Run this very command in `count` processes; SystemExit if one of them fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    os.environ.update({LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": str(max(1, threads // count))})
    if sys.platform == "linux":  # the host's own name need not resolve, and one machine needs no network
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.info("%d processes", count)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=str(os.getpid()),
        local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            logging.error("process %d was ended by signal %d", number, -failure.exitcode)
        sys.exit(1)


def end_with(launcher: int) -> None:
    """Be killed when the launcher dies, however it dies: the lease of the GPU ends with it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher of this process is gone")


def use_own_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        if torch.cuda.device_count() < processes():
            raise UserError(f"{processes()} GPUs are needed, {torch.cuda.device_count()} are visible")
        torch.cuda.set_device(rank())

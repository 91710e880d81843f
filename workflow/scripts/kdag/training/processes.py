"""What the processes of one training job tell each other."""

import logging
import os
import sys

from kdag.job.launching import processes, rank


def backend() -> str | None:
    """What the processes talk through; None: they are one, or torch chooses."""
    import torch

    return "gloo" if processes() > 1 and not torch.cuda.is_available() else None


def agreed(value):
    """The first process's value, in all of them."""
    if processes() == 1:
        return value
    import torch.distributed

    said = [value]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def summed(values: list, device) -> list[float]:
    """The sums over all processes of some numbers or tensors of one element."""
    import torch.distributed

    total = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    if processes() > 1:
        torch.distributed.all_reduce(total)
    return total.tolist()


def largest(value: int, device) -> int:
    """The largest of all processes' values."""
    if processes() == 1:
        return value
    import torch.distributed

    told = torch.tensor(value, device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return int(told)


def wait_for_all() -> None:
    if processes() > 1:
        import torch.distributed

        torch.distributed.barrier()


def leave() -> None:
    """The processes have nothing more to say: the first goes on alone, the others end here.

    They end without the interpreter's own end, in which a thread of gloo that lets go of its last tensor
    aborts the process (pytorch's pull request 179291 has the cause).
    """
    if processes() == 1:
        return
    import torch.distributed

    torch.distributed.destroy_process_group()
    if rank() > 0:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

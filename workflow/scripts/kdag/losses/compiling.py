"""The element-wise work of the loss as one compiled function, on a GPU.

Some forty kernels read and write 146 bytes a logit; with the few that torch.compile makes of them the loss
took 0.4 of the time on an H100. Compiling takes seconds of a job, on a CPU more than a stage saves.
TORCH_COMPILE_DISABLE=1 in the environment turns it off: the same up to rounding.
"""

import logging
from collections.abc import Callable
from functools import cached_property

import torch

SETTINGS = 2  # of one divergence that it is compiled for: numbers that move would be compiled at every step
VARIANTS = 64  # kinds of tensors, of all divergences, that a process compiles for
NOT_COMPILED = torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit

logger = logging.getLogger(__name__)


def wanted(device: torch.device) -> bool:
    return device.type == "cuda" and not torch._dynamo.config.disable


class Compiled:
    """A function of tensors and settings, compiled for any number of rows.

    Where it cannot be compiled it runs as it is, and the log says so. The first tensor is changed in place.
    Who calls it asks `takes` before: settings that move would be compiled in every step.
    """

    def __init__(self, function: Callable):
        self.function, self.failed = function, False
        # By gradient: its settings; those whose settings move; those that have run.
        self.seen, self.moving, self.ran = {}, set(), set()

    @cached_property
    def compiled(self) -> Callable:
        return torch.compile(self.function, fullgraph=True)

    def __call__(self, *tensors, gradient: Callable | None, params: dict, goal: dict):
        settings = {"gradient": gradient, "params": params, "goal": goal}
        if self.failed:
            return self.function(*tensors, **settings)
        for tensor in tensors:
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        # Kernels are built when they first run, which takes a C compiler: then all may have to be done again.
        before = None if gradient in self.ran else tensors[0].clone()
        try:
            with torch._dynamo.config.patch(recompile_limit=VARIANTS, specialize_float=True):
                result = self.compiled(*tensors, **settings)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if before is None and not isinstance(error, NOT_COMPILED):
                raise
            self.failed = True
            reason = (str(error).strip().splitlines() or [""])[0]
            logger.warning("the loss is not compiled, and slower: %s: %s", type(error).__name__, reason)
            if before is not None:
                tensors[0].copy_(before)
            return self.function(*tensors, **settings)
        self.ran.add(gradient)
        return result

    def takes(self, gradient: Callable | None, params: dict, goal: dict) -> bool:
        """Whether it is compiled for these settings, or will be."""
        seen, now = self.seen.setdefault(gradient, []), (params, goal)
        if self.failed or now in seen:
            return not self.failed
        if len(seen) < SETTINGS:
            seen.append(now)
            return True
        if gradient not in self.moving:
            logger.info("the loss is not compiled any more, as its settings move from step to step")
            self.moving.add(gradient)
        return False

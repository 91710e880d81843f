"""Keys and values that stay where they are, and a decoding step as one CUDA graph.

A step of a large model is some thousand kernels, and a GPU waits for the launch of each. A CUDA graph
launches them as one, but always on the same addresses. transformers' dynamic cache is a new tensor for every
token; its static one is written in place.

The graph is captured by hand and not by torch.compile: it repeats the very kernels of the step, so answers do
not depend on whether there is one, and capturing takes as long as a step, where compiling takes minutes and a
compiler.
"""

import os
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from kdag.job.errors import UserError

SWITCH = "KDAG_CUDA_GRAPHS"  # set to 0: no graphs; the same answers, slower
# The memory-efficient attention copies a mask in every layer whose length is no multiple of 16.
MULTIPLE = 64
aten = torch.ops.aten
MOVING = {aten.to, aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_}
READING = {aten.is_nonzero, aten.item, aten._local_scalar_dense, aten.equal}


def why_not(model) -> str | None:
    """Why a model's keys and values cannot stay where they are; None if they can."""
    if not model._can_compile_fullgraph:
        return "transformers has no static cache for its family"
    if not plain(model):
        return "its layers remember more than keys and values"
    if spread(model):
        return "its layers lie on several GPUs"
    return None


def plain(model) -> bool:
    """Do its layers remember keys and values, and nothing else?"""
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def joined(caches: list[Cache]) -> Cache:
    """The rows of several dynamic caches of one length in one; the others are given up layer by layer."""
    for first, *others in zip(*(cache.layers for cache in caches), strict=True):
        first.keys = torch.cat([first.keys, *(layer.keys for layer in others)])
        first.values = torch.cat([first.values, *(layer.values for layer in others)])
        for layer in others:
            layer.keys = layer.values = None
    return caches[0]


def spread(model) -> bool:
    """Do its layers lie on several GPUs?"""
    return len({*getattr(model, "hf_device_map", {}).values()}) > 1


def rounded(positions: int) -> int:
    return -(-positions // MULTIPLE) * MULTIPLE


def with_room(cache: Cache, filled: int, length: int, lines: torch.Tensor | None = None) -> Cache:
    """The first `filled` positions of a cache, of these lines of the batch, in one with room for `length`.

    The old cache is given up layer by layer. A layer with a sliding window has room for all positions too:
    only the mask knows of the window, and nothing depends on how full it is but a tensor.
    """
    layers = []
    for old in cache.layers:
        keys, values = old.keys[:, :, :filled], old.values[:, :, :filled]
        if lines is not None:
            keys, values = keys[lines], values[lines]
        new = StaticLayer(max_cache_len=length)
        new.lazy_initialization(keys, values)
        kept = keys.shape[2]  # a window may have dropped the first ones, which it never looks at again
        new.keys[:, :, filled - kept : filled] = keys
        new.values[:, :, filled - kept : filled] = values
        new.cumulative_length.fill_(filled)
        layers.append(new)
        old.keys = old.values = None
    return Cache(layers=layers)


class HostWaits(TorchDispatchMode):
    """Notes the operators for which the host waits for the GPU: `names`. No graph can hold them."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.names = device, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.waits(func, args, result):
            self.names.add(func.overloadpacket.__name__)
        return result

    def waits(self, func, args, result) -> bool:
        kind = func.overloadpacket
        if kind in INDEXING:  # by True and False: how many there are is asked first
            return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if kind in MOVING:
            return any(isinstance(a, torch.Tensor) and a.device != result.device for a in args)
        if kind is aten.lift_fresh:  # torch.tensor(...)
            return result.device == self.device
        return kind in READING or torch.Tag.dynamic_output_shape in func.tags


def graphs_wanted(device: torch.device) -> bool:
    return device.type == "cuda" and os.environ.get(SWITCH) != "0"


class Graphs:
    """CUDA graphs of steps, captured on a stream of their own, for which some libraries set up memory."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, step: Callable[[], None]) -> set[str]:
        """Run `step` as it comes, so that all is set up; the operators in it that no graph can hold."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), HostWaits(self.device) as waits:
            step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return waits.names

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does as `step`, which has been warmed up and does not run here, from now on."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            said = str(error).split("\n")[0]
            raise UserError(
                f"no CUDA graph can be made of a decoding step of this model ({said}). {SWITCH}=0 in the "
                "environment does without, and gives the same answers"
            ) from error
        return graph.replay

"""What computes, and all that a plan assumes of it.

Memory is what nvidia-smi reports; bandwidth and the dense bfloat16 rate with fp32 sums (no sparsity) are the
data sheets'. T4 and V100 have no bfloat16; theirs is the rate of float16.
"""

import re
from dataclasses import dataclass, replace

from kdag.config import precision
from kdag.job.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """memory in GiB, bandwidth in GB/s (10^9), rate in 10^12 operations per second."""

    name: str
    memory: float
    bandwidth: float
    rate: float
    bfloat16: bool = True

    @property
    def on_cpu(self) -> bool:
        return self.name == "cpu"

    def dtype(self, wanted: str) -> str:
        """What `auto` becomes on this device; the device `cpu` is the processor of this machine."""
        if wanted != "auto":
            return wanted
        has = "bfloat16" in precision.cpu().units if self.on_cpu else self.bfloat16
        return precision.automatic(not self.on_cpu, has)


DEVICES = {
    device.name: device
    for device in (
        Device("T4", 15, 320, 65, bfloat16=False),
        Device("V100-32GB", 32, 900, 125, bfloat16=False),
        Device("A10", 22.5, 600, 125),
        Device("L4", 22.5, 300, 121),
        Device("A100-40GB", 40, 1555, 312),
        Device("A100-80GB", 80, 2039, 312),
        Device("L40S", 45, 864, 362),
        Device("RTX-3090", 24, 936, 71),
        Device("RTX-4090", 24, 1008, 165),
        Device("H100", 79.6, 3350, 989),
        Device("H200", 140, 4800, 989),
        Device("B200", 179, 8000, 2250),
        Device("cpu", 32, 20, 0.1),  # assumed: a few cores without matrix units; --memory says what there is
    )
}


def of_name(name: str, memory: float | None = None) -> Device:
    """The device called `name`; memory: GiB that it has instead."""
    return DEVICES[name] if memory is None else replace(DEVICES[name], memory=memory)


def of_device(device: str) -> Device:
    """The device of a manifest's `device`, such as "NVIDIA A100-SXM4-80GB" or "2 x NVIDIA H200"."""
    fitting = [name for name in DEVICES if all(part in device for part in name.split("-"))]
    if not fitting:
        raise UserError(f"{device} is not one of the known devices: {', '.join(DEVICES)}")
    return DEVICES[max(fitting, key=len)]


def of_model(name: str) -> Device | None:
    """The device that a cluster calls `name`, such as h100, a100 or rtx_3090; None for one that is not here.

    Of several that the name may mean, the first.
    """
    wanted = re.sub(r"[^A-Z0-9]+", "-", name.upper())
    for device in DEVICES.values():
        if not device.on_cpu and wanted in (device.name.upper(), device.name.upper().split("-")[0]):
            return device
    try:
        return of_device(wanted)
    except UserError:
        return None


# Assumed, and printed with every plan. Two are fitted to one H100 (bench/gpu.py, docs/performance.md): the
# bandwidth's share and the time of a layer, which is the host's.
EFFICIENCY = 0.35  # of the rate, in matrix products over a thousand tokens and more
BANDWIDTH_SHARE = 0.5  # of the bandwidth, where weights and cached keys are read
LAYER_SECONDS = 0.0025  # at least, per layer of a pass of training or caching: Python launches its kernels
LORA_LAUNCHES = 2  # times as many kernels in a pass with adapters
START_SECONDS = 40  # of a job: Snakemake, imports, CUDA, the check of its inputs
DISK_RATE = 1e9  # bytes per second, for loading, hashing and saving weights
CONTEXT = 0.6e9  # bytes on a GPU: CUDA's context, workspaces of its libraries
GPU_SLACK = 1.1  # of activations and buffers: what the caching allocator cannot hand out again
PROCESS = 0.70 * GIB  # host: measured, Python with torch, transformers, peft and a tokenizer
CUDA_PROCESS = 3e9  # host: the same with CUDA's libraries
CPU_HEAP = 1.5  # host, of activations: malloc keeps freed blocks of unequal sizes; measured
# host, of each matrix product in two-byte numbers: PyTorch and oneDNN keep the code compiled for each shape,
# up to so many; measured on x86-64 with AMX: 1,033 MiB after 2,000 shapes
PRODUCT_BYTES, PRODUCTS_KEPT = 2**20, 1024


def device_bytes(device: Device, fixed: float, transient: float, products: int = 0) -> float:
    """On the device, or in the host's memory where that is a CPU.

    transient: activations; products: different matrix products in two-byte numbers.
    """
    if device.on_cpu:
        compiled = PRODUCT_BYTES * min(products, PRODUCTS_KEPT)
        return PROCESS + fixed + CPU_HEAP * transient + compiled
    return CONTEXT + fixed + GPU_SLACK * transient


def compute_seconds(device: Device, flops: float, layers_passed: float = 0, read: float = 0) -> float:
    """The slowest of arithmetic, reading `read` bytes, and launching the kernels of so many layers."""
    launched = 0 if device.on_cpu else layers_passed * LAYER_SECONDS
    read_seconds = read / (device.bandwidth * 1e9 * BANDWIDTH_SHARE)
    return max(flops / (device.rate * 1e12 * EFFICIENCY), read_seconds, launched)


def assumptions(device: Device) -> list[str]:
    """A line for each number that is assumed, not computed."""
    if device.on_cpu:
        memory = [
            f"memory: a process {PROCESS / GIB:.2f} GiB, activations x {CPU_HEAP} (malloc's heap), compiled "
            f"products up to {PRODUCT_BYTES * PRODUCTS_KEPT / GIB:g} GiB"
        ]
    else:
        memory = [
            f"memory: CUDA {CONTEXT / 1e9:g} GB, activations and buffers x {GPU_SLACK}; host process "
            f"{CUDA_PROCESS / 1e9:g} GB",
            f"a layer takes {LAYER_SECONDS * 1000:g} ms per pass at least, x {LORA_LAUNCHES} with adapters",
        ]
    return [
        f"{device.name}: {device.memory:g} GiB, {device.bandwidth:g} GB/s x {BANDWIDTH_SHARE}, "
        f"{device.rate:g} TFLOP/s x {EFFICIENCY}",
        *memory,
        f"a job starts in {START_SECONDS} s and reads and writes weights at {DISK_RATE / 1e9:g} GB/s",
    ]

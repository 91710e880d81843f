"""Which numbers a job computes in: what `dtype: auto` becomes, from the processor's flags and from no timing.

bfloat16 where the hardware multiplies it; else float16 on a GPU and float32 on a CPU. A CPU that does not
multiply bfloat16 emulates it, and a training step then takes 25 times as long as in float32.
No package is imported at the top: `make doctor` asks before anything is installed.
"""

import logging
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kdag.job.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
# Flags of a processor, and the name of the unit that multiplies numbers of this dtype: x86, then ARM.
UNITS = {
    "bfloat16": {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "bf16": "BF16"},
    "float16": {"amx_fp16": "AMX", "avx512_fp16": "AVX512_FP16", "asimdhp": "FP16"},
}
# oneDNN uses nothing newer than this variable allows, which makes a processor behave like an older one.
LIMITED = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
# One thread of an AMD EPYC with AVX2: forward and backward of a linear layer, 74 against 2.9 GFLOP/s.
EMULATION = 25


@dataclass(frozen=True)
class Processor:
    """What computes. units: {dtype: the unit that multiplies it in hardware}, of those below 32 bits."""

    name: str
    on_gpu: bool
    units: dict[str, str]


def automatic(on_gpu: bool, has_bfloat16: bool) -> str:
    """What `auto` means: the one place that decides."""
    return "bfloat16" if has_bfloat16 else "float16" if on_gpu else "float32"


def cpu(text: str | None = None, limit: str | None = None) -> Processor:
    """This machine's CPU. text: of /proc/cpuinfo; limit: of ONEDNN_MAX_CPU_ISA."""
    text = described() if text is None else text
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "") if limit is None else limit
    lines = [line.partition(":") for line in text.splitlines()]
    found = {key.strip().lower(): value.strip() for key, _, value in reversed(lines)}
    flags = set(f"{found.get('flags', '')} {found.get('features', '')}".lower().split())
    if limit.upper() in LIMITED:
        flags = set()
    units = {
        dtype: next(unit for flag, unit in names.items() if flag in flags)
        for dtype, names in UNITS.items()
        if flags & names.keys()
    }
    name = found.get("model name") or platform.processor() or platform.machine()
    return Processor(" ".join(name.split()), False, units)


def described() -> str:
    """/proc/cpuinfo, or what macOS says, in its form."""
    if CPUINFO.is_file():
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    asked = ("sysctl", "-n", "machdep.cpu.brand_string", "hw.optional.arm.FEAT_BF16")
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"model name: {said[0]}\nFeatures: {'bf16' if '1' in said[1:2] else ''}\n"


def here() -> Processor:
    """The GPU of this process, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return cpu()
    units = {"float16": "GPU"}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        units["bfloat16"] = "GPU"
    return Processor(torch.cuda.get_device_name(), True, units)


def emulated(dtype: str, processor: Processor) -> bool:
    """Does this processor only pretend to multiply such numbers?"""
    return dtype in UNITS and not processor.on_gpu and dtype not in processor.units


def slow(dtype: str, key: str) -> str:
    """What is said of a dtype that a CPU emulates. key: where the configuration names it."""
    return (
        f"{key}: {dtype}: this processor emulates it: training took {EMULATION} times as long as in float32 "
        f"where it was measured. {key}: auto takes float32 here"
    )


def settle(dtype: str, key: str, processor: Processor | None = None) -> str:
    """The dtype that a job computes in, and a log line about it. key: where the configuration names it.

    UserError where a GPU cannot compute in it.
    """
    processor = processor or here()
    if dtype == "auto":
        chosen = automatic(processor.on_gpu, "bfloat16" in processor.units)
        unit = processor.units.get("bfloat16", "no unit for bfloat16")
        logging.info("%s: auto is %s on %s (%s)", key, chosen, processor.name, unit)
        return chosen
    if dtype == "bfloat16" and processor.on_gpu and dtype not in processor.units:
        raise UserError(f"{key}: this GPU cannot compute in bfloat16; take float16, or auto")
    if emulated(dtype, processor):
        logging.warning(slow(dtype, key))
    return dtype

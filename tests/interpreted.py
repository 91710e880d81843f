"""A stage as on a GPU with Unsloth, on a CPU: Triton kernels interpreted, and a device that is not there.

python tests/interpreted.py STAGE ARGUMENTS...   for the scripts that train: sft, distill
Unsloth is imported only where `backends` would; everything else sees that there is no GPU.
"""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

# Read when triton and unsloth are imported. Compiling is for GPUs.
SETTINGS = {"TRITON_INTERPRET": "1", "UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1"}


def pretend() -> None:
    """What Unsloth asks torch about a GPU, and where it would put tables on one."""
    import torch

    GiB = 2**30
    properties = SimpleNamespace(
        name="none", total_memory=16 * GiB, major=8, minor=0, multi_processor_count=1, gcnArchName=""
    )
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.mem_get_info = lambda *_: (16 * GiB, 16 * GiB)

    from kdag.training import backends

    start, why_not = backends.start, backends.why_not_unsloth

    def started(*arguments, **further):
        chosen = start(*arguments, **further)
        if chosen == "unsloth":
            tables_on_cpu()
        return chosen

    def asked(*arguments, **further):
        with mock.patch("torch.cuda.is_available", return_value=True):
            return why_not(*arguments, **further)

    backends.start, backends.why_not_unsloth = started, asked


def tables_on_cpu() -> None:
    """Sines and cosines of positions, of which Unsloth keeps a table per GPU: one, on the CPU."""
    import torch
    from unsloth.models import llama

    def build(self, _):
        device = torch.device("cpu", 0)
        self._set_cos_sin_cache(self.current_rope_size, device, self._rope_cache_dtype)
        self._rope_cache_versions[0] = self._rope_cache_version

    per_device = llama.LlamaRotaryEmbedding
    ensure = per_device._ensure_rope_cache
    llama.DEVICE_COUNT, llama.get_current_device = 1, lambda: "cpu"
    per_device._build_rope_cache = build
    per_device._ensure_rope_cache = lambda self, _: ensure(self, 0)


def main(stage, *arguments):
    os.environ.update(SETTINGS)
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))
    from kdag.job import cli

    pretend()
    script = importlib.import_module(stage)
    sys.argv = [f"{stage}.py", *arguments]
    cli.run(script.main, script.arguments())


if __name__ == "__main__":
    main(*sys.argv[1:])

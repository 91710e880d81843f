"""Kernels that the default experiment launches in a step of training and of answers, counted on a CPU.

    python bench/launches.py --json build/launches.json
    python bench/launches.py --quick

A GPU that gets small kernels waits for their launches, 6 to 10 microseconds each: 32 rows one by one take
far longer than their arithmetic. A kernel is a call of a torch operator that is no view, seen by a
TorchDispatchMode during the forward and backward passes of one optimiser step of kdag's own training; AdamW
itself, a few fused kernels on a GPU, is not counted. Depth, LoRA, dtype, autocast, checkpointing and row
lengths are those of the default experiment; only the widths are small, which changes no count but that of the
loss, whose chunks are fewer.

A step of answers reads one token per row. With the dynamic cache a GPU is told to launch every kernel of it;
with the static one, to repeat a CUDA graph of them, as long as neither the rows nor the room change.
"""

import os
import tempfile
from pathlib import Path

import common

TARGETS = {"kernels per optimiser step": ("at most", 30_000)}
ROWS = 32
NARROW = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}


class Teacher:
    """Random states in the place of a cache."""

    keeps_rows, logits, cap = True, None, None

    def __init__(self, frame, vocabulary: int, width: int):
        import torch

        learned = [int(mask.sum()) for mask in frame["response_mask"]]
        self.states = [torch.randn(count, width).bfloat16() for count in learned]
        self.head = torch.randn(vocabulary, width).bfloat16()

    def row(self, index: int) -> dict:
        return {"hidden": self.states[index]}

    def known(self, batch: dict, learn):
        return batch["teacher"]["hidden"]


def watch():
    """A dispatch mode whose `total` is the number of kernels that ran in it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Kernels(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            returned = [value.alias_info for value in func._schema.returns]
            self.total += not any(alias is not None and not alias.is_write for alias in returned)
            return func(*args, **(kwargs or {}))

    return Kernels()


def counted(layers: int, rows: int, **changes) -> tuple[int, float]:
    """(kernels of a step, its loss) of the default distillation in passes of so many tokens."""
    import gpu_shapes

    from kdag.training import train, trainer

    shapes = gpu_shapes.SHAPES["qwen2.5"] | {"vocabulary": 500}
    shape = shapes["student"] | NARROW | {"vocab_size": 512, "num_hidden_layers": layers}
    frame = gpu_shapes.rows(shapes, rows)
    settings = gpu_shapes.settings("distillation", gradient_accumulation=rows, seed=0, **changes)
    kernels = watch()
    real = trainer.DistillTrainer.training_step

    def watched(*args, **kwargs):
        with kernels:
            return real(*args, **kwargs)

    trainer.DistillTrainer.training_step = watched
    try:
        with tempfile.TemporaryDirectory() as work:
            _, log = train.train(
                gpu_shapes.model(shape),
                frame,
                settings=settings,
                objective=gpu_shapes.objective(),
                teacher=Teacher(frame, 500, 64),
                vocabulary=500,
                work=Path(work),
            )
    finally:
        trainer.DistillTrainer.training_step = real
    assert len(log) == 1, "one optimiser step"
    return kernels.total, log[0]["loss"]


def decoded(shape: dict, layers: int | None, static: bool) -> int:
    """Kernels of a step of answers to prompts of different lengths, by a model of so many layers."""
    import gpu_shapes
    import torch

    from kdag.models import batch, decoding
    from kdag.models.static import SWITCH

    os.environ[SWITCH] = "0"  # on a GPU too, each kernel is to be seen
    layers = layers or shape["num_hidden_layers"]
    network = gpu_shapes.model(shape | NARROW | {"vocab_size": 512, "num_hidden_layers": layers})
    decoding.use_grouped_attention(network)
    prompts = [[5] * 9, [6] * 4]
    given = {"vocabulary": 500, "max_new_tokens": 8, "repetition_penalty": 1.0, "static": static}
    with torch.no_grad():
        answering = batch.Batch(network, prompts, **given)
        for _ in range(2):  # reads the prompts; is the first in a static cache
            answering.step()
        with watch() as kernels:
            answering.step()
    return kernels.total


def main():
    args = common.start(common.parser(__doc__))
    figures = common.Figures(TARGETS)
    layers, rows = (4, 4) if args.quick else (36, ROWS)
    losses = {}
    for case, tokens in {"a row at a time": 1, "tokens_per_pass 8192": 8192}.items():
        kernels, losses[case] = counted(layers, rows, tokens_per_pass=tokens)
        name = "kernels per optimiser step" if tokens > 1 else "kernels per step, before"
        figures.one(case, name, kernels)
    without, _ = counted(layers, rows, tokens_per_pass=8192, gradient_checkpointing=False)
    figures.one("without checkpointing", "kernels per optimiser step", without)
    one, other = losses.values()
    figures.one("both", "difference of the losses, relative", abs(one - other) / one)
    from gpu_shapes import SHAPES

    for name in ("teacher", "student"):
        shape = SHAPES["qwen2.5"][name]
        for cache in ("dynamic", "static"):
            kernels = decoded(shape, layers if args.quick else None, cache == "static")
            figures.one(f"{name}, {cache} cache", "kernels per step of answers", kernels)
    figures.write(args.json)


if __name__ == "__main__":
    main()

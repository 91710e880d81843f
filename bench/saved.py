"""What a layer keeps for the backward pass per token: the factors of planning/needs.py, measured on a CPU.

    python bench/saved.py --json build/saved.json      a minute or two
    python bench/saved.py --quick                      without the layers of Qwen2.5-3B and 7B

A llama with random bfloat16 weights, prepared for training as a stage prepares it (train.prepare: adapters by
backends.with_adapters, or every weight in float32), takes rows under bfloat16 autocast. What autograd saves
(torch.autograd.graph.saved_tensors_hooks) and what checkpointing holds is counted by its storage, weights
apart. A layer's is the difference between three layers and two, a token's that between two numbers of rows:
what does not grow with both is no part of it.
Over several shapes they are A x width + B x kv + C x mlp bytes for width = max(hidden, heads x head size),
kv = key-value heads x head size, by least squares; what a rank and the norms' sums add is in `rest`.
  lora, full       tuning, gradient checkpointing off
  checkpointed     the same with it: what is kept of a layer until its turn comes
  packed           on a CPU, rows one behind the other (kdag/models/packed.py)
The last two lines are layers in the true shapes of Qwen2.5-3B and 7B, against what the factors say.
"""

import gc

import common

# hidden, heads, key-value heads, head size, mlp: no two quantities go together.
SHAPES = (
    (64, 4, 4, 16, 128),
    (64, 4, 2, 16, 256),
    (128, 4, 1, 32, 192),
    (128, 8, 8, 16, 640),
    (192, 6, 2, 32, 320),
    (256, 4, 2, 64, 512),
)
TRUE = {"Qwen2.5-3B": (2048, 16, 2, 128, 11008), "Qwen2.5-7B": (3584, 28, 4, 128, 18944)}
ROW = 64  # tokens
KINDS = {  # tuning, with gradient checkpointing, packed
    "lora": ("lora", False, False),
    "lora, packed": ("lora", False, True),
    "lora, checkpointed": ("lora", True, False),
    "full": ("full", False, False),
    "full, packed": ("full", False, True),
    "full, checkpointed": ("full", True, False),
}


def prepared(shape, layers, tuning, again, packed):
    """A model of this shape as training.train makes it ready."""
    import gpu_shapes
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from kdag.models import packed as packing
    from kdag.training import train

    hidden, heads, kv, size, mlp = shape
    made = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=size,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        vocab_size=64,
    )
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16, attn_implementation="sdpa")
    assert not packed or packing.turn_on(model)
    settings = gpu_shapes.settings("distillation", tuning=tuning, gradient_checkpointing=again)
    return train.prepare(model, settings, "transformers").train()


def storages(tensors) -> dict:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def alive() -> dict:
    """The storage of every tensor that Python knows."""
    import torch

    return storages(t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter))


def held(model, rows) -> int:
    """Bytes that are there after a forward pass of so many rows and were not before, weights apart."""
    import torch

    from kdag.models import head

    ids = torch.arange(ROW * rows).remainder(64).reshape(rows, ROW)
    saved = []
    gc.collect()
    before = alive()

    def keep(tensor):
        saved.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        out = head.hidden_states(model, ids, torch.ones_like(ids))
    found = {place: size for place, size in (alive() | storages(saved)).items() if place not in before}
    assert out.requires_grad
    return sum(found.values())


def per_token(shape, *kind) -> float:
    """Bytes of one layer for one token."""
    few, many = 2, 4
    of_layers = []
    for layers in (2, 3):
        model = prepared(shape, layers, *kind)
        of_layers.append([held(model, rows) for rows in (few, many)])
    (a, b), (c, d) = of_layers
    return ((d - c) - (b - a)) / ((many - few) * ROW)


def factors(measured: dict) -> tuple[dict, float]:
    """({width, kv, mlp, rest: factor}, the largest relative error) of {shape: bytes}."""
    import numpy as np

    rows = [(max(hidden, heads * size), kv * size, mlp, 1) for hidden, heads, kv, size, mlp in measured]
    bytes_ = np.array(list(measured.values()))
    found, *_ = np.linalg.lstsq(np.array(rows, dtype=float), bytes_, rcond=None)
    off = np.abs(np.array(rows) @ found / bytes_ - 1).max()
    return dict(zip(("width", "kv", "mlp", "rest"), map(float, found), strict=True)), float(off)


def main():
    args = common.start(common.parser(__doc__))
    figures = common.Figures({})
    by_kind = {}
    per_token(SHAPES[0], *KINDS["lora"])
    gc.freeze()  # `alive` need not look at what the imports made
    for kind, chosen in KINDS.items():
        by_kind[kind], off = factors({shape: per_token(shape, *chosen) for shape in SHAPES})
        for name, value in by_kind[kind].items():
            figures.one(kind, f"bytes per token and layer, x {name}", value)
        figures.one(kind, "largest error of the fit", off)
    for name, shape in {} if args.quick else TRUE.items():
        hidden, heads, kv, size, mlp = shape
        measured, made = per_token(shape, *KINDS["lora"]), by_kind["lora"]
        said = made["width"] * hidden + made["kv"] * kv * size + made["mlp"] * mlp + made["rest"]
        figures.one(name, "lora, bytes per token and layer", measured)
        figures.one(name, "the same by the factors / measured", said / measured)
    figures.write(args.json)


if __name__ == "__main__":
    main()

"""A student cut from its teacher."""

import torch

from kdag.job.errors import UserError


def keep_layers(model, count: int) -> None:
    """Keep `count` evenly spaced transformer layers, the first and the last among them. In place."""
    layers = model.base_model.layers
    total = len(layers)
    if not 2 <= count <= total:
        raise UserError(f"student.derive.keep_layers is {count}; the teacher has {total} layers")
    kept = [round(i * (total - 1) / (count - 1)) for i in range(count)]
    model.base_model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for position, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]

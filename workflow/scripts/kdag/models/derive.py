"""A student cut from its teacher."""

import torch


def keep_layers(model, kept: list[int]) -> None:
    """Keep these transformer layers, counted from 0, in their order. In place."""
    layers = model.base_model.layers
    model.base_model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for position, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]

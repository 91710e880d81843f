"""A model in training as the model that it would be saved as, for a while.

Adapters next to their layers are two more products for each layer and token, and float32 weights are cast
anew for each token. Copies in one dtype, adapters merged, answer as fast as a finished model does.
"""

import contextlib

import torch

from kdag.models import head


@contextlib.contextmanager
def merged(model, dtype: torch.dtype):
    """While this is open, every weight is a copy in `dtype` with its adapters in it; afterwards the weights
    are the very tensors that they were. Layers that hold their weights in fewer bits keep adapters apart.

    Takes the memory of the layers that have adapters, or of the whole model if every weight is trained.
    """
    layers = adapted(model)
    changed = [layer.get_base_layer().weight for layer in layers]
    changed += [weight for weight in head.base_model(model).parameters() if weight.dtype == torch.float32]
    before = {weight: weight.data for weight in changed}
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                weight.data = weight.data.clone()
                layer.merge()
        for weight in before:
            weight.data = weight.data.to(dtype)
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for weight, data in before.items():
            weight.data = data


def adapted(model) -> list:
    """The layers with an adapter that can be merged."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer  # takes half a second, which answering a finished model needs not

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [layer for layer in layers if layer.get_base_layer().weight.dtype.is_floating_point]

"""A student cut from its teacher."""

import torch

from kdag.job.errors import UserError
from kdag.models.same import PROBE, distance, same

# Lists of layers' numbers, by the names that configurations give them; the others have an entry per layer.
NUMBERS = ("mlp_only_layers", "full_attn_idxs", "global_attn_every_n_layers_idxs")


def keep_layers(model, kept: list[int]) -> None:
    """Keep these transformer layers, counted from 0, in their order. In place.

    UserError for a network that is no stack of layers, or whose layers are not told one by one.
    """
    body = model.base_model
    layers = getattr(body, "layers", None)
    kind = model.config.model_type
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"a {kind} cannot be cut: it has no list of layers; take a student of its own")
    config, total = model.config.get_text_config(), len(layers)
    dense = dense_layers(config, total)
    body.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for position, layer in enumerate(body.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    for name, value in list(vars(config).items()):
        if name in NUMBERS and isinstance(value, list):
            setattr(config, name, [kept.index(number) for number in value if number in kept])
        elif isinstance(value, list | tuple) and len(value) == total and name not in ("architectures",):
            setattr(config, name, type(value)(value[i] for i in kept))
    if dense is not None:
        config.mlp_only_layers = [kept.index(number) for number in dense if number in kept]
        config.decoder_sparse_step = 1
    if getattr(config, "first_k_dense_replace", None):
        config.first_k_dense_replace = sum(number < config.first_k_dense_replace for number in kept)
    config.num_hidden_layers = len(kept)


def dense_layers(config, total: int) -> list[int] | None:
    """Of a mixture of experts whose layers are told by a rule: those without experts. None: no such rule."""
    step = getattr(config, "decoder_sparse_step", None)
    if not isinstance(step, int):
        return None
    only = getattr(config, "mlp_only_layers", None) or []
    return [number for number in range(total) if number in only or (number + 1) % step]


@torch.no_grad()
def computed(model) -> tuple[torch.Tensor, list[dict]]:
    """What a network computes: the logits of a few tokens, and what each layer says that it is.

    Few tokens do not show a window of thousands; the layers' own words do.
    """
    ids = torch.arange(PROBE, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    simple = (bool, int, float, str, type(None))
    said = [
        {
            f"{path}.{name}": value
            for path, module in layer.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, simple) and name != "layer_idx"
        }
        for layer in model.base_model.layers
    ]
    return model(input_ids=ids, use_cache=False).logits, said


def check_same(cut, saved, kind: str) -> None:
    """UserError where the network on disk does not compute what the cut one did; both as of `computed`."""
    if not same(cut[0], saved[0]) or cut[1] != saved[1]:
        apart = f"its logits are off by {distance(cut[0], saved[0]):.1%}"
        raise UserError(
            f"a {kind} cannot be cut: the student on disk is not the network that was cut ({apart}); its "
            "config.json tells layers by a rule that is not known here; take a student of its own"
        )

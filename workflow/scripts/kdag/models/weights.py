"""How many weights a token meets in a model."""


def weights_of(model) -> tuple[int, int]:
    """(weights that every token is multiplied with, those of them that are trained)."""
    matrices = {
        id(module.weight): module.weight
        for module in model.modules()
        if getattr(module, "weight", None) is not None
        and module.weight.ndim == 2
        and "embedding" not in type(module).__name__.lower()
    }
    return (
        sum(weight.numel() for weight in matrices.values()),
        sum(weight.numel() for weight in matrices.values() if weight.requires_grad),
    )

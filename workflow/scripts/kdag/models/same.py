"""Do two networks compute the same, up to the rounding of their arithmetic?"""

import torch

PROBE = 16  # tokens that two networks must agree on
# Largest `distance` of a network from itself, computed in another way. In bfloat16 processors differ: 0.03 to
# 0.08 was measured on networks of 27 and 30 layers, 0.2 and more where one matrix of one layer is missing.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two networks agree. one, other: their logits or states [..., n], as rounded as they were."""
    allowed = max(TOLERANCE[dtype] for dtype in (one.dtype, other.dtype))
    return distance(one, other) <= allowed  # which NaN is not


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |one|, each without its mean over the last dimension, which no softmax sees.

    A single logit may be far off by chance, all of them together are not. NaN where either is not finite.
    """
    one, other = (each.double() - each.double().mean(dim=-1, keepdim=True) for each in (one, other))
    return ((one - other).norm() / one.norm().clamp_min(torch.finfo(torch.float32).tiny)).item()

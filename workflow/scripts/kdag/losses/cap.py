"""A soft cap of logits, c tanh(z / c), as Gemma 2 has it (arXiv:2408.00118)."""

import torch


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """The logits under a cap c, in place; as they are, without one."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def slope(capped_logits: torch.Tensor, cap: float, out: torch.Tensor) -> torch.Tensor:
    """The derivative of capped logits with respect to the logits, 1 - (y / c)^2, into `out`."""
    return torch.mul(capped_logits, 1 / cap, out=out).square_().neg_().add_(1)

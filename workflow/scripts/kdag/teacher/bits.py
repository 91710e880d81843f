"""Whole numbers of any width in bits as bytes, as DistillKit packs them (distillkit/compression/bitpack.py).

The highest bit of a number comes first, a number follows the one before it without a gap, and zeros fill the
last byte.
"""

import torch


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers [..., n] in [0, 2^bits) -> uint8 [..., ceil(n bits / 8)]."""
    stream = (numbers.unsqueeze(-1) >> places(bits, numbers)) & 1
    stream = stream.flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (stream << places(8, numbers)).sum(-1).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 [..., bytes] -> the first `count` integers int64 [..., count]. ValueError if it holds fewer."""
    if packed.shape[-1] * 8 < count * bits:
        raise ValueError(f"{packed.shape[-1]} bytes cannot hold {count} numbers of {bits} bits")
    stream = (packed.long().unsqueeze(-1) >> places(8, packed)) & 1
    stream = stream.flatten(-2)[..., : count * bits].unflatten(-1, (count, bits))
    return (stream << places(bits, packed)).sum(-1)


def places(bits: int, like: torch.Tensor) -> torch.Tensor:
    """How far each bit of a number is from its lowest, in the order in which they are written."""
    return torch.arange(bits - 1, -1, -1, device=like.device)

"""The three products of hidden states with a head: logits, and their gradient brought back to either.

A vocabulary is often odd (151,665). Tensor cores then leave their fast path, also where the rows of logits
begin at aligned places: such a product took 7 times as long on an H100. So on a GPU the last tokens, fewer
than MULTIPLE, are a product of their own.
"""

import torch

MULTIPLE = 64


def parts(vocabulary: int, device: torch.device) -> list[slice]:
    """The tokens of a head, in ranges that are multiplied one after another."""
    whole = vocabulary - vocabulary % MULTIPLE
    if device.type == "cpu" or whole in (0, vocabulary):
        return [slice(0, vocabulary)]
    return [slice(0, whole), slice(whole, vocabulary)]


def aligned(shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor whose rows begin at multiples of MULTIPLE elements."""
    *outer, last = shape
    return like.new_empty((*outer, -(-last // MULTIPLE) * MULTIPLE), dtype=dtype)[..., :last]


def to_logits(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """hidden [n, d] and head [V, d] give logits [n, V], in `out` if it is given."""
    if out is None:
        if head.device.type == "cpu":
            return hidden @ head.t()
        out = aligned((len(hidden), len(head)), hidden, hidden.dtype)
    for tokens in parts(len(head), head.device):
        torch.mm(hidden, head[tokens].t(), out=out[:, tokens])
    return out


def to_hidden(grad: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The logits' gradient [n, V] as that of the hidden states, in `out` [n, d]."""
    first, *rest = parts(len(head), head.device)
    torch.mm(grad[:, first], head[first], out=out)
    for tokens in rest:
        out.addmm_(grad[:, tokens], head[tokens])
    return out


def to_head(grad: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The logits' gradient [n, V] as that of the head, in `out` [V, d]."""
    for tokens in parts(len(out), out.device):
        torch.mm(grad[:, tokens].t(), hidden, out=out[tokens])
    return out

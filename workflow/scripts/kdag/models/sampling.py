"""Tokens drawn from a model's distribution, a stream of random numbers for each row.

What a row draws depends on its own seed and its own distribution, not on the rows next to it or on torch's
random state.
"""

import numpy as np
import torch


class Sampler:
    """Draws from softmax(logits / temperature), cut to the likeliest tokens that have the mass top_p.

    Temperature 0 takes the likeliest token. `entropy` [rows]: of the last distributions, in nats, at the
    temperature (at 1 where it is 0) and before the cut. State is changed in place, as a CUDA graph needs it.
    """

    def __init__(self, seeds: list[tuple[int, ...]], cap: int, temperature: float, top_p: float, device):
        """seeds: of each row; cap: tokens that a row may draw."""
        draws = np.stack([np.random.default_rng(list(seed)).random(cap) for seed in seeds])
        self.draws = torch.from_numpy(draws).to(device)  # [rows, cap], each in [0, 1)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.entropy = torch.zeros(len(seeds), device=device)
        self.temperature, self.top_p = temperature, top_p

    def keep(self, lines: torch.Tensor) -> None:
        """Only these rows are left."""
        self.draws, self.entropy = self.draws[lines], self.entropy[lines]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each row [rows, 1]. logits [rows, V]."""
        logp = torch.log_softmax(logits.float() / (self.temperature or 1), -1)
        p = logp.exp()
        self.entropy.copy_(-(p * logp).sum(-1))
        if self.temperature == 0:
            return logits.max(-1, keepdim=True).indices
        order = None
        if self.top_p < 1:
            p, order = torch.sort(p, dim=-1, descending=True, stable=True)
            p = p.masked_fill(p.cumsum(-1) - p >= self.top_p, 0)
        mass = p.double().cumsum(-1)
        target = self.draws.index_select(1, self.at) * mass[:, -1:]
        self.at.add_(1)
        place = (mass <= target).sum(-1, keepdim=True)
        return place if order is None else order.gather(1, place)

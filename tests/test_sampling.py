"""Tokens that are drawn: the right distribution, the cut of top_p, no influence of the rows next to them."""

import math

import numpy as np
import pytest
import torch

from kdag.models.sampling import Sampler

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])


def drawn(temperature, top_p, count=20_000):
    sampler = Sampler([(0, row) for row in range(count)], 1, temperature, top_p, "cpu")
    return sampler(LOGITS.expand(count, -1))[:, 0].numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    expected = torch.softmax(LOGITS[0] / temperature, 0).numpy()
    found = np.bincount(drawn(temperature, 1.0), minlength=5) / 20_000
    assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-9)


def test_top_p_keeps_the_likeliest_tokens_that_reach_the_mass():
    """0.644, 0.237, 0.087, 0.032: 0.8 takes the first two, and they share what is left of the others."""
    found = np.bincount(drawn(1.0, 0.8), minlength=5) / 20_000
    assert found[2:].sum() == 0
    assert found[0] == pytest.approx(1 / (1 + math.exp(-1)), abs=0.015)
    assert set(drawn(1.0, 0.6, count=50)) == {0}


def test_temperature_zero_is_greedy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 50, generator=generator)
    sampler = Sampler([(0, row) for row in range(8)], 3, 0, 1.0, "cpu")
    for _ in range(3):
        assert torch.equal(sampler(logits), logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_draws_the_same_whatever_stands_next_to_it(top_p):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=generator)
    seeds = [(7, row) for row in range(4)]
    together, left = Sampler(seeds, 6, 1.0, top_p, "cpu"), Sampler(seeds, 6, 1.0, top_p, "cpu")
    said = torch.cat([together(logits) for _ in range(6)], 1)
    first = torch.cat([left(logits) for _ in range(3)], 1)
    left.keep(torch.tensor([1, 3]))
    rest = torch.cat([left(logits[[1, 3]]) for _ in range(3)], 1)
    assert torch.equal(said[[1, 3]], torch.cat([first[[1, 3]], rest], 1))
    alone = Sampler([seeds[2]], 6, 1.0, top_p, "cpu")
    assert torch.equal(said[2:3], torch.cat([alone(logits[2:3]) for _ in range(6)], 1))
    assert not torch.equal(said[0], said[1])


def test_entropy_is_that_of_the_distribution_in_nats():
    sampler = Sampler([(0,)], 1, 2.0, 0.5, "cpu")
    sampler(LOGITS)
    p = torch.softmax(LOGITS[0] / 2, 0)
    assert sampler.entropy.item() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)

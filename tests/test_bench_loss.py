"""The peers of bench/loss.py: TRL's and Liger's losses are ours, and TRL's kernels on a CPU are its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TILES = {"VOCAB_CHUNK_SIZE": 16, "TOKEN_CHUNK_SIZE": 4, "_BLOCK_SIZE": 8}  # several of each for tiny inputs
TRL_BY_TRITON = """
import sys
import torch
import peer_losses
from trl.kernels import chunked_divergence as module

for name, size in {tiles}.items():
    setattr(module, name, size)
inputs = torch.load(sys.argv[1])
inputs["student_hidden"].requires_grad_()

def results():
    made = []
    for beta in peer_losses.BETAS.values():
        inputs["student_hidden"].grad = None
        loss = peer_losses.trl_chunked(inputs, beta, 2.0).detach()
        made += [loss, inputs["student_hidden"].grad]
    return made

found = peer_losses.chunked_divergence
peer_losses.chunked_divergence = lambda: module.ChunkedDivergenceFunction
by_triton = results()
assert not isinstance(module._stats_kernel, peer_losses.Launched)
peer_losses.chunked_divergence = found
by_torch = results()
assert isinstance(module._stats_kernel, peer_losses.Launched)
for one, other in zip(by_triton, by_torch, strict=True):
    assert one.abs().max() > 0
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
"""


@pytest.fixture(scope="module")
def bench():
    """bench/loss.py and bench/peer_losses.py."""
    sys.path.insert(0, str(ROOT / "bench"))
    import loss
    import peer_losses

    yield loss, peer_losses
    sys.path.remove(str(ROOT / "bench"))


def tiny_inputs():
    torch.manual_seed(0)
    return {
        "student_hidden": torch.randn(7, 5, requires_grad=True),
        "student_head": torch.randn(37, 5),
        "teacher_hidden": torch.randn(7, 6),
        "teacher_head": torch.randn(37, 6),
        "targets": torch.randint(37, (7,)),
    }


@pytest.mark.parametrize("divergence", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize("peer", ["trl-chunked", "trl-dense", "liger"])
def test_every_peer_computes_what_it_is_compared_with(bench, monkeypatch, peer, divergence):
    pytest.importorskip({"trl-chunked": "trl.kernels.chunked_divergence"}.get(peer, "liger_kernel"))
    loss, peer_losses = bench
    if peer == "trl-chunked":
        from trl.kernels import chunked_divergence

        for name, size in TILES.items():
            monkeypatch.setattr(chunked_divergence, name, size)
    name = f"{peer}-{divergence}"
    far = peer_losses.apart(loss.METHODS[loss.PEERS[name]], loss.METHODS[name], tiny_inputs())
    assert far < peer_losses.SAME
    other = "rkl" if divergence == "fkl" else "fkl"
    assert peer_losses.apart(loss.METHODS[f"kdag-{other}-kl"], loss.METHODS[name], tiny_inputs()) > 0.01


def test_trl_s_kernels_by_torch_are_those_of_triton(tmp_path):
    pytest.importorskip("trl.kernels.chunked_divergence")
    torch.save({name: tensor.detach() for name, tensor in tiny_inputs().items()}, tmp_path / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", TRL_BY_TRITON.format(tiles=TILES), tmp_path / "inputs.pt"],
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "bench"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]

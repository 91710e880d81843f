"""The losses of TRL and Liger on bench/loss.py's inputs: forward KL, reverse KL and JSD, no cross-entropy.

TRL has two. `GKDTrainer.generalized_jsd_loss` takes dense logits (gpu_run.gkd_loss).
`ChunkedDivergenceFunction` of trl/kernels/chunked_divergence.py (TRL 1.15 and 1.16; what its
DistillationTrainer minimises) takes hidden states and heads, as ours does, and works tile by tile: matrix
products, and three Triton kernels between them. Triton computes on GPUs. On a CPU these three kernels are the
functions below, the same arithmetic on the same tiles by torch; everything else, all products above all, is
TRL's own code. tests/test_bench_loss.py compares them with TRL's kernels in Triton's interpreter.
"""

import functools
import math

BETAS = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}  # by which TRL and Liger call our divergences
BLOCK = 2**17  # elements that are worked on at a time, so that they stay in the cache
SAME = 1e-5  # relative: how far a peer's loss and gradient may be from ours in float32


def trl_chunked(inputs, beta, temperature):
    values, _ = chunked_divergence().apply(
        inputs["student_hidden"],
        inputs["student_head"],
        None,
        inputs["teacher_hidden"],
        inputs["teacher_head"],
        None,
        beta,
        temperature,
    )
    loss = values.mean()
    loss.backward()
    return loss


def trl_dense(inputs, beta, temperature):
    from gpu_run import gkd_loss

    student = inputs["student_hidden"] @ inputs["student_head"].t()
    teacher = inputs["teacher_hidden"] @ inputs["teacher_head"].t()
    labels = inputs["targets"][None]
    loss = gkd_loss()[0](student[None], teacher[None], labels, beta=beta, temperature=temperature)
    loss.backward()
    return loss


def liger(inputs, beta, temperature, hard=0.0, soft=1.0, compiled=False):
    """Always with the head's gradient. hard: the weight of cross-entropy; soft: that of the divergence."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=hard, weight_soft_loss=soft, beta=beta, temperature=temperature, compiled=compiled
    )
    names = "student_hidden", "student_head", "teacher_hidden", "teacher_head", "targets"
    loss = function(*(inputs[name] for name in names))
    loss.backward()
    return loss


PEERS = {"trl-chunked": trl_chunked, "trl-dense": trl_dense, "liger": liger}


def methods(temperature):
    """{peer-divergence: function of the inputs}."""
    return {
        f"{peer}-{name}": functools.partial(function, beta=beta, temperature=temperature)
        for name, beta in BETAS.items()
        for peer, function in PEERS.items()
    }


def apart(ours, theirs, inputs) -> float:
    """How far two methods' losses and gradients are apart; the gradient next to its largest element."""
    found = []
    for method in (ours, theirs):
        inputs["student_hidden"].grad = None
        loss = method(inputs).detach()
        found.append((loss, inputs["student_hidden"].grad))
    (loss, grad), (other, other_grad) = found
    return max(
        (abs(loss - other) / abs(loss)).item(), ((grad - other_grad).abs().max() / grad.abs().max()).item()
    )


@functools.cache
def chunked_divergence():
    """TRL's function. ImportError where TRL or Triton is not installed, or TRL is older than 1.15."""
    import torch
    from trl.kernels import chunked_divergence as module

    if not torch.cuda.is_available():
        for name, function in (("stats", stats), ("jsd", jsd), ("backward", backward)):
            setattr(module, f"_{name}_kernel", Launched(function))
    return module.ChunkedDivergenceFunction


class Launched:
    """A function in the place of a Triton kernel: kernel[grid](...)."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return self.function


def blocks(tile):
    """Slices of a tile's rows, BLOCK elements each."""
    rows = max(1, BLOCK // tile.shape[1])
    return [slice(start, start + rows) for start in range(0, len(tile), rows)]


def scaled(tile, inv_t):
    return tile.float() * inv_t


def log_mixture(log_ps, log_pt, beta):
    import torch

    return torch.logaddexp(log_ps + math.log(1 - beta), log_pt + math.log(beta))


def stats(*arguments, inv_t, **_):
    """Fold a tile of both models' logits into the running sums; without scales and caps, which are 1 here."""
    import torch

    s, _, t, _, s_max, s_sum, s_x_sum, t_max, t_sum, t_gap, s_gap, _ = arguments
    for rows in blocks(s):
        zs, zt = scaled(s[rows], inv_t), scaled(t[rows], inv_t)
        gap = zt - zs
        for z, peak, total, weighted, sign in ((zs, s_max, s_sum, s_gap, -1), (zt, t_max, t_sum, t_gap, 1)):
            new = torch.maximum(peak[rows], z.amax(1))
            rescale = (peak[rows] - new).exp_()
            e = (z - new[:, None]).exp_()
            total[rows] = total[rows] * rescale + e.sum(1)
            if z is zs:
                s_x_sum[rows] = s_x_sum[rows] * rescale + (e * zs).sum(1)
            weighted[rows] = weighted[rows] * rescale + sign * e.mul_(gap).sum(1)
            peak[rows] = new


def jsd(*arguments, inv_t, **_):
    """Second pass of the JSD, which needs both normalisers."""
    s, _, t, _, s_log_z, t_log_z, value, kl_student, _, beta = arguments
    for rows in blocks(s):
        log_ps = scaled(s[rows], inv_t) - s_log_z[rows, None]
        log_pt = scaled(t[rows], inv_t) - t_log_z[rows, None]
        log_m = log_mixture(log_ps, log_pt, beta)
        kl_s = log_ps.exp().mul_(log_ps - log_m).sum(1)
        kl_t = log_pt.exp().mul_(log_pt - log_m).sum(1)
        value[rows] += beta * kl_t + (1 - beta) * kl_s
        kl_student[rows] += kl_s


def backward(*arguments, inv_t, MODE, **_):  # noqa: N803  Triton's spelling
    """The gradient with respect to the student's products takes the place of its tile."""
    s, _, t, _, s_log_z, t_log_z, aux, grad, _, beta = arguments
    for rows in blocks(s):
        log_ps = scaled(s[rows], inv_t) - s_log_z[rows, None]
        log_pt = scaled(t[rows], inv_t) - t_log_z[rows, None]
        if MODE == 0:
            made = log_ps.exp_() - log_pt.exp_()
        elif MODE == 1:
            made = log_ps.exp() * (log_ps - log_pt - aux[rows, None])
        else:
            inner = log_ps - log_mixture(log_ps, log_pt, beta) - aux[rows, None]
            made = log_ps.exp_().mul_(inner).mul_(1 - beta)
        s[rows] = made.mul_(grad[rows, None] * inv_t)

"""Generalised Jensen-Shannon divergence of GKD, arXiv 2306.13649, as in TRL and Liger:

beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, 0 < beta < 1. It tends to 0 at both ends,
where those libraries return fkl (beta = 0) and rkl (beta = 1) instead: ask for these by name.
"""

import torch

from kdag.losses.base import TINY, centre, dot, kl, log_, log_mix


def value(student_logp, teacher_logp, *, beta):
    logm = log_mix(teacher_logp, student_logp, beta)
    return beta * kl(teacher_logp, logm) + (1 - beta) * kl(student_logp, logm)


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, beta):
    """h = (1 - beta) ln(q / m)."""
    mixture = torch.lerp(p, q, 1 - beta, out=x).clamp_(min=TINY)
    teacher = dot(p, log_(torch.div(p, mixture, out=y), y), y)
    h = log_(torch.div(q, mixture, out=x), x).mul_(1 - beta)
    grad, mean = centre(h, q, y)
    return beta * teacher + mean, grad

"""Total variation: sum |p - q| / 2, in [0, 1]. For distillation: f-DISTILL, arXiv 2307.15190."""

import torch

from kdag.losses.base import centre


def value(student_logp, teacher_logp):
    return (teacher_logp.exp() - student_logp.exp()).abs().sum(-1) / 2


def gradient(x, y, q, p, log_q_sum, log_p_sum):
    """h = sign(q - p) / 2."""
    difference = torch.sub(q, p, out=x)
    total = torch.abs(difference, out=y).sum(-1, keepdim=True) / 2
    grad, _ = centre(difference.sign_().mul_(0.5), q, y)
    return total, grad

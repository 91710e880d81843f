"""Skewed forward KL: KL(p || lambda p + (1 - lambda) q), 0 < lambda < 1.

At most -ln lambda; fkl as lambda -> 0. DistiLLM, arXiv 2402.03898.
"""

import torch

from kdag.losses.base import TINY, centre, dot, kl, log_, log_mix


def value(student_logp, teacher_logp, *, skew_lambda):
    return kl(teacher_logp, log_mix(teacher_logp, student_logp, skew_lambda))


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, skew_lambda):
    """h = -(1 - lambda) p / m."""
    ratio = torch.lerp(p, q, 1 - skew_lambda, out=x)
    torch.div(p, ratio.clamp_(min=TINY), out=ratio)
    total = dot(p, log_(ratio, y), y)
    grad, _ = centre(ratio.mul_(skew_lambda - 1), q, y)
    return total, grad

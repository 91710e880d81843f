"""Skewed reverse KL: KL(q || (1 - lambda) p + lambda q), 0 < lambda < 1.

At most -ln lambda; rkl as lambda -> 0. DistiLLM, arXiv 2402.03898.
"""

import torch

from kdag.losses.base import TINY, centre, dot, kl, log_, log_mix


def value(student_logp, teacher_logp, *, skew_lambda):
    return kl(student_logp, log_mix(student_logp, teacher_logp, skew_lambda))


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, skew_lambda):
    """h = ln(q / m) - lambda q / m, up to a constant."""
    ratio = torch.lerp(p, q, skew_lambda, out=p)
    torch.div(q, ratio.clamp_(min=TINY), out=ratio)
    h = log_(ratio, y)
    total = dot(q, h, x)
    grad, _ = centre(h.sub_(ratio, alpha=skew_lambda), q, x)
    return total, grad

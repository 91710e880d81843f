"""Forward KL: KL(p || q). Hinton et al., arXiv 1503.02531."""

import torch

from kdag.losses.base import dot, kl


def value(student_logp, teacher_logp):
    return kl(teacher_logp, student_logp)


def gradient(x, y, q, p, log_q_sum, log_p_sum):
    """h = -p / q: the gradient is q - p."""
    total = dot(p, y.sub_(x), x) + (log_q_sum - log_p_sum)
    return total, torch.sub(q, p, out=p)


def linear_in_teacher():
    return True

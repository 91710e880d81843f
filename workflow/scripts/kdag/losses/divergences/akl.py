"""Adaptive KL: (g_head fkl + g_tail rkl) / (g_head + g_tail), 0 < mu < 1. arXiv 2404.02657.

g_head sums |p - q| over the head, the fewest of the teacher's likeliest tokens that reach a mass of mu, and
g_tail over the rest; both are constants to the gradient. (The authors' code leaves the token that crosses mu
in the tail, unless it is the first.)
"""

import torch

from kdag.losses.base import kl, kl_mix


def value(student_logp, teacher_logp, *, mu):
    share = head_share(student_logp.detach().exp(), teacher_logp.exp(), mu)
    return share * kl(teacher_logp, student_logp) + (1 - share) * kl(student_logp, teacher_logp)


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, mu):
    return kl_mix(x, y, q, p, log_q_sum, log_p_sum, head_share(q, p, mu).unsqueeze(1))


def whole_teacher(*, mu):
    """A part of it is rkl."""
    return True


def head_share(q, p, mu):
    """g_head / (g_head + g_tail), [N]; a half where p and q are the same."""
    sorted_p, order = p.sort(dim=-1, descending=True)
    gap = (sorted_p - q.gather(-1, order)).abs()
    head = sorted_p.cumsum(-1) - sorted_p < mu
    total = gap.sum(-1)
    return torch.where(total > 0, (gap * head).sum(-1) / total, 0.5)

"""(KL(p || q) + KL(q || p)) / 2: Jeffreys' divergence (1946), halved to stay on fkl's scale."""

from kdag.losses.base import kl_mix


def value(student_logp, teacher_logp):
    difference = teacher_logp - student_logp
    return ((teacher_logp.exp() - student_logp.exp()) * difference).sum(-1) / 2


def gradient(x, y, q, p, log_q_sum, log_p_sum):
    return kl_mix(x, y, q, p, log_q_sum, log_p_sum, 0.5)


def whole_teacher():
    """Half of it is rkl."""
    return True

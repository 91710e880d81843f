"""Alpha-beta divergence, 0 <= alpha, beta <= 1; (1, 0) is fkl, (0, 1) rkl. arXiv 2505.04560.

-1 / (alpha beta) sum [p^alpha q^beta - alpha/s p^s - beta/s q^s], s = alpha + beta, and its limits where
alpha or beta is 0; at (0, 0) half the squared distance of the log-probs. With d = ln q - ln p and
w = p^alpha q^beta each term is (w / s) [expm1(alpha d) / alpha + expm1(-beta d) / beta], computed without
overflow.
"""

import torch


def value(student_logp, teacher_logp, *, alpha, beta):
    difference = student_logp - teacher_logp
    if alpha == beta == 0:
        return difference.square().sum(-1) / 2
    log_w = alpha * teacher_logp + beta * student_logp
    student_term = weighted_expm1(log_w, difference, alpha)
    teacher_term = weighted_expm1(log_w, -difference, beta)
    return (student_term + teacher_term).sum(-1) / (alpha + beta)


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, alpha, beta):
    """q h = (q^s - p^alpha q^beta) / alpha, the student's half of the value."""
    x.sub_(log_q_sum)
    y.sub_(log_p_sum)
    difference = x - y
    if alpha == beta == 0:
        squared = difference.square().sum(-1, keepdim=True) / 2
        total = difference.sum(-1, keepdim=True)
        return squared, torch.addcmul(difference, q, total, value=-1, out=x)
    log_w = x.mul_(beta).add_(y, alpha=alpha)
    student = weighted_expm1(log_w, difference, alpha)
    teacher_sum = weighted_expm1(log_w, difference.neg_(), beta).sum(-1, keepdim=True)
    student_sum = student.sum(-1, keepdim=True)
    grad = torch.addcmul(student, q, student_sum, value=-1, out=x)
    return (student_sum + teacher_sum) / (alpha + beta), grad


def whole_teacher(*, alpha, beta):
    """Without a power of p in front, ln p stands alone where the student has mass."""
    return alpha == 0


def linear_in_teacher(*, alpha, beta):
    """p enters the gradient as p^alpha."""
    return alpha == 1


def weighted_expm1(log_w, d, a):
    """exp(log_w) expm1(a d) / a, or its limit exp(log_w) d at a = 0."""
    if a == 0:
        return log_w.exp() * d
    larger = (log_w + (a * d).clamp(min=0)).exp()
    return -larger * torch.expm1(-(a * d).abs()) * d.sign() / a

"""Divergences between a teacher and a student, token by token.

    DIVERGENCES[name](student_logp, teacher_logp, **params) -> Tensor[N]

Inputs are log-probabilities [N, V], already at the temperature, finite; the result is nats per
token, unmasked, unweighted and not averaged: that is the caller's, once. p is the teacher, q the
student; sums run over the vocabulary. The teacher is a constant: no gradient reaches it.

Everything stays in log space, in fp32 or better: values and gradients are finite for log-probs
down to -2e4, where probabilities underflow. Parameters, ranges and defaults: divergence_params.py.
"""

import functools
import math

import torch

from kdag.divergence_params import resolve

DIVERGENCES = {}


def divergence(name):
    """Register a function of (student_logp, teacher_logp) and check everything before it runs."""

    def register(function):
        @functools.wraps(function)
        def checked(student_logp, teacher_logp, **params):
            if student_logp.ndim != 2 or student_logp.shape != teacher_logp.shape:
                raise ValueError(
                    f"{name}: student and teacher log-probs must both be [N, V], got "
                    f"{list(student_logp.shape)} and {list(teacher_logp.shape)}"
                )
            params = resolve(name, params)
            dtype = torch.promote_types(student_logp.dtype, torch.float32)
            return function(student_logp.to(dtype), teacher_logp.detach().to(dtype), **params)

        DIVERGENCES[name] = checked
        return checked

    return register


def kl(logp, logq):
    """KL(p || q) = sum p (ln p - ln q); where p underflows its term is 0, as its limit."""
    return (logp.exp() * (logp - logq)).sum(-1)


def log_mix(loga, logb, weight):
    """ln(weight a + (1 - weight) b), also where a or b underflows."""
    return torch.logaddexp(loga + math.log(weight), logb + math.log1p(-weight))


@divergence("fkl")
def fkl(student_logp, teacher_logp):
    """Forward KL: KL(p || q). Hinton et al., arXiv 1503.02531."""
    return kl(teacher_logp, student_logp)


@divergence("rkl")
def rkl(student_logp, teacher_logp):
    """Reverse KL: KL(q || p). MiniLLM, arXiv 2306.08543."""
    return kl(student_logp, teacher_logp)


@divergence("skewed-fkl")
def skewed_fkl(student_logp, teacher_logp, *, skew_lambda):
    """KL(p || lambda p + (1 - lambda) q), 0 < lambda < 1; at most -ln lambda, fkl as lambda -> 0.

    DistiLLM, arXiv 2402.03898.
    """
    return kl(teacher_logp, log_mix(teacher_logp, student_logp, skew_lambda))


@divergence("skewed-rkl")
def skewed_rkl(student_logp, teacher_logp, *, skew_lambda):
    """KL(q || (1 - lambda) p + lambda q), 0 < lambda < 1; at most -ln lambda, rkl as lambda -> 0.

    DistiLLM, arXiv 2402.03898.
    """
    return kl(student_logp, log_mix(student_logp, teacher_logp, skew_lambda))


@divergence("jsd")
def jsd(student_logp, teacher_logp, *, beta):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, 0 < beta < 1.

    Generalised Jensen-Shannon divergence of GKD, arXiv 2306.13649, as in TRL and Liger. The formula
    tends to 0 at both ends, where those libraries return fkl (beta = 0) and rkl (beta = 1) instead:
    ask for these by name.
    """
    logm = log_mix(teacher_logp, student_logp, beta)
    return beta * kl(teacher_logp, logm) + (1 - beta) * kl(student_logp, logm)


@divergence("symmetric-kl")
def symmetric_kl(student_logp, teacher_logp):
    """(KL(p || q) + KL(q || p)) / 2: Jeffreys' divergence (1946), halved to stay on fkl's scale."""
    difference = teacher_logp - student_logp
    return ((teacher_logp.exp() - student_logp.exp()) * difference).sum(-1) / 2


@divergence("total-variation")
def total_variation(student_logp, teacher_logp):
    """sum |p - q| / 2, in [0, 1]. For distillation: f-DISTILL, arXiv 2307.15190."""
    return (teacher_logp.exp() - student_logp.exp()).abs().sum(-1) / 2


@divergence("akl")
def akl(student_logp, teacher_logp, *, mu):
    """Adaptive KL: (g_head fkl + g_tail rkl) / (g_head + g_tail), 0 < mu < 1.

    g_head sums |p - q| over the head, the fewest of the teacher's likeliest tokens that reach a
    mass of mu, and g_tail over the rest; both are constants to the gradient. arXiv 2404.02657. (The
    authors' code leaves the token that crosses mu in the tail, unless it is the first.)
    """
    share = head_share(student_logp.detach().exp(), teacher_logp.exp(), mu)
    return share * kl(teacher_logp, student_logp) + (1 - share) * kl(student_logp, teacher_logp)


def head_share(q, p, mu):
    """akl's g_head / (g_head + g_tail), [N]; a half where p and q are the same."""
    sorted_p, order = p.sort(dim=-1, descending=True)
    gap = (sorted_p - q.gather(-1, order)).abs()
    head = sorted_p.cumsum(-1) - sorted_p < mu
    total = gap.sum(-1)
    return torch.where(total > 0, (gap * head).sum(-1) / total, 0.5)


@divergence("ab")
def ab(student_logp, teacher_logp, *, alpha, beta):
    """Alpha-beta divergence, 0 <= alpha, beta <= 1; (1, 0) is fkl, (0, 1) rkl. arXiv 2505.04560.

    -1 / (alpha beta) sum [p^alpha q^beta - alpha/s p^s - beta/s q^s], s = alpha + beta, and its
    limits where alpha or beta is 0; at (0, 0) half the squared distance of the log-probs. With
    d = ln q - ln p and w = p^alpha q^beta each term is
    (w / s) [expm1(alpha d) / alpha + expm1(-beta d) / beta], computed without overflow.
    """
    difference = student_logp - teacher_logp
    if alpha == beta == 0:
        return difference.square().sum(-1) / 2
    log_w = alpha * teacher_logp + beta * student_logp
    student_term = weighted_expm1(log_w, difference, alpha)
    teacher_term = weighted_expm1(log_w, -difference, beta)
    return (student_term + teacher_term).sum(-1) / (alpha + beta)


def weighted_expm1(log_w, d, a):
    """exp(log_w) expm1(a d) / a, or its limit exp(log_w) d at a = 0."""
    if a == 0:
        return log_w.exp() * d
    larger = (log_w + (a * d).clamp(min=0)).exp()
    return -larger * torch.expm1(-(a * d).abs()) * d.sign() / a


@divergence("taid")
def taid(student_logp, teacher_logp, *, taid_t):
    """KL(p_t || q), p_t = softmax((1 - t) sg[ln q] + t ln p), 0 <= t <= 1; t = 1 is fkl.

    sg is stop-gradient. The target moves: the caller gives t of the current step, so this function
    keeps no state. TAID, arXiv 2501.16937, which starts at t = 0.4 and ends at 1.
    """
    mixed = (1 - taid_t) * student_logp.detach() + taid_t * teacher_logp
    return kl(torch.log_softmax(mixed, dim=-1), student_logp)

"""The divergences and the loss as the papers print them, in float64, sharing no code with kdag.

Probabilities in plain sight, a loop over tokens where the paper has one; gradients by autograd.
Only for distributions that float64 can hold.
"""

import math

import torch


def fkl(p, q):
    """Hinton et al., 1503.02531: sum p log(p / q)."""
    return (p * torch.log(p / q)).sum()


def rkl(p, q):
    """MiniLLM, 2306.08543: sum q log(q / p)."""
    return (q * torch.log(q / p)).sum()


def skewed_fkl(p, q, skew_lambda):
    """DistiLLM, 2402.03898, equation 5: KL(p, alpha p + (1 - alpha) q)."""
    return fkl(p, skew_lambda * p + (1 - skew_lambda) * q)


def skewed_rkl(p, q, skew_lambda):
    """DistiLLM, 2402.03898: KL(q, (1 - alpha) p + alpha q)."""
    return fkl(q, (1 - skew_lambda) * p + skew_lambda * q)


def jsd(p, q, beta):
    """GKD, 2306.13649, equation 1."""
    mixture = beta * p + (1 - beta) * q
    return beta * fkl(p, mixture) + (1 - beta) * fkl(q, mixture)


def symmetric_kl(p, q):
    return 0.5 * fkl(p, q) + 0.5 * rkl(p, q)


def total_variation(p, q):
    return 0.5 * torch.abs(p - q).sum()


def akl(p, q, mu):
    """2404.02657: head = the smallest set of the likeliest tokens whose mass reaches mu."""
    g_head = g_tail = mass = 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i].item()):
        gap = abs(p[i].item() - q[i].item())
        if mass < mu:
            g_head += gap
        else:
            g_tail += gap
        mass += p[i].item()
    share = g_head / (g_head + g_tail) if g_head + g_tail > 0 else 0.5
    return share * fkl(p, q) + (1 - share) * rkl(p, q)


def ab(p, q, alpha, beta):
    """2505.04560, definition 3.1, and its extensions by continuity (Cichocki et al., 2011)."""
    if alpha == 0 and beta == 0:
        return 0.5 * ((torch.log(p) - torch.log(q)) ** 2).sum()
    if beta == 0:
        terms = p**alpha * torch.log(p**alpha / q**alpha) - p**alpha + q**alpha
        return terms.sum() / alpha**2
    if alpha == 0:
        terms = q**beta * torch.log(q**beta / p**beta) - q**beta + p**beta
        return terms.sum() / beta**2
    total = alpha + beta
    terms = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    return -terms.sum() / (alpha * beta)


def taid(p, q, taid_t):
    """2501.16937, equation 3: KL(p_t, q), p_t = softmax((1 - t) sg(student) + t teacher logits)."""
    mixed = q.detach() ** (1 - taid_t) * p**taid_t
    return fkl(mixed / mixed.sum(), q)


DIVERGENCES = {
    "fkl": fkl,
    "rkl": rkl,
    "skewed-fkl": skewed_fkl,
    "skewed-rkl": skewed_rkl,
    "jsd": jsd,
    "symmetric-kl": symmetric_kl,
    "total-variation": total_variation,
    "akl": akl,
    "ab": ab,
    "taid": taid,
}


def softmax(logits):
    exponentials = torch.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def divergence(name, student_logits, teacher_logits, params):
    """(values [N], gradient of their sum with respect to the student's logits [N, V])."""
    student = student_logits.double().detach().requires_grad_()
    values = [
        DIVERGENCES[name](softmax(t), softmax(s), **params)
        for s, t in zip(student, teacher_logits.double(), strict=True)
    ]
    values = torch.stack(values)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def loss(student_hidden, student_head, teacher_hidden, teacher_head, targets, name, params, *,
         weight, temperature, squared=True, use_ce=True, num_items=None):  # fmt: skip
    """(loss, gradient of the hidden states, gradient of the head), one token after another."""
    hidden = student_hidden.detach().double().requires_grad_()
    head = student_head.detach().double().requires_grad_()
    factor = temperature**2 if squared else 1.0
    kept = [i for i in range(len(targets)) if targets[i] != -100]
    total = hidden.sum() * 0 + head.sum() * 0
    for i in kept:
        logits = head @ hidden[i]
        if use_ce:
            total = total - (1 - weight) * torch.log(softmax(logits)[targets[i]])
        if weight > 0 or not use_ce:
            teacher = softmax(teacher_head.double() @ teacher_hidden[i].double() / temperature)
            value = DIVERGENCES[name](teacher, softmax(logits / temperature), **params)
            total = total + (weight if use_ce else 1.0) * factor * value
    total = total / (num_items or max(len(kept), 1))
    return total.detach(), *torch.autograd.grad(total, (hidden, head))


def skew_bound(skew_lambda):
    return -math.log(skew_lambda)


def uld(p, q):
    """ULD, 2402.12030: both sorted, the shorter one filled with zeros, sum |.|."""
    p, q = (sorted(side.tolist(), reverse=True) for side in (p, q))
    length = max(len(p), len(q))
    p, q = (side + [0.0] * (length - len(side)) for side in (p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


def span_likelihood(p_tokens, q_tokens, tau):
    """ALM, 2503.20083: the KL of two coins, each the tau-th root of the product of a span's probabilities."""
    p, q = math.prod(p_tokens) ** (1 / tau), math.prod(q_tokens) ** (1 / tau)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

"""The divergences once more, value and gradient together, for the inner loop of distill_loss.

    value_and_grad(name, params)(x, y, q, p, log_q_sum, log_p_sum) -> (value [n, 1], grad [n, V])

x, y: the student's and the teacher's logits over T, less the row's maximum; q, p: their softmax;
log_q_sum, log_p_sum [n, 1]: ln q = x - log_q_sum, ln p = y - log_p_sum. All fp32. grad is the
gradient of value with respect to x: with h = (d value / d ln q) / q it is q (h - sum q h).
x, y and p are the function's to overwrite and grad is one of them; q stays as it is.

Written in place: at [n, V] every pass over the memory costs as much as an exponential. A mixture
m of p and q needs no log space here: it enters as p / m and q / m, which its weights bound, and
where p or q underflows so does the factor in front of their logs.
"""

from functools import partial

import torch

from kdag.divergences import DIVERGENCES, head_share, weighted_expm1

TINY = torch.finfo(torch.float32).tiny


def value_and_grad(name, params):
    """The analytic function if there is one, else autograd of the definition."""
    if name in GRADIENTS:
        return partial(GRADIENTS[name], **params)
    return partial(by_autograd, name, **params)


def by_autograd(name, x, y, q, p, log_q_sum, log_p_sum, **params):
    with torch.enable_grad():
        student = x.detach().requires_grad_()
        student_logp = torch.log_softmax(student, dim=-1)
        value = DIVERGENCES[name](student_logp, y - log_p_sum, **params)
        (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach().unsqueeze(1), x.copy_(grad)


def dot(a, b, out):
    """sum a b over the vocabulary, [n, 1]; out takes the products."""
    return torch.mul(a, b, out=out).sum(-1, keepdim=True)


def centre(h, q, out):
    """q (h - sum q h) in h, and sum q h; out takes the products."""
    mean = dot(q, h, out)
    return h.sub_(mean).mul_(q), mean


def log_(ratio, out):
    """ln of a ratio whose factor in front is 0 wherever the ratio is."""
    return torch.clamp(ratio, min=TINY, out=out).log_()


def fkl(x, y, q, p, log_q_sum, log_p_sum):
    """h = -p / q: the gradient is q - p."""
    value = dot(p, y.sub_(x), x) + (log_q_sum - log_p_sum)
    return value, torch.sub(q, p, out=p)


def rkl(x, y, q, p, log_q_sum, log_p_sum):
    """h = ln q - ln p, up to a constant, which centring removes."""
    grad, mean = centre(x.sub_(y), q, y)
    return mean + (log_p_sum - log_q_sum), grad


def skewed_fkl(x, y, q, p, log_q_sum, log_p_sum, *, skew_lambda):
    """h = -(1 - lambda) p / m."""
    ratio = torch.lerp(p, q, 1 - skew_lambda, out=x)
    torch.div(p, ratio.clamp_(min=TINY), out=ratio)
    value = dot(p, log_(ratio, y), y)
    grad, _ = centre(ratio.mul_(skew_lambda - 1), q, y)
    return value, grad


def skewed_rkl(x, y, q, p, log_q_sum, log_p_sum, *, skew_lambda):
    """h = ln(q / m) - lambda q / m, up to a constant."""
    ratio = torch.lerp(p, q, skew_lambda, out=p)
    torch.div(q, ratio.clamp_(min=TINY), out=ratio)
    h = log_(ratio, y)
    value = dot(q, h, x)
    grad, _ = centre(h.sub_(ratio, alpha=skew_lambda), q, x)
    return value, grad


def jsd(x, y, q, p, log_q_sum, log_p_sum, *, beta):
    """h = (1 - beta) ln(q / m)."""
    mixture = torch.lerp(p, q, 1 - beta, out=x).clamp_(min=TINY)
    teacher = dot(p, log_(torch.div(p, mixture, out=y), y), y)
    h = log_(torch.div(q, mixture, out=x), x).mul_(1 - beta)
    grad, mean = centre(h, q, y)
    return beta * teacher + mean, grad


def symmetric_kl(x, y, q, p, log_q_sum, log_p_sum):
    return kl_mix(x, y, q, p, log_q_sum, log_p_sum, 0.5)


def kl_mix(x, y, q, p, log_q_sum, log_p_sum, share):
    """share KL(p || q) + (1 - share) KL(q || p); share a number or [n, 1]."""
    difference = x.sub_(y)
    constant = log_p_sum - log_q_sum
    forward = -dot(p, difference, y) - constant
    grad, mean = centre(difference, q, y)
    grad.mul_(1 - share)
    grad.add_(torch.sub(q, p, out=p).mul_(share))
    return share * forward + (1 - share) * (mean + constant), grad


def total_variation(x, y, q, p, log_q_sum, log_p_sum):
    """h = sign(q - p) / 2."""
    difference = torch.sub(q, p, out=x)
    value = torch.abs(difference, out=y).sum(-1, keepdim=True) / 2
    grad, _ = centre(difference.sign_().mul_(0.5), q, y)
    return value, grad


def akl(x, y, q, p, log_q_sum, log_p_sum, *, mu):
    return kl_mix(x, y, q, p, log_q_sum, log_p_sum, head_share(q, p, mu).unsqueeze(1))


def ab(x, y, q, p, log_q_sum, log_p_sum, *, alpha, beta):
    """q h = (q^s - p^alpha q^beta) / alpha, the student's half of the value."""
    x.sub_(log_q_sum)
    y.sub_(log_p_sum)
    difference = x - y
    if alpha == beta == 0:
        value = difference.square().sum(-1, keepdim=True) / 2
        total = difference.sum(-1, keepdim=True)
        return value, torch.addcmul(difference, q, total, value=-1, out=x)
    log_w = x.mul_(beta).add_(y, alpha=alpha)
    student = weighted_expm1(log_w, difference, alpha)
    teacher_sum = weighted_expm1(log_w, difference.neg_(), beta).sum(-1, keepdim=True)
    student_sum = student.sum(-1, keepdim=True)
    grad = torch.addcmul(student, q, student_sum, value=-1, out=x)
    return (student_sum + teacher_sum) / (alpha + beta), grad


def taid(x, y, q, p, log_q_sum, log_p_sum, *, taid_t):
    """fkl to the target of this moment, which is a constant to the gradient."""
    target = torch.lerp(x, y, taid_t, out=y)
    target.sub_(target.amax(-1, keepdim=True))
    total = torch.exp(target, out=p).sum(-1, keepdim=True)
    return fkl(x, target, q, p.div_(total), log_q_sum, total.log())


GRADIENTS = {
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

"""What the divergences are made of: the check of their inputs, and the arithmetic that they share.

A file of divergences/ holds one divergence D of a teacher p and a student q, token by token:

    value(student_logp, teacher_logp, **params) -> [N]      the definition, in nats
    gradient(x, y, q, p, log_q_sum, log_p_sum, **params)    the same with its gradient; optional
        -> (value [n, 1], grad [n, V])
    whole_teacher(**params) -> bool                         is it without bound where the teacher's mass
                                                            was cut away? default: no
    linear_in_teacher(**params) -> bool                     is the gradient linear in the teacher's
                                                            probabilities, so that an unbiased estimate of
                                                            them gives an unbiased gradient? default: no

In `value` the log-probs [N, V] are at the temperature already and finite; nothing is masked, weighted or
averaged: that is the caller's, once. No gradient reaches the teacher. Everything stays in log space, in fp32
or better: values and gradients are finite for log-probs down to -2e4, where probabilities underflow.

`gradient` is for the inner loop of fused.py. x, y: the student's and the teacher's logits over T, less the
row's maximum; q, p: their softmax; log_q_sum, log_p_sum [n, 1]: ln q = x - log_q_sum, ln p = y - log_p_sum.
All fp32. grad is the gradient of value with respect to x: with h = (d value / d ln q) / q it is
q (h - sum q h). x, y and p are the function's to overwrite and grad is one of them; q stays as it is.

Written in place: at [n, V] every pass over the memory costs as much as an exponential. A mixture m of p and q
needs no log space there: it enters as p / m and q / m, which its weights bound, and where p or q underflows
so does the factor in front of their logs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Divergence:
    """One file of divergences/, to be called with log-probs."""

    name: str
    value: Callable
    gradient: Callable | None = None
    whole_teacher: Callable = lambda **params: False
    linear_in_teacher: Callable = lambda **params: False
    resolve: Callable = dict  # {parameter: value} checked, with defaults

    def __call__(self, student_logp, teacher_logp, **params):
        """Nats per token [N]. student_logp, teacher_logp: [N, V]."""
        if student_logp.ndim != 2 or student_logp.shape != teacher_logp.shape:
            raise ValueError(
                f"{self.name}: student and teacher log-probs must both be [N, V], got "
                f"{list(student_logp.shape)} and {list(teacher_logp.shape)}"
            )
        params = self.resolve(params)
        dtype = torch.promote_types(student_logp.dtype, torch.float32)
        return self.value(student_logp.to(dtype), teacher_logp.detach().to(dtype), **params)


def value_and_grad(divergence: Callable, params: dict) -> tuple[Callable, dict]:
    """(gradient, its keywords): the analytic one if the divergence has it, else autograd of its definition.

    divergence: a Divergence, or any function of log-probs as its `value`.
    """
    gradient = getattr(divergence, "gradient", None)
    params = getattr(divergence, "resolve", dict)(params)
    return (gradient, params) if gradient else (by_autograd, {"divergence": divergence, **params})


def by_autograd(x, y, q, p, log_q_sum, log_p_sum, *, divergence, **params):
    with torch.enable_grad():
        student = x.detach().requires_grad_()
        student_logp = torch.log_softmax(student, dim=-1)
        value = divergence(student_logp, y - log_p_sum, **params)
        (grad,) = torch.autograd.grad(value.sum(), student)
    return value.detach().unsqueeze(1), x.copy_(grad)


# --- definitions ----------------------------------------------------------------------------------


def kl(logp, logq):
    """KL(p || q) = sum p (ln p - ln q); where p underflows its term is 0, as its limit."""
    return (logp.exp() * (logp - logq)).sum(-1)


def log_mix(loga, logb, weight):
    """ln(weight a + (1 - weight) b), also where a or b underflows."""
    return torch.logaddexp(loga + math.log(weight), logb + math.log1p(-weight))


# --- gradients ------------------------------------------------------------------------------------


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


def kl_mix(x, y, q, p, log_q_sum, log_p_sum, share):
    """share KL(p || q) + (1 - share) KL(q || p); share a number or [n, 1]."""
    difference = x.sub_(y)
    constant = log_p_sum - log_q_sum
    forward = -dot(p, difference, y) - constant
    grad, mean = centre(difference, q, y)
    grad.mul_(1 - share)
    grad.add_(torch.sub(q, p, out=p).mul_(share))
    return share * forward + (1 - share) * (mean + constant), grad

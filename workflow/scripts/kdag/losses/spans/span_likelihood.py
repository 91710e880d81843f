"""How likely teacher and student hold a span: KL between two coins.

    p = P_teacher(span)^(1 / tau), q = P_student(span)^(1 / tau)
    loss = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)), in nats

P(span) is the product of the probabilities of its tokens, each given what comes before it.

Approximate likelihood matching (ALM), arXiv 2503.20083, without its debiasing: either the span is said, or
something else. tau is its binarization_temp, 100 in the settings that its code (bminixhofer/tokenkit,
compute_alm_loss) ships; 1 compares the probabilities as they are. That code minimises the cross-entropy of
the coins, which has the same gradient, and takes 1e-6 off the log-probs, so that 1 - q is not 0; here it is
the dtype's own precision.

At tau = 1, for a span of one token, this is the KL of the two distributions with all other tokens as one
outcome, hence never above fkl. It needs nothing of the vocabularies, and of the teacher only the log-probs of
the answer's tokens. X-Token (arXiv 2605.21699) is another method: its losses compare whole distributions,
through a matrix that maps one vocabulary to the other.
"""

import math

import torch

DISTRIBUTIONS = False


def value(student_logp, teacher_logp, *, tau):
    """[K]; student_logp, teacher_logp [K], ln P(span) <= 0; tau > 0."""
    least = torch.finfo(student_logp.dtype).eps
    log_q, log_p = (logp.clamp(max=0) / tau - least for logp in (student_logp, teacher_logp))
    said = log_p.exp() * (log_p - log_q)
    return said - torch.expm1(log_p) * (log1mexp(log_p) - log1mexp(log_q))


def log1mexp(x):
    """ln(1 - e^x) for x < 0; each of the two forms is exact where the other is not, also in its gradient."""
    small = x > -math.log(2)
    near, far = torch.where(small, x, -1.0), torch.where(small, -1.0, x)
    return torch.where(small, torch.log(-torch.expm1(near)), torch.log1p(-far.exp()))

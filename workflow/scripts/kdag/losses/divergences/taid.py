"""KL(p_t || q), p_t = softmax((1 - t) sg[ln q] + t ln p), 0 <= t <= 1; t = 1 is fkl. TAID, arXiv 2501.16937.

sg is stop-gradient. The target moves: the caller gives t of the current step, so that nothing here keeps a
state. The paper starts at t = 0.4 and ends at 1.
"""

import torch

from kdag.losses.base import kl
from kdag.losses.divergences import fkl


def value(student_logp, teacher_logp, *, taid_t):
    mixed = (1 - taid_t) * student_logp.detach() + taid_t * teacher_logp
    return kl(torch.log_softmax(mixed, dim=-1), student_logp)


def gradient(x, y, q, p, log_q_sum, log_p_sum, *, taid_t):
    """fkl to the target of this moment, which is a constant to the gradient."""
    target = torch.lerp(x, y, taid_t, out=y)
    target.sub_(target.amax(-1, keepdim=True))
    total = torch.exp(target, out=p).sum(-1, keepdim=True)
    return fkl.gradient(x, target, q, p.div_(total), log_q_sum, total.log())

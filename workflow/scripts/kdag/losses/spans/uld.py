"""Universal logit distillation: sum over ranks |q_(r) - p_(r)|, q_(r) the r-th largest probability.

arXiv 2402.12030: the Wasserstein distance of two distributions whose tokens all cost the same to move. As the
authors' code has it (Nicolas-BZRD/llm-recipes, models/distillation_model.py): either side is sorted, and the
shorter one is filled up with zeros. In probability, not in nats: 0 to 2.

That code pairs the k-th token of one answer with the k-th of the other and leaves out what the longer answer
has more; `by_position` does the same. With the spans of an alignment it is TRL's extended ULD
(use_extended_uld of trl.experimental.gold). Neither source multiplies by T^2.
"""

import torch

DISTRIBUTIONS = True


def value(student_logp, teacher_logp):
    """[K]; student_logp [K, V_s], teacher_logp [K, V_t]."""
    sides = [logp.exp() for logp in (student_logp, teacher_logp)]
    common = min(side.shape[-1] for side in sides)
    # Of the longer one the rest need not be sorted, as it is compared with zeros.
    student, teacher = (side.topk(common, dim=-1).values for side in sides)
    distance = (student - teacher).abs().sum(-1)
    for side, first in zip(sides, (student, teacher), strict=True):
        if side.shape[-1] > common:
            distance = distance + side.sum(-1) - first.sum(-1)
    return distance


def by_position(students: int, teachers: int) -> torch.Tensor:
    """The spans [K, 2] of either side of an answer of so many tokens, paired by their place in it."""
    first = torch.arange(min(students, teachers))
    return torch.stack([first, first + 1], dim=1)

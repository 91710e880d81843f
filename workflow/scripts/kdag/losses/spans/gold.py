"""GOLD's hybrid loss: w D(tokens that both vocabularies have) + (1 - w) ULD(the others).

TRL 1.15, trl.experimental.gold, ULDLoss._compute_hybrid_uld_loss with uld_use_hybrid_loss. Its conventions:

- The vocabulary is split and not the spans: every span has both parts, also one of several tokens.
- Neither part is normalised. D is summed over the common tokens with the probabilities that they have, so it
  may be below 0.
- w is what share of the teacher's vocabulary is common, C / V_t, unless both weights are given.
- Where all tokens of either side are common, there is no ULD.

With equal vocabularies w is 1, and the loss is D. TRL's D is the generalised JSD at beta = 0.5; beta 0 and 1
are fkl and rkl there. Two differences: TRL raises probabilities below 1e-8 to that before the logarithm, here
the logarithm is exact; and TRL calls tokens common by name, here alignment.common_tokens decides. D is in
nats, ULD in probability.
"""

import torch

from kdag.losses.spans import uld

DISTRIBUTIONS = True


def value(student_logp, teacher_logp, *, common, divergence, divergence_params=None, weights=None):
    """[K]; student_logp [K, V_s], teacher_logp [K, V_t].

    common: (student's ids [C], teacher's ids [C]), on the log-probs' device; divergence: D, what
    `divergences.load` gave. weights: those of the common tokens and of the others.
    """
    ours, theirs = common
    total = student_logp.new_zeros(len(student_logp))
    share = len(theirs) / teacher_logp.shape[-1]
    common_weight, other_weight = weights or (share, 1 - share)
    if len(theirs):
        shared = divergence(student_logp[:, ours], teacher_logp[:, theirs], **(divergence_params or {}))
        total = total + common_weight * shared
    rest = [others(*side) for side in ((student_logp, ours), (teacher_logp, theirs))]
    if all(part.shape[-1] for part in rest):
        total = total + other_weight * uld.value(*rest)
    return total


def others(logp: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The columns of [K, V] that are not `ids`."""
    rest = torch.ones(logp.shape[-1], dtype=torch.bool, device=logp.device)
    rest[ids] = False
    return logp[:, rest]

"""How close a student is to its teacher, token by token, over the answers of the held-out rows.

Everything is a mean over answer tokens given the true prefix (teacher forcing), at temperature 1, in nats.
"""

import torch

from kdag.losses.cap import capped
from kdag.losses.divergences import fkl, rkl, total_variation
from kdag.losses.products import to_logits

CHUNK = 256
BINS = 15


def token_measures(student_logp, teacher_logp, untrained_logp, targets) -> dict[str, torch.Tensor]:
    """Per-token measures [N] from log-probs [N, V] and target ids [N]."""
    probabilities = student_logp.exp()
    confidence, guess = probabilities.max(-1)
    return {
        "forward_kl": fkl.value(student_logp, teacher_logp),
        "reverse_kl": rkl.value(student_logp, teacher_logp),
        "total_variation": total_variation.value(student_logp, teacher_logp),
        "top1_agreement": (guess == teacher_logp.argmax(-1)).float(),
        "nll": -student_logp.gather(-1, targets[:, None]).squeeze(-1),
        "teacher_nll": -teacher_logp.gather(-1, targets[:, None]).squeeze(-1),
        "entropy": -(probabilities * student_logp).sum(-1),
        "kl_to_untrained": rkl.value(student_logp, untrained_logp),
        "confidence": confidence,
        "correct": (guess == targets).float(),
    }


def calibration_error(confidence: torch.Tensor, correct: torch.Tensor) -> float:
    """Expected calibration error of the top-1 token, 15 equal bins (Guo et al., arXiv 1706.04599)."""
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, (confidence - correct).double())
    return float(gaps.abs().sum() / len(confidence))


@torch.inference_mode()
def fidelity(
    student_hidden,
    student_head,
    teacher_hidden,
    teacher_head,
    untrained,
    targets,
    row_lengths=None,
    caps=(None, None),
    teacher_logits=None,
) -> dict:
    """Means over N tokens. *_hidden [N, d], *_head [V, d]; untrained: (hidden, head); targets [N].

    row_lengths: the tokens of each row, whose own means are by_row; default: one row. caps: the soft caps of
    the student's and the teacher's logits. teacher_logits: as losses.fused.distill_loss takes it, where the
    teacher is stored in another form than its hidden states.
    """
    pieces = []
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        parts = [(student_hidden, student_head, caps[0]), (*untrained, caps[0])]
        if teacher_logits is None:
            parts.insert(1, (teacher_hidden, teacher_head, caps[1]))
        logps = [
            capped(to_logits(hidden[rows].to(head.device, head.dtype), head).float(), cap).log_softmax(-1)
            for hidden, head, cap in parts
        ]
        if teacher_logits:
            known = {name: tensor[rows].to(teacher_head.device) for name, tensor in teacher_hidden.items()}
            logps.insert(1, teacher_logits(known, teacher_head).float().log_softmax(-1))
        pieces.append(token_measures(*logps, targets[rows].to(student_head.device)))
    tokens = {name: torch.cat([piece[name].cpu() for piece in pieces]) for name in pieces[0]}
    confidence, correct = tokens.pop("confidence"), tokens.pop("correct")
    means = {name: float(values.double().mean()) for name, values in tokens.items()}
    row_lengths = row_lengths or [len(targets)]
    by_row = [float(row.double().mean()) for row in tokens["forward_kl"].split(row_lengths)]
    return means | {
        "by_row": {"forward_kl": by_row, "tokens": row_lengths},
        "accuracy": float(correct.double().mean()),
        "calibration_error": calibration_error(confidence, correct),
        "tokens": len(targets),
    }

"""Cross-entropy plus a loss across tokenizers from hidden states, chunk by chunk.

The logits of either side exist for a chunk of tokens or spans at a time, also in the backward pass, which
makes them anew. However many tokens a span has, one row of logits of it is compared; of its other tokens only
the log-prob of the token itself is needed.
"""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from kdag.losses import products
from kdag.losses.fused import IGNORE, check_shapes, distill_loss, even_chunks, same_dtype
from kdag.losses.spans import MERGES, SpanLoss

# Tensors of a chunk's size that are held at a time, by which a default chunk is smaller.
HELD = 4


def span_distill_loss(
    student_hidden,
    student_head,
    teacher_hidden,
    teacher_head,
    targets,
    teacher_targets,
    student_spans,
    teacher_spans,
    *,
    loss: SpanLoss,
    loss_params,
    kl_weight,
    temperature,
    temperature_squared=True,
    use_ce=True,
    merge="bayesian",
    num_items=None,
    num_spans=None,
    chunk_tokens=None,
    student_cap=None,
    teacher_cap=None,
):
    """(1 - w) CE summed over tokens / num_items + w T^2 D summed over spans / num_spans -> (loss, metrics).

    With one tokenizer for both and `gold` this is the loss of `fused.distill_loss`.

    student_hidden [N_s, d_s], student_head [V_s, d_s], targets [N_s], teacher_hidden [N_t, d_t], teacher_head
    [V_t, d_t], teacher_targets [N_t], both targets already shifted: targets[i] is the token that row i
    predicts. student_spans, teacher_spans [K, 2] int64: rows of a span, the first and the one behind the
    last; K alike, no row in two spans. CE is of all targets but -100, and none of these may lie in a span.

    loss, loss_params: D, what `spans.load` gave, and its keywords. merge: see `merged`. num_items, num_spans:
    of the whole effective batch, so that micro-batches add up; default: of this call. The others are those of
    `distill_loss`. ValueError for shapes and settings that do not fit.

    metrics: as of distill_loss, `divergence_sum` being that over spans, and their number `spans`.
    """
    if not 0 <= kl_weight <= 1:
        raise ValueError(f"kl_weight = {kl_weight} is outside [0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} is not positive")
    ce_weight, kl_weight = (1 - kl_weight, kl_weight) if use_ce else (0.0, 1.0)
    check_shapes("student", student_hidden, student_head, targets)
    total = 0
    for tensor in (student_hidden, student_head):  # a graph to both, also of a batch without a span
        total = total + tensor[:0].sum(dtype=accurate(tensor.dtype))
    metrics = {"ce_sum": total.detach(), "divergence_sum": total.detach()}
    tokens = int((targets != IGNORE).sum())
    if ce_weight:
        ce, ce_metrics = distill_loss(
            *(student_hidden, student_head, None, None, targets),
            **{"divergence": None, "divergence_params": None, "kl_weight": 0, "temperature": 1},
            **{"num_items": num_items, "chunk_tokens": chunk_tokens, "student_cap": student_cap},
        )
        total, metrics["ce_sum"] = total + ce_weight * ce, ce_metrics["ce_sum"]
    if kl_weight:
        check_shapes("teacher", teacher_hidden, teacher_head, teacher_targets)
        check_spans(student_spans, teacher_spans, targets, teacher_targets)
        values = span_values(
            Side(student_hidden, student_head, targets, student_spans, student_cap, temperature),
            Side(teacher_hidden, teacher_head, teacher_targets, teacher_spans, teacher_cap, temperature),
            **{"loss": loss, "loss_params": loss_params, "merge": merge, "chunk_tokens": chunk_tokens},
        )
        summed = values.sum()
        count = max(len(student_spans), 1) if num_spans is None else num_spans
        total = total + kl_weight * (temperature**2 if temperature_squared else 1) * summed / count
        metrics["divergence_sum"] = summed.detach()
    return total, metrics | {"tokens": tokens, "spans": len(student_spans)}


def check_spans(student_spans, teacher_spans, targets, teacher_targets) -> None:
    if student_spans.shape != teacher_spans.shape or student_spans.shape[1:] != (2,):
        raise ValueError(
            f"spans must be [K, 2] on both sides, got {list(student_spans.shape)} and "
            f"{list(teacher_spans.shape)}"
        )
    for name, spans, tokens in (
        ("student", student_spans, targets),
        ("teacher", teacher_spans, teacher_targets),
    ):
        if not len(spans):
            continue
        first, last = spans.unbind(1)
        if bool((first < 0).any() | (last <= first).any() | (last > len(tokens)).any()):
            raise ValueError(f"{name}: a span is empty or outside of the {len(tokens)} tokens")
        inside = torch.arange(len(tokens), device=tokens.device)
        place = torch.searchsorted(first.contiguous(), inside, right=True) - 1
        within = (place >= 0) & (inside < last[place.clamp(min=0)])
        if bool((first[1:] < last[:-1]).any()):
            raise ValueError(f"{name}: spans are not in order, or one token is in two of them")
        if bool((tokens[within] == IGNORE).any()):
            raise ValueError(f"{name}: a token of a span has no target")


class Side:
    """One model on the tokens of a batch: hidden [N, d], head [V, d], targets [N], spans [K, 2]."""

    def __init__(self, hidden, head, targets, spans, cap=None, temperature=1.0):
        self.hidden, self.head = same_dtype(hidden, head)
        self.targets, self.spans, self.cap, self.temperature = targets, spans, cap, temperature

    def likelihoods(self, rows, of, chunk_tokens) -> torch.Tensor:
        """ln P [K] of the tokens in `rows` [M], added up by the spans `of` [M] that they are in."""
        logp = token_logp(
            *(self.hidden[rows], self.head, self.targets[rows]),
            **{"cap": self.cap, "temperature": self.temperature, "chunk_tokens": chunk_tokens},
        )
        return logp.new_zeros(len(self.spans)).index_add(0, of, logp)


def span_values(student: Side, teacher: Side, *, loss, loss_params, merge="bayesian", chunk_tokens=None):
    """The loss of each span [K]. Only the student gets a gradient: `SpanLoss` detaches the teacher."""
    if merge not in MERGES:
        raise ValueError(f"merge = {merge!r} is none of {', '.join(MERGES)}")
    with torch.autocast(student.hidden.device.type, enabled=False):
        if not loss.distributions:
            both = (side.likelihoods(*members(side.spans), chunk_tokens) for side in (student, teacher))
            return loss(*both, **loss_params)
        parts = []
        for side in (student, teacher):
            row = side.spans[:, 1] - 1 if merge == "bayesian" else side.spans[:, 0]
            rows, of = members(side.spans)
            fixed = rows != row[of]
            parts += [side.hidden[row], side.likelihoods(rows[fixed], of[fixed], chunk_tokens)]
        compare = partial(compared, student, teacher, loss, loss_params)
        size = chunk_tokens or even_chunks(
            len(student.spans), HELD * max(len(student.head), len(teacher.head))
        )
        values = [
            run(compare, *(part[i : i + size] for part in parts)) for i in range(0, len(parts[0]), size)
        ]
        return torch.cat(values) if values else parts[1]


def compared(student: Side, teacher: Side, loss, loss_params, hidden, fixed, teacher_hidden, teacher_fixed):
    """The loss [k] of spans: hidden [k, d] of the tokens compared, fixed [k] ln P of the others in a span."""
    ours = merged(logp_of(hidden, student.head, student.cap, student.temperature), fixed)
    theirs = merged(logp_of(teacher_hidden, teacher.head, teacher.cap, teacher.temperature), teacher_fixed)
    return loss(ours, theirs, **loss_params)


def merged(logp, fixed):
    """ln of what a model holds likely in the place of a span [k, V]: one token's distribution times the
    probabilities of the span's other tokens, as they are. So it sums to exp(fixed) and not to 1.

    Which token keeps its distribution is what TRL calls uld_token_merge_strategy: `bayesian`, the last, so
    that it is the chain rule's P(first tokens, v) for every v; `observed`, the first. TRL's default is
    `observed`, with logits that are one position late (its `bayesian` shifts them); here no logits are late.
    """
    return logp + fixed[:, None]


def members(spans) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that are in a span, and which one, both [M]."""
    lengths = spans[:, 1] - spans[:, 0]
    of = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), lengths)
    before = lengths.cumsum(0) - lengths
    return torch.arange(len(of), device=spans.device) - before[of] + spans[of, 0], of


def token_logp(hidden, head, targets, *, cap=None, temperature=1.0, chunk_tokens=None) -> torch.Tensor:
    """ln P(targets) [n] of hidden [n, d] and head [V, d], in fp32 or better."""
    size = chunk_tokens or even_chunks(len(hidden), HELD * len(head))

    def picked(some, wanted):
        return logp_of(some, head, cap, temperature).gather(1, wanted[:, None].long()).squeeze(1)

    values = [run(picked, hidden[i : i + size], targets[i : i + size]) for i in range(0, len(hidden), size)]
    return torch.cat(values) if values else hidden.new_zeros(0, dtype=accurate(hidden.dtype))


def logp_of(hidden, head, cap, temperature) -> torch.Tensor:
    """Log-probs [n, V] at a temperature, with autograd."""
    pieces = [hidden @ head[tokens].t() for tokens in products.parts(len(head), head.device)]
    logits = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)).to(accurate(hidden.dtype))
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return torch.log_softmax(logits / temperature if temperature != 1 else logits, dim=-1)


def accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def run(function, *tensors):
    """function(*tensors), of which a backward pass keeps the arguments only."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)

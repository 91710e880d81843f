"""Ways to store what the teacher thinks: pure functions of tensors.

    scheme = SCHEMES[name]
    stored = scheme.encode(hidden, head, **params)     named tensors, the first dimension of each is n
    scheme.logits({name: t[rows] ...}, head)           the teacher's logits of any of these rows [n, V]
    scheme.bytes_per_token(d, V, **params)

hidden [n, d]: the teacher's states after its final norm; head [V, d]. Products run in the head's
dtype: whoever wants to encode in float32 gives a float32 head. `logits` gives the head's dtype back,
but float32 where log-probs were stored, as bf16 would round a tail of many equal numbers one way.

    scheme        parameters      bytes per token         exact
    hidden        dtype           2 d in bf16             for every divergence and temperature,
                                                          of the batches that the cache was written in
    hidden-int8   group           d + 2 d / group         no; the error is small and alike for all
    topk          k, tail, ...    6 k (+ 4 for a bucket)  no; see `encode_topk`
    logits        dtype           2 V in bf16             up to the dtype

Logits are meant up to a constant per token: softmax, and so every divergence, is blind to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdag.losses.cap import capped
from kdag.losses.products import to_logits
from kdag.teacher.sizes import BYTES_PER_TOKEN, GROUP

TAILS = ("bucket", "renormalised")
# The log-prob of no mass: exp(FLOOR / T) is 0 in float32 up to T = 96, and float16 holds it.
FLOOR = -1e4
ENCODE_ROWS = 256  # float32 logits at a time while encoding


@dataclass(frozen=True)
class Scheme:
    encode: Callable  # (hidden [n, d], head [V, d], **params) -> {name: tensor [n, ...]}
    logits: Callable  # (stored, head [V, d]) -> [n, V]
    bytes_per_token: Callable  # (d, V, **params) -> int


def product(hidden, head, cap=None):
    """Logits [n, V] in the head's dtype, under the teacher's soft cap if it has one."""
    return capped(to_logits(hidden.to(head.dtype), head), cap)


def encode_hidden(hidden, head, *, dtype="bfloat16", cap=None):
    """The states as they are: in the teacher's own dtype nothing is lost."""
    return {"hidden": hidden.to(getattr(torch, dtype))}


def hidden_logits(stored, head, cap=None):
    return product(stored["hidden"], head, cap)


def encode_int8(hidden, head, *, group=GROUP, cap=None):
    """int8 codes [n, G group] and float16 scales [n, G], one for every `group` channels of a token.

    A few channels of a final norm are ten times as large as the rest, so that one scale per token
    wastes most of the codes. One scale per channel would have to be known before the first token is
    stored, fits no token well and clips what exceeds it: twice the error of groups of 16 in
    docs/teacher-storage.md, for 11 % fewer bytes. Groups need nothing but the token. Zeros fill the
    last one.
    """
    if group < 1:
        raise ValueError(f"group = {group} is not positive")
    padding = -hidden.shape[1] % group
    groups = torch.nn.functional.pad(hidden.float(), (0, padding)).unflatten(1, (-1, group))
    tiny = torch.finfo(torch.float16).tiny
    scales = (groups.abs().amax(-1) / 127).clamp(min=tiny).to(torch.float16)
    codes = (groups / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
    return {"codes": codes.to(torch.int8).flatten(1), "scales": scales}


def int8_logits(stored, head, cap=None):
    scales = stored["scales"].float()
    groups = stored["codes"].unflatten(1, (scales.shape[1], -1))
    hidden = (groups * scales.unsqueeze(-1)).flatten(1)[:, : head.shape[1]]
    return product(hidden, head, cap)


def encode_topk(hidden, head, *, k, tail="bucket", tail_temperature=1.0, dtype="float16", cap=None):
    """Log-probs [n, k] at temperature 1 of the k likeliest tokens, likeliest first, and their ids [n, k].

    tail "bucket": also one log-prob [n] for every token that was not kept, such that together they
    have the mass that is left at `tail_temperature` (the shape of the tail is lost, its weight there
    is right). At a higher temperature a flat tail weighs too much, the more so the larger V is: give
    the temperature of the training. Where the student has mass on a token that was not kept, rkl
    compares it with the average of the tail.

    tail "renormalised": the tokens that were not kept get FLOOR, which is no mass at any temperature
    up to 96, and the softmax shares out the rest. fkl never looks at them. rkl is the student's mass
    out there times FLOOR: a number that was chosen, not measured, and the gradient's size with it;
    the same holds for symmetric-kl and akl. The skewed ones and jsd stay finite, and push the
    student off everything but k tokens.

    Log-probs lie between 0 and -30, where float16 has 8 times bfloat16's precision at the same bytes.
    The tail's is float32, as its error counts V - k times.
    """
    vocabulary = len(head)
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k = {k} is outside [1, {vocabulary}], the vocabulary")
    if tail not in TAILS:
        raise ValueError(f"unknown tail {tail!r}; known: {', '.join(TAILS)}")
    if not tail_temperature > 0:
        raise ValueError(f"tail_temperature = {tail_temperature} is not positive")
    parts = []
    for rows in hidden.split(ENCODE_ROWS):
        logp = product(rows, head, cap).float().log_softmax(-1)
        values, ids = logp.topk(k, dim=-1)
        values = values.clamp(min=FLOOR).to(getattr(torch, dtype))
        part = {"ids": ids.to(torch.int32), "logp": values}
        if tail == "bucket":
            # Not ln(1 - the mass that is kept), which cancels.
            left = logp.scatter_(1, ids, -torch.inf).div_(tail_temperature).logsumexp(-1)
            each = tail_temperature * (left - math.log(max(vocabulary - k, 1)))
            part["tail"] = each.clamp(min=FLOOR)
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def topk_logits(stored, head, cap=None):
    """Log-probs as logits, float32, under the cap already. Of the head only its height is read."""
    logp = stored["logp"].float()
    logits = logp.new_full((len(logp), len(head)), FLOOR)
    if "tail" in stored:
        logits[:] = stored["tail"].unsqueeze(1)
    return logits.scatter_(1, stored["ids"].long(), logp)


def encode_logits(hidden, head, *, dtype="bfloat16", cap=None):
    return {"logits": product(hidden, head, cap).to(getattr(torch, dtype))}


def logits_logits(stored, head, cap=None):
    """As stored, not a copy; of the head nothing is read."""
    return stored["logits"]


SCHEMES = {
    "hidden": Scheme(encode_hidden, hidden_logits, BYTES_PER_TOKEN["hidden"]),
    "hidden-int8": Scheme(encode_int8, int8_logits, BYTES_PER_TOKEN["hidden-int8"]),
    "topk": Scheme(encode_topk, topk_logits, BYTES_PER_TOKEN["topk"]),
    "logits": Scheme(encode_logits, logits_logits, BYTES_PER_TOKEN["logits"]),
}

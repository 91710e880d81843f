"""Ways to store what the teacher thinks: pure functions of tensors.

    scheme = SCHEMES[name]
    stored = scheme.encode(hidden, head, **params)     named tensors, the first dimension of each is n
    scheme.logits({name: t[rows] ...}, head)           the teacher's logits of any of these rows [n, V];
                                                       with **params too if `scheme.told`
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
    distillkit    k, exact_k, ... (bits of an id) k / 8   no; topk whose log-probs are compressed, see
                                  + 2 exact_k + 24        compressor.py
    sampled       samples,        (bits of an id)         no; an unbiased estimate of the probabilities at one
                  temperature     samples / 8             temperature, see `encode_sampled`

Logits are meant up to a constant per token: softmax, and so every divergence, is blind to it.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdag.losses.cap import capped
from kdag.losses.products import to_logits
from kdag.teacher import bits
from kdag.teacher.compressor import Compressor
from kdag.teacher.sizes import BYTES_PER_TOKEN, GROUP, index_bits

TAILS = ("bucket", "renormalised")
# The log-prob of no mass: exp(FLOOR / T) is 0 in float32 up to T = 96, and float16 holds it.
FLOOR = -1e4
ENCODE_ROWS = 256  # float32 logits at a time while encoding
LEAST_LEFT = 1e-6  # of the mass, to all tokens that were not kept
DRAWN_ROWS = 64  # float64 probabilities at a time while drawing from them


@dataclass(frozen=True)
class Scheme:
    encode: Callable  # (hidden [n, d], head [V, d], **params) -> {name: tensor [n, ...]}
    logits: Callable  # (stored, head [V, d]) -> [n, V]
    bytes_per_token: Callable  # (d, V, **params) -> int
    told: bool = False  # its `logits` take the parameters of `encode`


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
    check_kept(k, vocabulary, tail)
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
    return spread(stored["ids"].long(), stored["logp"].float(), stored.get("tail"), len(head))


def check_kept(k, vocabulary, tail):
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k = {k} is outside [1, {vocabulary}], the vocabulary")
    if tail not in TAILS:
        raise ValueError(f"unknown tail {tail!r}; known: {', '.join(TAILS)}")


def spread(ids, logp, tail, vocabulary):
    """[n, V] of the log-probs [n, k] of ids [n, k]; every other token has the tail's [n], or FLOOR."""
    logits = logp.new_full((len(logp), vocabulary), FLOOR)
    if tail is not None:
        logits[:] = tail.unsqueeze(1)
    return logits.scatter_(1, ids, logp)


def left_over(logp, others):
    """The log-prob [n] of each of the `others` that are not among logp [n, k]: they share what is left of 1.

    At least LEAST_LEFT, as DistillKit has it (lossfuncs/kl.py): rounded log-probs may sum to more than 1.
    """
    kept = logp.double().logsumexp(-1).clamp(max=-LEAST_LEFT)
    each = torch.log(-torch.expm1(kept)) - torch.as_tensor(others, device=logp.device).clamp(min=1).log()
    return each.float().clamp(min=FLOOR)


def encode_logits(hidden, head, *, dtype="bfloat16", cap=None):
    return {"logits": product(hidden, head, cap).to(getattr(torch, dtype))}


def logits_logits(stored, head, cap=None):
    """As stored, not a copy; of the head nothing is read."""
    return stored["logits"]


def finite(hidden, head, cap):
    """Logits [n, V] in float32; ValueError if one is not finite, which what is made of them would hide."""
    logits = product(hidden, head, cap).float()
    if not logits.isfinite().all():
        raise ValueError("the teacher's logits are not finite")
    return logits


def encode_distillkit(hidden, head, *, tail="bucket", cap=None, **settings):
    """DistillKit's bytes of a token, by its names: compressed_logprobs, bytepacked_indices, uint8 [n, bytes].

    settings: a Compressor's. tail: what is made of the tokens that were not kept, as in `encode_topk` at
    temperature 1; it is read off the others when they are read, and takes no bytes.
    """
    compressor, vocabulary = Compressor(**settings), len(head)
    check_kept(compressor.k, vocabulary, tail)
    parts = []
    for rows in hidden.split(ENCODE_ROWS):
        logp, ids = finite(rows, head, cap).log_softmax(-1).topk(compressor.k, dim=-1)
        parts.append((compressor.compress(logp), bits.pack(ids, index_bits(vocabulary))))
    values, ids = (torch.cat(several) for several in zip(*parts, strict=True))
    return {"compressed_logprobs": values, "bytepacked_indices": ids}


def distillkit_logits(stored, head, cap=None, *, tail="bucket", **settings):
    """Log-probs as logits, float32, under the cap already. Of the head only its height is read."""
    compressor, vocabulary = Compressor(**settings), len(head)
    logp = compressor.decompress(stored["compressed_logprobs"])
    ids = bits.unpack(stored["bytepacked_indices"], index_bits(vocabulary), compressor.k)
    left = left_over(logp, vocabulary - compressor.k) if tail == "bucket" else None
    return spread(ids, logp, left, vocabulary)


def encode_sampled(hidden, head, *, samples, temperature=1.0, seed=0, row="", cap=None):
    """Ids of `samples` tokens, drawn with replacement from the teacher's distribution p at `temperature`.

    Random sampling knowledge distillation (arXiv 2503.16870) with p itself as the proposal, the only one
    whose weights, 1 / samples for each draw, sum to 1 whatever was drawn. A token's share of the draws has p
    as its mean, so that what is linear in p is unbiased: the gradient of fkl, q - p, and of ab at alpha = 1.
    The value of fkl is not, as it holds p ln p (it comes out too large), nor is the gradient of another
    divergence, nor p at another temperature.

    row: what the draws are seeded by, next to `seed`: a row's content, so that they depend neither on the
    batch that it is in nor on its neighbours. The ids are packed, in the order in which they were drawn.
    """
    if samples < 1:
        raise ValueError(f"samples = {samples} is not positive")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} is not positive")
    uniform = draws(f"{seed}/{row}", len(hidden), samples).to(hidden.device)
    parts = []
    for rows, drawn in zip(hidden.split(DRAWN_ROWS), uniform.split(DRAWN_ROWS), strict=True):
        cumulative = (finite(rows, head, cap).double() / temperature).softmax(-1).cumsum(-1)
        ids = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
        parts.append(bits.pack(ids.clamp(max=len(head) - 1), index_bits(len(head))))
    return {"ids": torch.cat(parts)}


def draws(key, tokens, samples):
    """Uniform numbers in [0, 1), float64 [tokens, samples] on the CPU: the same for the same key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, samples, generator=generator, dtype=torch.float64)


def sampled_logits(stored, head, cap=None, *, samples, temperature=1.0, seed=0):
    """Logits whose softmax at `temperature` is each token's share of the draws, float32."""
    vocabulary = len(head)
    ids = bits.unpack(stored["ids"], index_bits(vocabulary), samples)
    counts = torch.zeros(len(ids), vocabulary, device=ids.device)
    counts.scatter_add_(1, ids, counts.new_ones(()).expand_as(ids))
    return counts.div_(samples).log_().mul_(temperature).clamp_(min=FLOOR)


SCHEMES = {
    "hidden": Scheme(encode_hidden, hidden_logits, BYTES_PER_TOKEN["hidden"]),
    "hidden-int8": Scheme(encode_int8, int8_logits, BYTES_PER_TOKEN["hidden-int8"]),
    "topk": Scheme(encode_topk, topk_logits, BYTES_PER_TOKEN["topk"]),
    "logits": Scheme(encode_logits, logits_logits, BYTES_PER_TOKEN["logits"]),
    "distillkit": Scheme(encode_distillkit, distillkit_logits, BYTES_PER_TOKEN["distillkit"], told=True),
    "sampled": Scheme(encode_sampled, sampled_logits, BYTES_PER_TOKEN["sampled"], told=True),
}

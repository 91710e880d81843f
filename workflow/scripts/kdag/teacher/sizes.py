"""Bytes per answer token of each way to store the teacher; without torch, for the planner.

d: the width of the hidden states, V: the vocabulary. storage.py says what the ways are.
"""

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
GROUP = 16  # channels that share a scale in hidden-int8
FIDELITY_TOKENS = 8192  # padded, per forward pass while fidelity is measured
TARGET = 4  # of the token that each position predicts, stored next to it


def hidden(d, vocabulary, *, dtype="bfloat16"):
    return d * ITEM[dtype]


def int8(d, vocabulary, *, group=GROUP):
    groups = -(-d // group)
    return groups * group + 2 * groups


def topk(d, vocabulary, *, k, tail="bucket", tail_temperature=1.0, dtype="float16"):
    return k * (4 + ITEM[dtype]) + (4 if tail == "bucket" else 0)


def logits(d, vocabulary, *, dtype="bfloat16"):
    return vocabulary * ITEM[dtype]


def index_bits(vocabulary):
    """Bits of a token's id, packed without a gap."""
    return max(1, (vocabulary - 1).bit_length())


def packed_ids(count, vocabulary):
    return -(-count * index_bits(vocabulary) // 8)


def distillkit(
    d,
    vocabulary,
    *,
    k,
    exact_k,
    polynomial_terms,
    exact_dtype="bfloat16",
    term_dtype="float32",
    residual_bins=(),
    tail="bucket",
    **_,
):
    """The bins being dictionaries; what else a compressor has changes no size."""
    values = exact_k * ITEM[exact_dtype] + len(polynomial_terms) * ITEM[term_dtype]
    for run in residual_bins:
        values += ITEM[run["scale_dtype"]] + -(-run["element_bits"] * run["num_elements"] // 8)
    return values + packed_ids(k, vocabulary)


def sampled(d, vocabulary, *, samples, temperature=1.0, seed=0):
    return packed_ids(samples, vocabulary)


BYTES_PER_TOKEN = {
    "hidden": hidden,
    "hidden-int8": int8,
    "topk": topk,
    "logits": logits,
    "distillkit": distillkit,
    "sampled": sampled,
}

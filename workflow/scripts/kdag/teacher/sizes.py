"""Bytes per answer token of each way to store the teacher; without torch, for the planner.

d: the width of the hidden states, V: the vocabulary. storage.py says what the ways are.
"""

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
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


BYTES_PER_TOKEN = {"hidden": hidden, "hidden-int8": int8, "topk": topk, "logits": logits}

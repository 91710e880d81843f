"""The losses across tokenizers by name, each a file in the folder spans/ next to this module.

A span is a run of the student's tokens and a run of the teacher's that say the same bytes
(data/alignment.py). A file of spans/ holds one loss, per span:

    value(student_logp, teacher_logp, **params) -> [K]
    DISTRIBUTIONS     what it compares: True, what either model holds likely instead of a span, [K, V_s] and
                      [K, V_t]; False, how likely it holds the span itself, [K]

All log-probs are natural, at the temperature already. A distribution of a span of several tokens is `merge`d,
so it sums to the probability of what is fixed of it, 1 where a span is one token. No gradient reaches the
teacher. As in base.py nothing is masked, weighted or averaged here.

This module is also the package of those files, as divergences.py is of its own.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

FOLDER = Path(__file__).with_suffix("")
__path__ = [str(FOLDER)]
NAMES = tuple(sorted(file.stem.replace("_", "-") for file in FOLDER.glob("[a-z]*.py")))
MERGES = ("bayesian", "observed")


@dataclass(frozen=True)
class SpanLoss:
    """One file of spans/, to be called with log-probs."""

    name: str
    value: Callable
    distributions: bool

    def __call__(self, student_logp, teacher_logp, **params):
        """[K], in what the file says. student_logp [K, V_s], teacher_logp [K, V_t]; [K] both without
        `distributions`. ValueError for other shapes."""
        wanted = 2 if self.distributions else 1
        if {student_logp.ndim, teacher_logp.ndim} != {wanted} or len(student_logp) != len(teacher_logp):
            raise ValueError(
                f"{self.name}: student and teacher log-probs must be {'[K, V]' if wanted == 2 else '[K]'} of "
                f"the same K, got {list(student_logp.shape)} and {list(teacher_logp.shape)}"
            )
        dtype = torch.promote_types(student_logp.dtype, torch.float32)
        return self.value(student_logp.to(dtype), teacher_logp.detach().to(dtype), **params)


def load(name: str) -> SpanLoss:
    """The loss `name`; ValueError if there is no such file."""
    if name not in NAMES:
        raise ValueError(f"unknown loss across tokenizers {name!r}; known: {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return SpanLoss(name, module.value, module.DISTRIBUTIONS)

"""Parameters of the losses: names, ranges, defaults. No torch: a config may import it.

PARAMETERS[divergence][parameter] is a Range, and so is SPANS[loss across tokenizers][parameter]; `resolve`
checks what a user wrote and fills in defaults.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A number from low to high; `open` leaves both ends out."""

    low: float
    high: float
    default: float
    open: bool = False

    def __contains__(self, value):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.open:
            return self.low < value < self.high
        return self.low <= value <= self.high

    def __str__(self):
        left, right = "()" if self.open else "[]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


PARAMETERS = {
    "fkl": {},
    "rkl": {},
    "skewed-fkl": {"skew_lambda": Range(0, 1, default=0.1, open=True)},
    "skewed-rkl": {"skew_lambda": Range(0, 1, default=0.1, open=True)},
    "jsd": {"beta": Range(0, 1, default=0.5, open=True)},
    "symmetric-kl": {},
    "total-variation": {},
    "akl": {"mu": Range(0, 1, default=0.5, open=True)},
    "ab": {"alpha": Range(0, 1, default=0.2), "beta": Range(0, 1, default=0.7)},
    "taid": {"taid_t": Range(0, 1, default=0.4)},
}
# Of losses across tokenizers; gold has those of its divergence.
SPANS = {"uld": {}, "gold": {}, "span-likelihood": {"tau": Range(0, 1e6, default=100.0, open=True)}}


def resolve(divergence, params):
    """Checked params of a divergence, or of a loss across tokenizers, with defaults; ValueError says what is
    wrong."""
    known = PARAMETERS | SPANS
    if divergence not in known:
        raise ValueError(f"unknown divergence {divergence!r}; known: {', '.join(PARAMETERS)}")
    ranges = known[divergence]
    for name, value in params.items():
        if name not in ranges:
            known = ", ".join(ranges) or "none"
            raise ValueError(f"{divergence} has no parameter {name!r}; its parameters: {known}")
        if value not in ranges[name]:
            raise ValueError(f"{divergence}: {name} = {value!r} is outside {ranges[name]}")
    return {name: params.get(name, range_.default) for name, range_ in ranges.items()}

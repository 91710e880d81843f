"""DistillKit's compression of the log-probs of the k likeliest tokens: its format, byte for byte.

The format is that of distillkit/compression/{config,monotonic_logprobs}.py of github.com/arcee-ai/DistillKit
(config.py of commit 897bd13), its field names are kept. Of a token's log-probs, likeliest first, lie in a row

    the first exact_k                 in exact_dtype
    coefficients of polynomial_terms  in term_dtype: a least-squares fit of the others, at t = 0, 1, 2, ...
    for each of residual_bins         a scale in scale_dtype, then num_elements of element_bits each: what the
                                      fit leaves, bin after bin from t = 0; beyond the last bin it is lost

With delta_encoding it is the differences of neighbours that are stored, the first as it is; with normalize_t
t runs from 0 to 1. Numbers are little-endian; the bits of a bin fill whole bytes.

The coefficients are fitted in float64. DistillKit fits in the dtype that it is given, float32 from vLLM, and
with its recommended terms (t to t^4, up to 1.5e8) float32 loses the fit: docs/teacher-storage.md has both.
The bytes are of one format, and either side reads the other's.
"""

from dataclasses import dataclass, field

import torch

from kdag.teacher import bits
from kdag.teacher.sizes import ITEM

SPECIAL = {"sqrt": torch.sqrt, "exp": torch.exp}
SMALLEST = 1e-5  # singular values up to it count as 0, as they do there


@dataclass(frozen=True)
class Bin:
    """How one run of residuals is quantised."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    def range(self) -> tuple[int, int]:
        """The least and the greatest number; of one bit -1 and 1, of which `scaled` knows."""
        half = 2 ** (self.element_bits - 1)
        return (0, 1) if self.element_bits == 1 else (-half, half - 1)

    def bytes(self) -> tuple[int, int]:
        return ITEM[self.scale_dtype], -(-self.element_bits * self.num_elements // 8)


@dataclass(frozen=True)
class Compressor:
    """The settings of a file; the defaults are what DistillKit recommends. ValueError if they are none.

    error_diffusion is the writer's business and no part of the format; what is written here is without.
    """

    k: int = 128
    exact_k: int = 16
    exact_dtype: str = "bfloat16"
    polynomial_terms: list | None = field(default_factory=lambda: [0, 1, 2, 3, 4, "sqrt"])
    term_dtype: str = "float32"
    residual_bins: list = field(default_factory=list)
    delta_encoding: bool = False
    error_diffusion: bool = False
    normalize_t: bool = False

    def __post_init__(self):
        bins = [b if isinstance(b, Bin) else Bin(**b) for b in self.residual_bins]
        object.__setattr__(self, "residual_bins", bins)
        object.__setattr__(self, "polynomial_terms", list(self.polynomial_terms or []))
        if not 0 <= self.exact_k <= self.k or self.k < 1:
            raise ValueError(f"exact_k = {self.exact_k} and k = {self.k}: 0 <= exact_k <= k and k >= 1")
        if self.fitted and not (self.polynomial_terms or bins):
            raise ValueError("exact_k < k needs polynomial_terms or residual_bins")
        if sum(b.num_elements for b in bins) > self.fitted:
            raise ValueError("residual_bins hold more than k - exact_k elements")
        if any(not 1 <= b.element_bits <= 64 for b in bins):
            raise ValueError("element_bits is outside [1, 64]")
        unknown = {self.exact_dtype, self.term_dtype, *(b.scale_dtype for b in bins)} - set(ITEM)
        if unknown:
            raise ValueError(f"unknown dtype {sorted(unknown)[0]!r}; known: {', '.join(ITEM)}")
        for term in self.polynomial_terms:
            if term not in SPECIAL and (not isinstance(term, int) or term < 0):
                raise ValueError(f"polynomial_terms: {term!r} is no power and none of {', '.join(SPECIAL)}")
        if not self.basis(getattr(torch, self.term_dtype)).isfinite().all():
            most = self.fitted - 1
            raise ValueError(f"polynomial_terms: {self.term_dtype} cannot hold them up to t = {most}")

    @property
    def fitted(self) -> int:
        """How many log-probs are not stored as they are."""
        return self.k - self.exact_k

    def basis(self, dtype: torch.dtype, device=None) -> torch.Tensor:
        """The terms at each t [fitted, terms]."""
        t = torch.arange(self.fitted, dtype=dtype, device=device)
        if self.normalize_t:
            t = torch.linspace(0, 1, self.fitted, dtype=dtype, device=device)
        terms = [SPECIAL[term](t) if term in SPECIAL else t**term for term in self.polynomial_terms]
        return torch.stack(terms, -1) if terms else t.new_zeros(self.fitted, 0)

    def compress(self, logp: torch.Tensor, fit: torch.dtype = torch.float64) -> torch.Tensor:
        """Log-probs [n, k], likeliest first -> uint8 [n, bytes]. fit: the arithmetic of the fit."""
        if self.error_diffusion:
            raise ValueError("error_diffusion: only read here, not written")
        if logp.shape[-1] != self.k or not logp.isfinite().all():
            raise ValueError(f"log-probs {list(logp.shape)} must be [n, {self.k}] and finite")
        if self.delta_encoding:
            logp = torch.cat([logp[:, :1], logp.diff(dim=-1)], -1)
        exact, rest = logp[:, : self.exact_k], logp[:, self.exact_k :].to(fit)
        chunks = [as_bytes(exact, self.exact_dtype)]
        if self.polynomial_terms:
            coefficients = least_squares(self.basis(fit, logp.device), rest)
            chunks.append(as_bytes(coefficients, self.term_dtype))
            coefficients = coefficients.to(getattr(torch, self.term_dtype))
            rest = rest - self.polynomial(coefficients).to(fit)
        for run in self.residual_bins:
            values, rest = rest[:, : run.num_elements], rest[:, run.num_elements :]
            chunks += quantised(values, run)
        return torch.cat(chunks, -1)

    def polynomial(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[n, terms] -> [n, fitted], in their dtype."""
        return (self.basis(coefficients.dtype, coefficients.device) * coefficients.unsqueeze(-2)).sum(-1)

    def decompress(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n, bytes] -> log-probs [n, k] in float32."""
        widths = [self.exact_k * ITEM[self.exact_dtype], len(self.polynomial_terms) * ITEM[self.term_dtype]]
        widths += [width for run in self.residual_bins for width in run.bytes()]
        if packed.shape[-1] != sum(widths):
            raise ValueError(f"{packed.shape[-1]} bytes per token, and these settings take {sum(widths)}")
        exact, coefficients, *bins = packed.split(widths, -1)
        exact = from_bytes(exact, self.exact_dtype).float()
        rest = exact.new_zeros(len(packed), self.fitted)
        if self.polynomial_terms:
            rest = self.polynomial(from_bytes(coefficients, self.term_dtype)).float()
        start = 0
        for run, scale, numbers in zip(self.residual_bins, bins[::2], bins[1::2], strict=True):
            numbers = bits.unpack(numbers, run.element_bits, run.num_elements).float()
            whole = 2 * numbers - 1 if run.element_bits == 1 else numbers + run.range()[0]
            rest[:, start : start + run.num_elements] += whole * from_bytes(scale, run.scale_dtype).float()
            start += run.num_elements
        logp = torch.cat([exact, rest], -1)
        return logp.cumsum(-1) if self.delta_encoding else logp


def least_squares(basis, values):
    """Coefficients [n, terms] of values [n, t] by the basis [t, terms], by its pseudo-inverse."""
    u, s, vh = torch.linalg.svd(basis, full_matrices=False)
    inverse = torch.where(s > SMALLEST, 1 / s, 0)
    return values @ u * inverse @ vh


def quantised(values, run: Bin):
    """Its scale [n, bytes] and the numbers of values [n, num_elements]: rounded to the nearest."""
    low, high = run.range()
    largest = values.abs().amax(-1, keepdim=True) / (1 if run.element_bits == 1 else -low)
    scale = torch.where(largest == 0, 1, largest).to(getattr(torch, run.scale_dtype))
    numbers = (values / scale.to(values.dtype)).round().clamp(low, high) - low
    return as_bytes(scale, run.scale_dtype), bits.pack(numbers.long(), run.element_bits)


def as_bytes(values, dtype: str):
    """[n, m] -> uint8 [n, m bytes]."""
    return values.to(getattr(torch, dtype)).contiguous().view(torch.uint8)


def from_bytes(packed, dtype: str):
    return packed.contiguous().view(getattr(torch, dtype))

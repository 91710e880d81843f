"""DistillKit's format: bytes that its own program made, read and written; the fit against numpy's."""

import numpy as np
import pytest
import torch

from kdag.teacher import bits
from kdag.teacher.compressor import Compressor
from kdag.teacher.sizes import distillkit, index_bits

LOGP = -torch.tensor(
    [
        [0.5, 2.25, 3.0, 3.5, 4.25, 4.5, 5.0, 5.125, 5.5, 6.0, 6.0, 7.75],
        [0.015625, 4.5, 6.0, 6.25, 8.0, 9.0, 9.5, 9.75, 11.0, 12.5, 13.0, 13.125],
    ]
)
IDS = [[5, 0, 299, 17, 100, 256, 255, 3, 64, 33, 12, 7], [299, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
PACKED_IDS = ["02802561132401fe032008418070", "958040403020140c0704024140b0"]  # of d = 300
BINS = [
    {"scale_dtype": "float16", "element_bits": 5, "num_elements": 3},
    {"scale_dtype": "float32", "element_bits": 1, "num_elements": 4},
]
# Settings; the bytes of both rows, by compress_monotonic_logprobs of LOGP in float64; what
# decompress_monotonic_logprobs makes of the first in float32, to six digits.
PUBLISHED = {
    "recommended": (
        {"exact_k": 4},
        [
            "00bf10c040c060c094ed87c0c4bf2140375190bf6e6c693e9b2e85bcd19bf4bf",
            "80bc90c0c0c0c8c099ebffc0a877923f5e6417bd0c8da5bd80fa153c0adc05c0",
        ],
        [-0.5, -2.25, -3.0, -3.5, -4.247751, -4.547211, -4.842075, -5.285168, -5.573067, -5.738104]
        + [-6.186024, -7.705597],
    ),
    "short of space": (
        {"exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]},
        ["00bf8a6213c0355ab9be3fecadbe", "80bc61158fc0754f2fbff2be33bf"],
        [-0.5, -2.302889, -3.004599, -3.50732, -3.977304, -4.430341, -4.872548, -5.307062, -5.735747]
        + [-6.159817, -6.580116, -6.997256],
    ),
    "of its Qwen3-235B data": (
        {"exact_k": 4, "exact_dtype": "float32", "delta_encoding": True, "polynomial_terms": [0, 1, 2]},
        [
            "000000bf0000e0bf000040bf000000bfabaa4abf0cc3e03e555595bd",
            "000080bc00808fc00000c0bf000080beabaaa8bf8661283eb76ddbbb",
        ],
        [-0.5, -2.25, -3.0, -3.5, -4.291667, -4.717262, -4.922619, -5.053572, -5.255952, -5.675595]
        + [-6.458333, -7.75],
    ),
    "residuals": (
        {"exact_k": 4, "polynomial_terms": [0, 1], "residual_bins": BINS},
        [
            "00bf10c040c060c0555581c07a9ed7beab22034e1886113f10",
            "80bc90c0c0c0c8c05555ffc0188649bf7a237828f03c173f80",
        ],
        [-0.5, -2.25, -3.0, -3.5, -4.250041, -4.501868, -5.001139, -5.873512, -6.294643, -6.715774]
        + [-6.0, -6.989583],
    ),
    "residuals alone": (
        {"exact_k": 5, "polynomial_terms": [], "residual_bins": BINS},
        ["00bf10c040c060c088c0203510000000f84000", "80bc90c0c0c0c8c000c1e03808000000524100"],
        [-0.5, -2.25, -3.0, -3.5, -4.25, -4.484375, -5.125, -5.125, -7.75, -7.75, -7.75, -7.75],
    ),
    "scaled": (
        {"exact_k": 4, "polynomial_terms": [0, 1, "exp"], "normalize_t": True},
        ["00bf10c040c060c09f9fa4bf063c1540ffa046c0", "80bc90c0c0c0c8c07d5f02c143b4bac0d614433e"],
        [-0.5, -2.25, -3.0, -3.5, -4.389698, -4.533186, -4.749863, -5.050969, -5.449468, -5.960318]
        + [-6.60077, -7.390728],
    ),
    "all exact": (
        {"exact_k": 12, "polynomial_terms": None},
        [
            "00bf10c040c060c088c090c0a0c0a4c0b0c0c0c0c0c0f8c0",
            "80bc90c0c0c0c8c000c110c118c11cc130c148c150c152c1",
        ],
        LOGP[0].tolist(),
    ),
}


def of_hex(rows: list[str]) -> torch.Tensor:
    return torch.tensor([list(bytes.fromhex(row)) for row in rows], dtype=torch.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_that_distillkit_wrote_are_read_as_it_reads_them(name):
    settings, packed, expected = PUBLISHED[name]
    found = Compressor(k=12, **settings).decompress(of_hex(packed))
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=0, atol=2e-6)
    assert found.dtype == torch.float32 and found.shape == (2, 12)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_here_are_distillkit_s_bytes(name):
    """But for the last bit of a coefficient, which is the linear algebra library's."""
    settings, packed, _ = PUBLISHED[name]
    compressor = Compressor(k=12, **settings)
    made, theirs = compressor.compress(LOGP), of_hex(packed)
    assert made.shape == theirs.shape
    torch.testing.assert_close(compressor.decompress(made), compressor.decompress(theirs), rtol=0, atol=1e-5)
    exact = len(as_stored(compressor))
    assert torch.equal(made[:, :exact], theirs[:, :exact])
    if not compressor.polynomial_terms:
        assert torch.equal(made, theirs)


def as_stored(compressor) -> bytes:
    return bytes(compressor.exact_k * {"bfloat16": 2, "float32": 4}[compressor.exact_dtype])


def test_ids_are_packed_as_distillkit_packs_them():
    packed = bits.pack(torch.tensor(IDS), index_bits(300))
    assert torch.equal(packed, of_hex(PACKED_IDS))
    assert bits.unpack(packed, index_bits(300), 12).tolist() == IDS


@pytest.mark.parametrize("width", [1, 3, 8, 9, 16, 17, 18, 63])
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_numbers_of_any_width_come_back(width, count):
    generator = torch.Generator().manual_seed(width)
    numbers = torch.randint(2 ** min(width, 62), (5, count), generator=generator)
    numbers[:1] = 2**width - 1
    packed = bits.pack(numbers, width)
    assert packed.shape == (5, -(-width * count // 8)) and packed.dtype == torch.uint8
    text = "".join(f"{n:0{width}b}" for n in numbers[0].tolist())
    assert bytes(packed[0].tolist()) == bytes(
        int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)
    )
    assert torch.equal(bits.unpack(packed, width, count), numbers)
    with pytest.raises(ValueError, match="cannot hold"):
        bits.unpack(packed, width, count + 8)


def test_an_id_has_the_bits_that_distillkit_gives_it():
    """It takes ceil(log2(d)) in float32."""
    vocabularies = torch.arange(2, 2**18 + 2)
    theirs = torch.log2(vocabularies.float()).ceil().int().tolist()
    assert [index_bits(v) for v in vocabularies.tolist()] == theirs


def test_the_fit_is_numpy_s_least_squares():
    generator = torch.Generator().manual_seed(0)
    logp = (torch.randn(20, 5000, generator=generator) * 2.5).log_softmax(-1).topk(128).values
    compressor = Compressor()
    t = np.arange(112, dtype=np.float64)
    basis = np.stack([t**0, t, t**2, t**3, t**4, np.sqrt(t)], -1)
    scale = np.abs(basis).max(0)
    rest = logp[:, 16:].double().numpy()
    best = np.linalg.lstsq(basis / scale, rest.T, rcond=None)[0]
    residual = rest - (basis / scale @ best).T
    found = compressor.decompress(compressor.compress(logp))[:, 16:].double().numpy() - rest
    assert np.abs(found + residual).max() < 1e-3
    assert np.sqrt((found**2).mean()) < 0.05
    lost = compressor.decompress(compressor.compress(logp, fit=torch.float32)) - logp
    assert lost[:, 16:].square().mean().sqrt() > 10 * np.sqrt((found**2).mean()), "float32 loses the fit"


def test_bytes_per_token_are_those_of_its_readme():
    """About 300 bytes as it recommends, about 114 where space is short, for a vocabulary of 128,256."""

    def size(**settings):
        return distillkit(0, 128256, **settings)

    assert size(k=128, exact_k=16, polynomial_terms=[0, 1, 2, 3, 4, "sqrt"]) == 32 + 24 + 272
    assert size(k=50, exact_k=1, polynomial_terms=[0, 1, "sqrt"]) == 2 + 12 + 107
    assert size(k=12, exact_k=4, polynomial_terms=[0, 1], residual_bins=BINS) == 25 + 26


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0, "exact_k": 0}, "k >= 1"),
        ({"polynomial_terms": []}, "needs polynomial_terms or residual_bins"),
        ({"polynomial_terms": [0, "log"]}, "'log' is no power"),
        ({"polynomial_terms": ["exp"]}, "float32 cannot hold them up to t = 111"),
        ({"term_dtype": "float8"}, "unknown dtype 'float8'"),
        ({"k": 20, "residual_bins": BINS}, "more than k - exact_k"),
        ({"residual_bins": [BINS[0] | {"element_bits": 0}]}, "element_bits"),
    ],
)
def test_settings_that_make_no_file_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Compressor(**settings)


def test_bytes_of_other_settings_and_log_probs_that_are_none_are_refused():
    compressor = Compressor(k=12, exact_k=4)
    with pytest.raises(ValueError, match="31 bytes per token, and these settings take 32"):
        compressor.decompress(torch.zeros(1, 31, dtype=torch.uint8))
    for wrong in (LOGP[:, :11], LOGP.clone().fill_(float("nan")), LOGP.clone().fill_(float("-inf"))):
        with pytest.raises(ValueError, match="must be \\[n, 12\\] and finite"):
            compressor.compress(wrong)

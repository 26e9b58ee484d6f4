"""Parameters: the bounds hold for every admitted shape, the digest is stable, bad ones are refused."""

from __future__ import annotations

import math

import pytest

from he_engine.errors import ParameterError
from he_engine.params import NOISE_VARIANCE, Parameters, Profile, Ring, default_stride

SHAPES = [
    (profile, dim, 1 << log_g)
    for profile in Profile
    for dim in (1, 2, 31, 64, 100, 256, 384, 512, 768, 1024, 4096, 16384)
    for log_g in range(8 if profile is Profile.COMPACT else 9)
    if dim >> log_g <= 2048  # thousands of planes: nobody would
]


@pytest.mark.parametrize(("profile", "dim", "stride"), SHAPES)
def test_failure_bound_and_room(profile: Profile, dim: int, stride: int) -> None:
    """An independent check of the inequalities in docs/scheme.md, from the scales alone."""
    p = Parameters(profile=profile, dim=dim, stride=stride)
    n, b, i = p.ring.degree, p.rows_per_block, p.planes
    half = (p.ring.modulus - 1) / 2
    slack = math.sqrt(dim) / 2
    if profile is Profile.EXACT:
        x, y = p.index_scale * p.integer_norm, p.query_scale * p.integer_norm
        room = p.index_scale * p.query_scale / 2
        assert p.index_scale * p.query_scale * (p.integer_norm**2 + 0.5) <= half
        assert p.quantiser + slack <= p.integer_norm
    else:
        x, y = p.index_scale + slack, p.query_scale + slack
        room = half - x * y
    product = NOISE_VARIANCE * ((y + 21 * math.sqrt(n * i)) ** 2 + b * x**2)
    hint = n * 2 / 3 * 4.0 ** (p.hint_drop_bits - 1) if p.hint_drop_bits else 0.0  # t·δ, |δ| ≤ 2^(bits−1)
    assert hint <= product / 8
    assert 4 * hint > product / 8, "one bit more would be too much"
    proxy = product + hint
    assert proxy <= p.noise_bound(x, y) ** 2 * (1 + 1e-12)
    assert 1 <= p.hint_drop_bits < p.ring.modulus.bit_length()
    log2_failure = 1 - room**2 / (2 * proxy) / math.log(2)
    assert log2_failure <= -128
    assert x < 2**31 - 64, "encoded rows fit int32 with their noise"
    assert y < 2**40


def test_default_strides_keep_queries_small() -> None:
    for dim in (64, 128, 256, 384, 512, 768, 1024):
        compact = Parameters.choose("compact", dim)
        exact = Parameters.choose("exact", dim)
        assert 4 * compact.block_words <= 300_000
        assert 4 * exact.block_words <= 600_000
    assert default_stride(Profile.COMPACT, 512) == 16
    assert default_stride(Profile.EXACT, 512) == 32


def test_hints_are_small() -> None:
    """Bytes a row of a full block, beside 4·P·g unrounded; and what the index of ICD-10-CM may cost in precision."""
    bytes_a_row = {}
    for profile in Profile:
        p = Parameters.choose(profile, 512)
        width = p.ring.modulus.bit_length() - p.hint_drop_bits
        assert p.hint_bytes_per_block * 8 == p.ring.degree * width
        bytes_a_row[profile] = p.hint_bytes_per_block / p.rows_per_block
    assert bytes_a_row == {Profile.EXACT: 136, Profile.COMPACT: 36, Profile.PRECISE: 136}
    icd = Parameters(profile=Profile.COMPACT, dim=256, stride=8)
    assert icd.score_error_std <= 6e-4
    without = replace_drop_bits(icd, 0)
    assert 1 < icd.score_error_std / without.score_error_std < 1.03, "what rounding the hint costs"


def replace_drop_bits(p: Parameters, bits: int) -> Parameters:
    """The same scales with another κ."""
    other = Parameters(profile=p.profile, dim=p.dim, stride=p.stride)
    other.__dict__["hint_drop_bits"] = bits  # where cached_property keeps it
    return other


def test_ternary_is_sub_gaussian_with_its_variance() -> None:
    """E exp(λt) ≤ exp(λ²/3), term by term: (2/3)/(2k)! ≤ 1/(3^k·k!), with equality for k = 1."""
    for k in range(1, 200):
        assert 2 * 3 ** (k - 1) * math.factorial(k) <= math.factorial(2 * k)
    assert 2 * 3**0 * math.factorial(1) == math.factorial(2)


def test_digest_is_stable() -> None:
    """A change of any derived number would orphan every stored collection."""
    digests = {p: Parameters.choose(p, 256).digest.hex()[:16] for p in ("exact", "compact", "precise")}
    assert digests == {"exact": "af7f31c787a99abc", "compact": "bc84833849f20c89", "precise": "091fd4eb1374279d"}
    assert Parameters.choose("exact", 256).digest != Parameters.choose("exact", 255).digest
    p = Parameters.choose("compact", 256)
    assert replace_drop_bits(p, p.hint_drop_bits).digest == p.digest
    assert replace_drop_bits(p, p.hint_drop_bits - 1).digest != p.digest


@pytest.mark.parametrize(
    ("profile", "dim", "stride"),
    [
        ("exact", 0, None),
        ("exact", 16385, None),
        ("exact", 8, 3),
        ("exact", 8, 512),
        ("compact", 8, 256),
        ("best", 8, None),
    ],
)
def test_bad_parameters(profile: str, dim: int, stride: int | None) -> None:
    with pytest.raises(ParameterError, match=r"got .* expected"):
        Parameters.choose(profile, dim, stride)


def test_bad_rings() -> None:
    with pytest.raises(ParameterError, match="primes"):
        Ring(log_n=11, primes=(2147389439,), roots=(1815039,))
    with pytest.raises(ParameterError, match="roots"):
        Ring(log_n=11, primes=(2147389441,), roots=(3,))

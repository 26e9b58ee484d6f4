"""The security table against an independent estimate, and the gate that reads it.

The estimate is the primal attack of 2016 and nothing else: Kannan's embedding after Bai and Galbraith, the geometric
series assumption, one call of an SVP oracle at 2^(0.292 β) or 2^(0.265 β). The table takes the minimum over that and
the dual-hybrid attack, which is some 5 to 7 bits cheaper on these rings; so the estimate lies above it, by little.
"""

from __future__ import annotations

import math

import pytest

from he_engine.errors import ParameterError
from he_engine.params import ETA, NOISE_VARIANCE, RINGS, Profile
from he_engine.security import MINIMUM_BITS, TABLE, require_secure

CLASSICAL, QUANTUM = 0.292, 0.265  # bits of one SVP call per unit of block size β
SECRETS_BITS = 52  # log2 of the secrets that may share one public polynomial
TERNARY_VARIANCE = 2 / 3
DUAL_GAIN_BITS = 8  # how far the table may lie below the primal attack


def log2_delta(beta: int) -> float:
    """log2 of the root Hermite factor of BKZ-β: δ = ((πβ)^(1/β)·β/(2πe))^(1/(2(β − 1))), for β ≥ 50."""
    return math.log2((math.pi * beta) ** (1 / beta) * beta / (2 * math.pi * math.e)) / (2 * (beta - 1))


def primal_block_size(
    n: int, log2_q: float, secret_variance: float, error_variance: float, samples: int = 1 << 20
) -> int:
    """The smallest β with which the primal attack succeeds, over every number m ≤ `samples` of samples.

    The lattice holds (ξs, e, 1), ξ = σ_e/σ_s, of dimension D = m + n + 1 and volume q^m·ξ^n; success when
    σ_e·√β ≤ δ^(2β−D−1)·q^(m/D)·ξ^(n/D). The right side is largest at D² = ((n + 1)·log q − n·log ξ)/log δ.
    """
    log2_error = math.log2(error_variance) / 2
    log2_xi = log2_error - math.log2(secret_variance) / 2
    for beta in range(50, 4 * n):
        step = log2_delta(beta)
        best = round(math.sqrt(((n + 1) * log2_q - n * log2_xi) / step))
        dimension = min(max(best, n + 2), n + 1 + samples)
        log2_volume = (dimension - n - 1) * log2_q + n * log2_xi
        if log2_error + math.log2(beta) / 2 <= (2 * beta - dimension - 1) * step + log2_volume / dimension:
            return beta
    raise AssertionError("no block size succeeds")


@pytest.mark.parametrize(
    ("n", "variance", "beta"),
    # ML-KEM-512 (η = 3) and ML-KEM-768 (η = 2), rounding ignored, at most n samples: the block sizes of the
    # lattice estimator's rough uSVP figures, printed in its documentation and in its authors' slides.
    [(512, 1.5, 406), (768, 1.0, 624)],
)
def test_the_estimate_reproduces_published_figures(n: int, variance: float, beta: int) -> None:
    assert primal_block_size(n, math.log2(3329), variance, variance, samples=n) == beta


@pytest.mark.parametrize("profile", Profile)
def test_the_table_agrees_with_the_primal_attack(profile: Profile) -> None:
    ring = RINGS[profile]
    row = require_secure(ring.log_n, ring.modulus)
    beta = primal_block_size(ring.degree, math.log2(ring.modulus), TERNARY_VARIANCE, NOISE_VARIANCE)
    for figure, exponent in ((row.core_svp_classical, CLASSICAL), (row.core_svp_quantum, QUANTUM)):
        assert figure <= exponent * beta <= figure + DUAL_GAIN_BITS


def test_rows_are_consistent() -> None:
    assert ETA == 21, "the table was computed for this noise"
    for row in TABLE:
        assert row.multi_target_core_svp_quantum == row.core_svp_quantum - SECRETS_BITS >= MINIMUM_BITS
        assert row.core_svp_quantum < row.core_svp_classical < row.matzov


@pytest.mark.parametrize("profile", Profile)
def test_every_profile_has_a_secure_ring_of_primes(profile: Profile) -> None:
    ring = RINGS[profile]
    row = require_secure(ring.log_n, ring.modulus)
    assert row.log_n == ring.log_n
    assert ring.modulus < 1 << row.max_modulus_bits
    for q, psi in zip(ring.primes, ring.roots, strict=True):
        assert all(q % divisor for divisor in range(2, math.isqrt(q) + 1))
        powers = (pow(psi, odd, q) for odd in range(1, 2 * ring.degree, 2))  # every primitive 2N-th root
        assert min(powers) == psi


@pytest.mark.parametrize(
    ("log_n", "modulus"),
    [
        (11, RINGS[Profile.EXACT].modulus),  # N = 2048 with the two primes of `exact`
        (11, 1 << 54),  # N = 2048 with SEAL's largest modulus: 128 bits for one secret, not for 2^52
        (11, (1 << 31) + 1),
        (12, 3 << 61),
        (10, 12289),
        (13, RINGS[Profile.EXACT].modulus),
    ],
)
def test_the_gate_refuses(log_n: int, modulus: int) -> None:
    with pytest.raises(ParameterError, match=rf"N=2\^{log_n} with a \d+-bit q"):
        require_secure(log_n, modulus)


@pytest.mark.parametrize("log2_q", [54.0, math.log2(RINGS[Profile.EXACT].modulus)])
def test_what_the_gate_refuses_at_2048_is_weak(log2_q: float) -> None:
    beta = primal_block_size(2048, log2_q, TERNARY_VARIANCE, NOISE_VARIANCE)
    assert QUANTUM * beta - SECRETS_BITS < MINIMUM_BITS / 2

"""The security table: which ring and modulus may be used, and what the lattice estimator says of each.

Figures: malb/lattice-estimator at commit 27a581b, n = N, the true q, centred binomial noise with η = 21
(σ = 3.24), uniform ternary secrets, minimum over uSVP and dual-hybrid attacks. One public polynomial a serves
many independent secrets (multi-secret RLWE); the hybrid argument over at most 2^52 secrets costs up to
52 bits, so the gate looks at the figure *after* that loss, in the quantum core-SVP model.
"""

from __future__ import annotations

from dataclasses import dataclass

from he_engine.errors import ParameterError

MINIMUM_BITS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityEstimate:
    """Bits of security of one ring; `multi_target` figures are after 2^52 secrets under one a."""

    log_n: int  #: log2 of the ring degree
    max_modulus_bits: int  #: the estimate holds for every q < 2**max_modulus_bits
    matzov: int  #: classical gates, MATZOV nearest-neighbour model
    core_svp_classical: int  #: 2^(0.292 β)
    core_svp_quantum: int  #: 2^(0.265 β)
    multi_target_core_svp_quantum: int  #: what the gate reads


TABLE = (
    SecurityEstimate(
        log_n=11,
        max_modulus_bits=31,
        matzov=226,
        core_svp_classical=203,
        core_svp_quantum=185,
        multi_target_core_svp_quantum=133,
    ),
    SecurityEstimate(
        log_n=12,
        max_modulus_bits=62,
        matzov=225,
        core_svp_classical=202,
        core_svp_quantum=184,
        multi_target_core_svp_quantum=132,
    ),
)


def require_secure(log_n: int, modulus: int) -> SecurityEstimate:
    """The estimate that covers (N = 2**log_n, q = modulus).

    Raises ParameterError where no row of the table covers it, or where the quantum core-SVP figure after
    the multi-target loss is under 128 bits.
    """
    if modulus < 2:
        raise ParameterError(f"modulus: got {modulus}, expected at least 2")
    bits = (modulus - 1).bit_length()
    for row in TABLE:
        if row.log_n == log_n and bits <= row.max_modulus_bits:
            if row.multi_target_core_svp_quantum >= MINIMUM_BITS:
                return row
            break
    known = ", ".join(f"N=2^{r.log_n} with q < 2^{r.max_modulus_bits}" for r in TABLE)
    raise ParameterError(
        f"ring: got N=2^{log_n} with a {bits}-bit q, which is not known to reach {MINIMUM_BITS} bits; "
        f"expected one of: {known}"
    )

"""Parameters of one collection: the ring, the layout and the scales, all derived from (profile, dim, stride).

Everything here is public. Two sides that agree on `Parameters.digest` agree on every number below.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from he_engine.errors import ParameterError
from he_engine.security import SecurityEstimate, require_secure

ETA = 21  #: e is centred binomial: the difference of two sums of η fair bits
NOISE_VARIANCE = ETA / 2  #: σ² (σ = 3.24); the binomial is also sub-Gaussian with exactly this proxy
TERNARY_VARIANCE = 2 / 3  #: of a coefficient of t; its sub-Gaussian proxy too
TAIL = 13.5  #: scores stay within TAIL standard deviations, but for 2·exp(−TAIL²/2) < 2^-130
HINT_SHARE = 1 / 8  #: of the noise proxy of everything else: what the rounding of hints may add to it
TILE = 16  #: coefficients stored side by side: one 64-byte cache line of uint32
MAX_DIM = 16384


class Profile(StrEnum):
    """What a score is, and who may see it (docs/scheme.md)."""

    EXACT = "exact"  #: the exact integer inner product of quantised vectors; safe to show
    COMPACT = "compact"  #: approximate, half the bytes; key holders only
    PRECISE = "precise"  #: approximate to about 1e-8; key holders only


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """R_q = Z[X]/(X^N + 1, q), q = Π q_j, NTT-friendly."""

    log_n: int  #: N = 2**log_n
    primes: tuple[int, ...]  #: q_j ≡ 1 (mod 2N), 2^30 < q_j < 2^31
    roots: tuple[int, ...]  #: ψ_j, the smallest primitive 2N-th root of unity mod q_j (SEAL's choice)

    def __post_init__(self) -> None:
        for q, psi in zip(self.primes, self.roots, strict=True):
            if not (1 << 30) < q < (1 << 31) or q % (2 << self.log_n) != 1:
                raise ParameterError(f"primes: got {q}, expected 2^30 < q < 2^31 and q ≡ 1 mod {2 << self.log_n}")
            if pow(psi, 1 << self.log_n, q) != q - 1:
                raise ParameterError(f"roots: got {psi}, not a primitive {2 << self.log_n}-th root mod {q}")

    @property
    def degree(self) -> int:
        """N."""
        return 1 << self.log_n

    @property
    def modulus(self) -> int:
        """q = Π q_j."""
        return math.prod(self.primes)


_RING_2048 = Ring(log_n=11, primes=(2147389441,), roots=(1815039,))
_RING_4096 = Ring(log_n=12, primes=(2147377153, 2147352577), roots=(53116, 1689795))
RINGS = {Profile.EXACT: _RING_4096, Profile.COMPACT: _RING_2048, Profile.PRECISE: _RING_4096}
_DEFAULT_PLANES = {Profile.EXACT: 16, Profile.COMPACT: 32, Profile.PRECISE: 16}


def default_stride(profile: Profile, dim: int) -> int:
    """The stride that makes a query about 256 KiB (`compact`) or 512 KiB; half of that to all of it, by dimension.

    I = dim/g planes is then 32 or 16, and the stored hint about 1/57 or 1/30 of the index.
    """
    wanted = 1 << max(0, math.ceil(math.log2(dim / _DEFAULT_PLANES[profile])))
    return min(wanted, max_stride(RINGS[profile]))


def max_stride(ring: Ring) -> int:
    """At least 16 rows a block."""
    return ring.degree // 16


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All public numbers of a collection.

    N = 2^log_n, I = ⌈dim/stride⌉ planes, B = N/stride rows a block. Raises ParameterError for a dimension
    outside [1, 16384], a stride that is no power of two in [1, N/16], or an insecure ring.
    """

    profile: Profile
    dim: int  #: vector dimension d
    stride: int  #: g

    def __post_init__(self) -> None:
        if not isinstance(self.profile, Profile):
            raise ParameterError(f"profile: got {self.profile!r}, expected a Profile")
        if not 1 <= self.dim <= MAX_DIM:
            raise ParameterError(f"dim: got {self.dim}, expected 1 to {MAX_DIM}")
        limit = max_stride(self.ring)
        if self.stride < 1 or self.stride & (self.stride - 1) or self.stride > limit:
            raise ParameterError(f"stride: got {self.stride}, expected a power of two from 1 to {limit}")
        if self.failure_bits < 128:
            raise ParameterError(f"failure bound: got 2^-{self.failure_bits:.1f} a score, expected at most 2^-128")
        self.security  # noqa: B018  (raises under 128 bits)

    @classmethod
    def choose(cls, profile: Profile | str, dim: int, stride: int | None = None) -> Parameters:
        """Parameters with the default stride where none is given. Raises ParameterError."""
        try:
            profile = Profile(profile)
        except ValueError:
            names = ", ".join(p.value for p in Profile)
            raise ParameterError(f"profile: got {profile!r}, expected one of {names}") from None
        if type(dim) is not int or not 1 <= dim <= MAX_DIM:
            raise ParameterError(f"dim: got {dim!r}, expected an integer from 1 to {MAX_DIM}")
        if stride is not None and type(stride) is not int:
            raise ParameterError(f"stride: got {stride!r}, expected a power of two")
        return cls(profile=profile, dim=dim, stride=default_stride(profile, dim) if stride is None else stride)

    # ---- ring and layout -------------------------------------------------------------------------------
    @property
    def ring(self) -> Ring:
        return RINGS[self.profile]

    @cached_property
    def security(self) -> SecurityEstimate:
        return require_secure(self.ring.log_n, self.ring.modulus)

    @property
    def planes(self) -> int:
        """I = ⌈dim/stride⌉."""
        return -(-self.dim // self.stride)

    @property
    def rows_per_block(self) -> int:
        """B = N/stride."""
        return self.ring.degree // self.stride

    @property
    def block_words(self) -> int:
        """uint32 words in one index block, and in one query: P·I·N."""
        return len(self.ring.primes) * self.planes * self.ring.degree

    def blocks_for(self, rows: int) -> int:
        return -(-rows // self.rows_per_block)

    # ---- scales ----------------------------------------------------------------------------------------
    @cached_property
    def integer_norm(self) -> int:
        """`exact`: Q, the largest Euclidean norm of a quantised vector. 0 for the approximate profiles.

        The largest Q for which some Δ_x makes both hold (Δ_y = √B·Δ_x):
            rounding     Δ_xΔ_y/2 ≥ TAIL · noise(Q)
            no wrap      Δ_xΔ_y·(Q² + 1/2) ≤ (q − 1)/2
        """
        if self.profile is not Profile.EXACT:
            return 0
        low, high = 1, 1 << 16
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exact_scales(middle) else (low, middle)
        return low

    def _exact_scales(self, norm: int) -> tuple[int, int] | None:
        """The smallest (Δ_x, Δ_y) that round correctly for quantised norms ≤ `norm`; None if they wrap."""
        spread = math.sqrt(self.rows_per_block)
        low, high = 0, 1 << 31
        while high - low > 1:
            middle = (low + high) // 2
            query = math.floor(spread * middle)
            enough = middle * query / 2 >= TAIL * self.noise_bound(middle * norm, query * norm)
            low, high = (low, middle) if enough else (middle, high)
        index, query = high, math.floor(spread * high)
        fits = index * query * (2 * norm * norm + 1) <= self.ring.modulus - 1
        return (index, query) if fits else None

    @cached_property
    def _scales(self) -> tuple[int, int]:
        if self.profile is Profile.EXACT:
            scales = self._exact_scales(self.integer_norm)
            assert scales is not None
            return scales
        spread, slack = math.sqrt(self.rows_per_block), math.sqrt(self.dim) / 2
        low, high = 1, 1 << 31
        while high - low > 1:
            middle = (low + high) // 2
            x, y = middle + slack, math.floor(spread * middle) + slack
            fits = x * y + TAIL * self.noise_bound(x, y) <= (self.ring.modulus - 1) / 2
            low, high = (middle, high) if fits else (low, middle)
        return low, math.floor(spread * low)

    @property
    def index_scale(self) -> int:
        """Δ_x."""
        return self._scales[0]

    @property
    def query_scale(self) -> int:
        """Δ_y ≈ √B·Δ_x: both halves of the noise are then equal."""
        return self._scales[1]

    @cached_property
    def quantiser(self) -> int:
        """`exact`: S; a vector of norm ≤ 1 is quantised as ⌊S·x⌉, whose norm is ≤ S + √d/2 ≤ Q."""
        if self.profile is not Profile.EXACT:
            return 0
        return self.integer_norm - math.ceil(math.sqrt(self.dim) / 2)

    # ---- precision -------------------------------------------------------------------------------------
    def _product_proxy(self, index_norm: float, query_norm: float) -> float:
        """Sub-Gaussian proxy of Σ e·(y + e') + v·e' at one score position: σ²·[(‖y‖ + η√(N·I))² + B·‖v‖²]."""
        worst_query = query_norm + ETA * math.sqrt(self.ring.degree * self.planes)
        return NOISE_VARIANCE * (worst_query**2 + self.rows_per_block * index_norm**2)

    def noise_bound(self, index_norm: float, query_norm: float) -> float:
        """Sub-Gaussian parameter of the noise Σ e·(y + e') + v·e' − t·δ at one score position.

        √((1 + 1/8)·σ²·[(‖y‖ + η√(N·I))² + B·‖v‖²]) for rows of encoded norm ‖v‖ ≤ index_norm and a query of
        encoded norm ‖y‖ ≤ query_norm. The 1/8 is the room that `hint_drop_bits` may use. Derived in
        docs/scheme.md: condition on all but t, then on e' (each |e'| ≤ η), then on nothing.
        """
        return math.sqrt((1 + HINT_SHARE) * self._product_proxy(index_norm, query_norm))

    @property
    def _largest_norms(self) -> tuple[float, float]:
        """Bounds on ‖x̂‖ and ‖ŷ‖ as encoded: Δ·Q, or Δ + √d/2."""
        if self.profile is Profile.EXACT:
            return self.index_scale * self.integer_norm, self.query_scale * self.integer_norm
        slack = math.sqrt(self.dim) / 2
        return self.index_scale + slack, self.query_scale + slack

    @cached_property
    def hint_drop_bits(self) -> int:
        """κ: stored hints are rounded to multiples of 2^κ, |δ| ≤ 2^(κ−1); 0 where that would be too much.

        The largest κ for which the proxy of t·δ is within its share: N·(2/3)·4^(κ−1) ≤ 1/8 of the rest. The
        scales come first, from a bound that has this share in it already, so nothing is circular.
        """
        room = HINT_SHARE * self._product_proxy(*self._largest_norms)
        bits = 0
        while self.ring.degree * TERNARY_VARIANCE * 4.0**bits <= room:
            bits += 1
        return bits

    @property
    def hint_bytes_per_block(self) -> int:
        """N·(bits(q) − κ)/8: the coefficients of H, bit-packed."""
        return self.ring.degree * (self.ring.modulus.bit_length() - self.hint_drop_bits) // 8

    @cached_property
    def failure_bits(self) -> float:
        """−log2 of the bound on the probability that one score of `exact` rounds wrongly, or that one of
        the others wraps: 2·exp(−τ²/2s²), s = noise_bound, τ = the room that the scales leave."""
        x, y = self._largest_norms
        if self.profile is Profile.EXACT:
            room = self.index_scale * self.query_scale / 2
        else:
            room = (self.ring.modulus - 1) / 2 - x * y
        noise = self.noise_bound(x, y)
        return (room / noise) ** 2 / (2 * math.log(2)) - 1

    @property
    def score_error_std(self) -> float:
        """Standard deviation of (score − float score) for unit vectors.

        `compact`, `precise`: √((σ²+1/12)/Δ_x² + (σ²·B+1/12)/Δ_y² + N·(2/3)·(4^κ/12)/(Δ_xΔ_y)²), the last term
        that of t·δ, absent where κ = 0. `exact`: quantisation alone, √(1/6)/S.
        """
        if self.profile is Profile.EXACT:
            return math.sqrt(1 / 6) / self.quantiser
        rounding = 4.0**self.hint_drop_bits / 12 if self.hint_drop_bits else 0.0
        return math.sqrt(
            (NOISE_VARIANCE + 1 / 12) / self.index_scale**2
            + (NOISE_VARIANCE * self.rows_per_block + 1 / 12) / self.query_scale**2
            + self.ring.degree * TERNARY_VARIANCE * rounding / (self.index_scale * self.query_scale) ** 2
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over every public number: what both sides compare before any arithmetic."""
        ring = self.ring
        fields = (
            "hesearch parameters 2", self.profile.value, self.dim, self.stride, ring.log_n, *ring.primes,
            *ring.roots, ETA, TILE, self.index_scale, self.query_scale, self.quantiser, self.hint_drop_bits,
        )  # fmt: skip
        return hashlib.sha256("\x00".join(map(str, fields)).encode()).digest()

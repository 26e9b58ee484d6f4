"""The key holder's kernels: transforms, encryption, the sums of verification, recovery.

Shapes: K blocks, P primes q_p, N = 2^log_n, I planes, g = stride, B = N/g rows a block, m checks. A stack
(P, N/16, I, 16) holds slot 16·t + l of plane i mod q_p at [p, t, i, l]. NTT slots are in bit-reversed order: slot j
holds the value at ψ^(2·brv(j) + 1). `naive.py` states all of it in Python integers.

Every array is C-contiguous and of exactly the type and shape named; residues are in [0, q_p). A wrong type or shape
raises ValueError ("rows: got shape …, expected …"), what is no array or may not be written to raises TypeError, and
no output is touched. Kernels are immutable, may be shared by threads, and release the GIL. No branch and no address
depends on a value; buffers of secrets inside a call are erased before they are freed (arrays passed in are not).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def targets() -> list[str]:
    """The instruction sets that this CPU can run, best first, out of avx512, avx2, neon and portable."""

class ClientKernel:
    """One ring and one layout. log_n from 4 to 15; at least one prime 2^30 < q_p < 2^31, q_p ≡ 1 mod 2N; for each a
    primitive 2N-th root of unity ψ_p; stride a power of two from 1 to N/16; planes from 1 to 65536; target one of
    `targets()`, or "" for the best. Raises ValueError."""

    def __init__(
        self,
        log_n: int,
        primes: Sequence[int],
        roots: Sequence[int],
        stride: int,
        planes: int,
        target: str = "",
    ) -> None: ...
    @property
    def target(self) -> str:
        """The instruction set in use."""

    def forward(self, polys: NDArray[np.uint32]) -> None:
        """In place, (K, P, N): coefficients → NTT slots."""

    def inverse(self, polys: NDArray[np.uint32]) -> None:
        """In place, (K, P, N): NTT slots → coefficients."""

    def fold(self, polys: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """(K, P, N) → (K, P, B): the sum of the g adjacent slots that share x^g, mod q_p."""

    def inverse_decimated(self, folded: NDArray[np.uint32]) -> None:
        """In place, (K, P, B): folded slots → the coefficients at X^(r·g), r < B, as `inverse` would give them."""

    def expand_secrets(self, keystream: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """(K, N/4) words → (K, P, N): uniform ternary polynomials in the NTT domain.

        Four coefficients from each word w: four times the digit ⌊3w/2^64⌋ − 1, then w ← 3w mod 2^64."""

    def expand_weights(self, keystream: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """(K, m, P, B) words w → residues ⌊w·q_p/2^64⌋, same shape."""

    def encrypt_blocks(
        self,
        rows: NDArray[np.int32],
        noise: NDArray[np.uint64],
        secrets: NDArray[np.uint32],
        index_public: NDArray[np.uint32],
        query_public: NDArray[np.uint32],
        weights: NDArray[np.uint32],
        blocks: NDArray[np.uint32],
        hint: NDArray[np.uint32],
        fingerprint: NDArray[np.uint32],
    ) -> None:
        """b_i = a_i·s + NTT(e_i + v_i), H = Σ_i b_i·a'_i, and F_i[j] += b_i[j]·w[⌊j/g⌋], for each block.

        rows (K, B, I·g), |·| < 2^31 − 64: coordinate i·g + u of row r sits at X^(r·g + u) of plane i. noise
        (K, I, N): e = popcount(bits 0..20) − popcount(bits 21..41) of each word. secrets s (K, P, N), NTT domain.
        index_public a and query_public a': stacks. weights w (K, m, P, B). Out: blocks (K, stack), hint (K, P, N);
        in and out: fingerprint (m, stack).
        """

    def encrypt_query(
        self,
        query: NDArray[np.int64],
        keystream: NDArray[np.uint64],
        index_public: NDArray[np.uint32],
        query_public: NDArray[np.uint32],
        ciphertext: NDArray[np.uint32],
        secret: NDArray[np.uint32],
        mask: NDArray[np.uint32],
    ) -> None:
        """c_i = a'_i·t + NTT(e'_i + y_i) and z = Σ_i a_i·(c_i − a'_i·t).

        query (I·g,), any int64: coordinate i·g + u at X^(−u) = −X^(N−u) of plane i. keystream (N/4 + I·N,): the
        secret t, then the errors e'. Out: ciphertext (stack), secret t (P, N), mask z (P, N).
        """

    def weighted_sum(self, weights: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """weights (K, m, P, L), values (K, P, L), any L → (m, P): Σ_k Σ_l w[k,c,p,l]·x[k,p,l] mod q_p."""

    def recover(
        self,
        answers: NDArray[np.uint32],
        hints: NDArray[np.uint32],
        secrets: NDArray[np.uint32],
        secret: NDArray[np.uint32],
        mask: NDArray[np.uint32],
    ) -> NDArray[np.int64]:
        """T − s·z − t·H at the score positions, lifted by CRT to [−q/2, q/2): (K, B).

        answers T (K, P, B), hints H (K, P, N), secrets s (K, P, N), secret t (P, N), mask z (P, N). Raises
        ValueError where P > 2: a score would not fit an int64.
        """

    def pack_hint(self, hint: NDArray[np.uint32], drop_bits: int) -> NDArray[np.uint8]:
        """(K, P, N), NTT domain → (K, N·L/8), L = bits(q) − κ: each coefficient h of H, lifted to [0, q), in L bits.

        Stored is v = (h + 2^(κ−1)) >> κ or, where that is ⌈q/2^κ⌉, 0; h itself for κ = 0. So |v·2^κ − h| ≤ 2^(κ−1)
        modulo q. Little-endian: v of coefficient j at bits j·L to j·L + L − 1 of its block. drop_bits κ from 0 to
        bits(q) − 1. Raises ValueError also where P > 2: a coefficient would not fit 64 bits.
        """

    def unpack_hint(self, packed: NDArray[np.uint8], drop_bits: int) -> NDArray[np.uint32]:
        """(K, N·L/8) → (K, P, N): the polynomials of coefficients v·2^κ, NTT domain.

        Raises ValueError where P > 2, and where v ≥ ⌈q/2^κ⌉: each polynomial has one packed form.
        """

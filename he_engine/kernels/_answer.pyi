"""The server's kernel: sums of products of residues. No key, no transform, nothing that decrypts.

Shapes: K blocks, Q queries, P primes q_p, N = 2^log_n, I planes, g = stride, B = N/g scores a block. A stack
(P, N/16, I, 16) holds slot 16·t + l of plane i mod q_p at [p, t, i, l]. `naive.py` states the same in Python.

Every array is C-contiguous and of exactly the type and shape named. Anything else raises ValueError ("blocks: got
shape …, expected …"), what is no array or may not be written to raises TypeError, and no output is touched.
Kernels are immutable, may be shared by threads, and release the GIL.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class ReadFault(OSError):
    """A page of a mapped file could not be read: the disk failed, or the file has become shorter."""

def targets() -> list[str]:
    """The instruction sets that this CPU can run, best first, out of avx512, avx2, neon and portable."""

class AnswerKernel:
    """One ring and one layout. log_n from 4 to 15; at least one odd 2^30 < q_p < 2^31; stride a power of two from 1
    to N/16; planes from 1 to 65536; target one of `targets()`, or "" for the best. Raises ValueError."""

    def __init__(self, log_n: int, primes: Sequence[int], stride: int, planes: int, target: str = "") -> None: ...
    @property
    def target(self) -> str:
        """The instruction set in use."""

    def answer(
        self,
        blocks: NDArray[np.uint32],
        queries: Sequence[NDArray[np.uint32]] | NDArray[np.uint32],
        out: NDArray[np.uint32],
    ) -> None:
        """out[a, k, p, r] = Σ_{j=rg}^{rg+g−1} Σ_i blocks[k]_i[j]·queries[a]_i[j] mod q_p.

        blocks (K, P, N/16, I, 16) and Q queries (P, N/16, I, 16), each wherever it lies, residues in [0, q_p), may be
        read-only, and mapped from a file; out (Q, K, P, B). A word ≥ q_p makes the result meaningless, never unsafe:
        see `first_noncanonical`. Blocks are read once, in order, for all queries. Raises ReadFault.
        """

    def first_noncanonical(self, words: NDArray[np.uint32]) -> int:
        """words (K, P, M), any M: the flat index of the first word that is ≥ q_p, or −1. Raises
        ReadFault."""

"""What both sides of the `tenseal` engine agree on: ring, scales, layout, precision and bytes. Needs no TenSEAL.

Textbook CKKS, dimension-packed: one ciphertext a coordinate, two rows a complex slot. Slot r of coordinate j holds
x[r, j] + i·x[r + N/2, j]; the query's coordinate j is the same real number y_j in every slot. Both parts of the
product are linear in a real query, so a block holds N = 4096 rows, not N/2:

    Σ_j (x[r, j] + i·x[r + N/2, j])·y_j  =  ⟨x_r, y⟩ + i·⟨x_{r+N/2}, y⟩

No relinearisation: an answer is (c0, c1, c2), decrypted as c0 + c1·s + c2·s²; the server needs no key of any kind.

Bytes (little-endian uint64 residues in the NTT domain, never a SEAL file):

    index, query    for each coordinate: c0 (N residues) ‖ the 64-byte seed from which SEAL expands c1
    answer          for each block: c0 ‖ c1 ‖ c2

so what a parser meets from outside is residues, each checked to be < q before SEAL sees it, and seeds, of which
every value is valid. What SEAL's own format puts before them is constant and rebuilt (he_engine.tenseal_ring).

Security: N = 4096, q < 2^60, uniform ternary secret, centred binomial noise with η = 21: covered by the row N = 2^12,
q < 2^62 of he_engine.security (one secret with independent public polynomials, so not even that row's multi-target
loss applies); the homomorphic encryption standard, as SEAL carries it, admits 75 bits at its 192-bit level. Scores
are approximate and are key material, as those of `compact` and `precise`: for holders of the key only. Answers
are not verified: against a server that may alter them and watch the client's reaction, use the hint engine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import Buffer
from he_engine.errors import ParameterError, ResidueError
from he_engine.params import MAX_DIM, NOISE_VARIANCE
from he_engine.security import require_secure

LOG_N = 12
DEGREE = 1 << LOG_N  #: N
MODULUS = 1152921504606830593  #: q, the largest 60-bit prime ≡ 1 (mod 2N); no key-switching prime
SECURITY = require_secure(LOG_N, MODULUS)
SLOTS = DEGREE // 2
ROWS_PER_BLOCK = 2 * SLOTS
#: Δ_x and Δ_y. |slot| ≤ √2 for two rows of norm ≤ 1, and no coefficient of a plaintext exceeds its largest slot:
#: √2·Δ_xΔ_y = 2^58.5 < q/2 = 2^59, and the noise of a coefficient (standard deviation 2^32) is far below the rest.
INDEX_SCALE = QUERY_SCALE = 2.0**29

SEED_BYTES = 64
POLY_BYTES = 8 * DEGREE
CIPHERTEXT_BYTES = POLY_BYTES + SEED_BYTES  #: a fresh ciphertext: one coordinate of a block or of a query
ANSWER_BYTES = 3 * POLY_BYTES  #: one block's answer to one query
INSTALL = "engine 'tenseal' needs TenSEAL: pip install '.[tenseal]'"

U64 = NDArray[np.uint64]


def check_dim(dim: int) -> int:
    """dim itself. Raises ParameterError unless 1 ≤ dim ≤ 16384."""
    if not 1 <= dim <= MAX_DIM:
        raise ParameterError(f"dim: got {dim}, expected 1 to {MAX_DIM}")
    return dim


def score_error_std() -> float:
    """Standard deviation of (score − float64 inner product) for unit vectors, whatever d: 4.7e-7.

        √( (N/2)·(σ² + 1/12)·‖y‖²/Δ_x²  +  (N/2)·σ²·(‖x_r‖² + ‖x_{r+N/2}‖²)/Δ_y² )

    First the noise and rounding of the rows, times the query; then the query's noise, times both rows that share
    the slot. (e·e' adds under 2e-11, the rounding of the query's constant polynomials under 1e-9.)
    """
    rows = DEGREE / 2 * (NOISE_VARIANCE + 1 / 12) / INDEX_SCALE**2
    query = DEGREE / 2 * NOISE_VARIANCE * 2 / QUERY_SCALE**2
    return math.sqrt(rows + query)


def words(buffer: Buffer, length_bytes: int, field: str) -> U64:
    """The little-endian uint64 words of a buffer, no copy. Raises ResidueError for another length."""
    got = memoryview(buffer).nbytes
    if got != length_bytes:
        raise ResidueError(f"{field}: got {got} bytes, expected {length_bytes}")
    return np.frombuffer(buffer, "<u8")


def check_residues(residues: U64, field: str) -> None:
    """Raises ResidueError unless every residue is < q."""
    if residues.size and int(np.max(residues)) >= MODULUS:
        position = int(np.argmax(residues >= MODULUS))
        raise ResidueError(f"{field}: residue {position} is not canonical (expected < q)")


def check_ciphertexts(buffer: Buffer, count: int, field: str) -> None:
    """Raises ResidueError unless `buffer` is `count` fresh ciphertexts with canonical residues."""
    planes = words(buffer, count * CIPHERTEXT_BYTES, field).reshape(count, -1)
    check_residues(planes[:, :DEGREE], field)

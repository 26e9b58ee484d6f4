"""Verified answers: Freivalds' check on ciphertexts (docs/scheme.md, section "Verified answers").

When the owner encrypts, it draws secret weights w (m of them for every folded slot and prime) and keeps

    F[i][j] = Σ_k b[k,i][j] · w[k][⌊j/g⌋]            (NTT slots j, plane i)

An honest answer T[k][l] = Σ_{⌊j/g⌋=l} Σ_i b[k,i][j]·c[i][j] then satisfies, exactly and mod each prime,

    Σ_i Σ_j F[i][j] · c[i][j]  =  Σ_k Σ_l w[k][l] · T[k][l].

Weights are drawn after b is fixed and never leave the client, so any change to T passes with probability at most
(1/q_j + 2^-64)^m. Neither side of the equation depends on s, t or e: acceptance teaches nothing about them.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import Buffer
from he_engine.errors import ResidueError
from he_engine.kernels._client import ClientKernel
from he_engine.keys import RootKey, Secret
from he_engine.params import TILE, Parameters
from he_engine.public import keystream

U32 = NDArray[np.uint32]

CHECKS = 3  #: m; q^-3 < 2^-92
SALT_BYTES = 32
PIECE_BLOCKS = 256  #: blocks whose weights are in memory at a time


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Fingerprint(Secret):
    """F of one segment and the salt of its weights. Secret: knowing F is enough to forge."""

    salt: bytes
    sums: U32  #: (m, P, N/16, I, 16)

    @classmethod
    def parse(cls, raw: Buffer, stack: tuple[int, ...]) -> Fingerprint:
        """From salt ‖ F. Raises ResidueError for a wrong length."""
        expected = SALT_BYTES + 4 * CHECKS * int(np.prod(stack))
        if len(raw) != expected:
            raise ResidueError(f"fingerprint: got {len(raw)} bytes, expected {expected}")
        view = memoryview(raw)
        sums = np.frombuffer(view[SALT_BYTES:], "<u4").reshape(CHECKS, *stack)
        return cls(salt=bytes(view[:SALT_BYTES]), sums=sums)


def weights(
    key: RootKey,
    kernel: ClientKernel,
    parameters: Parameters,
    collection_id: bytes,
    seed: bytes,
    salt: bytes,
    first: int,
    count: int,
) -> U32:
    """w of blocks first … first + count − 1: (count, m, P, B)."""
    shape = (count, CHECKS, len(parameters.ring.primes), parameters.rows_per_block)
    per_block = int(np.prod(shape[1:]))
    stream = keystream(
        key.derive("fingerprint weights", collection_id, seed, salt), count * per_block, first * per_block
    )
    return kernel.expand_weights(stream.reshape(shape))


def sums_of(blocks: U32, w: U32, parameters: Parameters) -> U32:
    """F of blocks b (K, stack) that are encrypted already, with their weights w (K, m, P, B): (m, stack)."""
    primes = np.array(parameters.ring.primes, np.uint64).reshape(-1, 1, 1, 1)
    total = np.zeros((CHECKS, *blocks.shape[1:]), np.uint64)
    for block, drawn in zip(blocks, w, strict=True):
        slots = np.repeat(drawn, parameters.stride, axis=-1)  # of every plane: slot j has weight ⌊j/g⌋
        total += block * slots.reshape(*drawn.shape[:2], -1, 1, TILE).astype(np.uint64)  # < 2^31 + 2^62
        total %= primes
    return total.astype(np.uint32)


def left_side(kernel: ClientKernel, sums: U32, ciphertext: U32) -> U32:
    """Σ_i Σ_j F·c: (m, P). `ciphertext` is (1, P, N·I)."""
    return kernel.weighted_sum(sums.reshape(1, CHECKS, ciphertext.shape[1], -1), ciphertext)


def right_side(
    key: RootKey,
    kernel: ClientKernel,
    parameters: Parameters,
    collection_id: bytes,
    seed: bytes,
    fingerprint: Fingerprint,
    answer: U32,
) -> U32:
    """Σ_k Σ_l w·T of one segment: (m, P). `answer` is (K, P, B)."""
    sums = []
    for first in range(0, len(answer), PIECE_BLOCKS):
        piece = answer[first : first + PIECE_BLOCKS]
        w = weights(key, kernel, parameters, collection_id, seed, fingerprint.salt, first, len(piece))
        sums.append(kernel.weighted_sum(w, piece))
    return add(sums, parameters)


def equal(left: U32, right: U32) -> bool:
    """All m·P sums agree; in constant time, so that nobody learns which of them does not."""
    return hmac.compare_digest(left.tobytes(), right.tobytes())


def add(terms: Sequence[U32], parameters: Parameters) -> U32:
    """Σ terms mod q_p; the axis of primes is the second."""
    primes = np.array(parameters.ring.primes, np.uint32)
    shape = (1, -1) + (1,) * (terms[0].ndim - 2)
    q = primes.reshape(shape)
    total = terms[0].copy()
    for term in terms[1:]:
        total += term  # both < q < 2^31: no overflow
        np.subtract(total, q, out=total, where=total >= q)
    return total

"""Randomness expanded with AES-256-CTR: the public polynomials a and a', and keystreams for the samplers.

A public seed is SHA-256 of everything that must keep two polynomials apart: suite, the collection's 32-byte
nonce, epoch, role, plane and prime. The server never chooses any of it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from he_engine.keys import length_prefixed
from he_engine.params import TILE, Ring

SUITE = "hesearch public polynomials 1"


def keystream(key: bytes, words: int, offset_words: int = 0) -> NDArray[np.uint64]:
    """`words` little-endian uint64 of the AES-256-CTR keystream, starting at word `offset_words` (even)."""
    assert offset_words % 2 == 0
    out = np.zeros(words, "<u8")
    counter = (offset_words // 2).to_bytes(16, "big")
    view = out.data.cast("B")
    Cipher(AES(key), CTR(counter)).encryptor().update_into(view, view)
    return out


def expand_public(nonce: bytes, epoch: int, role: str, ring: Ring, planes: int) -> NDArray[np.uint32]:
    """Uniform polynomials in the NTT domain as a stack (P, N/16, I, 16).

    For plane i and prime q: the stream's little-endian uint32 words, cut to 31 bits, those under q, in order.
    """
    n = ring.degree
    stack = np.empty((len(ring.primes), n // TILE, planes, TILE), np.uint32)
    for p, q in enumerate(ring.primes):
        for i in range(planes):
            seed = hashlib.sha256(length_prefixed(SUITE, nonce, epoch, role, ring.log_n, q, i)).digest()
            stack[p, :, i] = _uniform(seed, n, q).reshape(-1, TILE)
    return stack


def _uniform(seed: bytes, count: int, q: int) -> NDArray[np.uint32]:
    """`count` residues mod q by rejection; q > 2^30, so under half is rejected and twice the words suffice
    but for a probability below 2^-100 (which raises)."""
    words = keystream(seed, count).view("<u4") & np.uint32(0x7FFFFFFF)
    kept = words[words < q]
    if kept.size < count:
        raise AssertionError("rejection sampling ran out of words")
    return kept[:count]

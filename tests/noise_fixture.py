"""Noise chosen by an adversary: keystreams whose errors and secrets are as wanted, through the real encryption.

Polynomials are (I, N) or (N,) int64 arrays of coefficients. At score position r·g, docs/scheme.md, 3.1:

    noise = Σ_i [ e·(y + e') + v·e' ] − t·δ
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine import hint_client
from he_engine.engine import EncryptedRows
from he_engine.hint_client import HintSegment
from he_engine.hint_rows import RowCipher
from he_engine.params import ETA, Parameters
from tests.engine_fixture import Both

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


def error_words(errors: I64) -> U64:
    """A keystream whose centred binomial coefficients are these, each in [−21, 21]."""
    ones = (np.uint64(1) << np.abs(errors).astype(np.uint64)) - np.uint64(1)
    return np.where(errors >= 0, ones, ones << np.uint64(ETA))


def ternary_words(secret: I64) -> U64:
    """A keystream whose ternary coefficients are these: ⌈81-adic digits·2^64/81⌉, four a word."""
    numbers = (secret.reshape(-1, 4) + 1) @ np.array([27, 9, 3, 1])
    return np.array([-(-int(number) * 2**64 // 81) for number in numbers], np.uint64)


def at_positions(p: Parameters, f: I64, h: I64) -> I64:
    """The coefficients of Σ_i f_i·h_i at the score positions, (B,)."""
    n, places = p.ring.degree, np.arange(p.ring.degree)
    f, h = f.reshape(-1, n), h.reshape(-1, n)
    out = np.empty(p.rows_per_block, np.int64)
    for r in range(p.rows_per_block):
        from_here = r * p.stride - places  # X^N = −1: what comes from beyond has the other sign
        out[r] = np.sum(f * h[:, from_here] * np.where(from_here < 0, -1, 1))
    return out


class Crafted(Both):
    """Engine halves of one block, whose next setup and next query take errors and secrets from here."""

    def __init__(self, folder: Path, dim: int, stride: int | None, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, "exact", dim, stride)
        self._patch = patch

    def rows_polys(self, rows: NDArray[np.float64]) -> I64:
        """v."""
        encoded = self.client._encoding.rows(rows)[0].astype(np.int64)
        p = self.parameters
        return np.swapaxes(encoded.reshape(-1, p.planes, p.stride), 0, 1).reshape(p.planes, -1)

    def query_polys(self, vector: NDArray[np.float64]) -> I64:
        """y."""
        p = self.parameters
        coordinates = self.client._encoding.query(vector).reshape(p.planes, p.stride)
        out = np.zeros((p.planes, p.ring.degree), np.int64)
        out[:, 0] = coordinates[:, 0]
        out[:, p.ring.degree - 1 : p.ring.degree - p.stride : -1] = -coordinates[:, 1:]
        return out

    def setup_with(self, rows: NDArray[np.float64], e: I64) -> tuple[EncryptedRows, HintSegment, Any]:
        words = error_words(e)
        with self._patch.context() as patch:
            patch.setattr(RowCipher, "_noise", lambda *_: words[None].copy())
            return self.setup(rows)

    def query_with(self, vector: NDArray[np.float64], t: I64, errors: I64) -> Any:
        words = np.concatenate([ternary_words(t), error_words(errors).reshape(-1)])
        with self._patch.context() as patch:
            patch.setattr(hint_client, "keystream", lambda *_: words.copy())
            return self.client.query(vector)

    def rounding(self, encrypted: EncryptedRows, segment: HintSegment) -> I64:
        """δ: the stored hint less the true one, (N,)."""
        ring = self.parameters.ring
        primes = np.array(ring.primes, np.uint64)
        blocks = np.frombuffer(encrypted.index, "<u4").reshape(self.client._stack).astype(np.uint64)
        products = blocks * self.client._query_public % primes[:, None, None, None]
        hint = (products.sum(axis=2) % primes[:, None, None]).reshape(1, len(primes), -1).astype(np.uint32)
        difference = (segment.hint.astype(np.int64) - hint) % primes.astype(np.int64)[:, None]
        polys = difference.astype(np.uint32)
        self.client._kernel.inverse(polys)
        (first, second), (a, b) = polys[0].astype(object), ring.primes
        lifted = first + a * ((second - first) * pow(a, -1, b) % b)
        return np.where(lifted > ring.modulus // 2, lifted - ring.modulus, lifted).astype(np.int64)


def greedy(target: int, weights: I64, limit: int) -> I64:
    """Integers in [−limit, limit] whose sum with these weights comes close to the target, the largest weights first."""
    chosen, left = np.zeros(len(weights), np.int64), target
    for place in np.argsort(-np.abs(weights), kind="stable").tolist():
        weight = int(weights[place])
        if weight:
            many = min(limit, abs(left) // abs(weight))
            chosen[place] = many if (left > 0) == (weight > 0) else -many
            left -= int(chosen[place]) * weight
    return chosen

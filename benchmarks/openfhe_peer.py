"""OpenFHE as a peer of the benchmarks: CKKS, dimension-packed, in the smallest ring that its own table admits.

    index    for each coordinate j one ciphertext; slot r holds x[r, j] + i·x[r + N/2, j], so a block has N rows
    query    for each coordinate j one ciphertext, y_j in every slot
    answer   Σ_j EvalMultNoRelin(x_j, y_j), three polynomials: nothing is relinearised or rescaled, no key is needed

N = 2048, q < 2^53, scales 2^25 (√2·2^50 < q/2), HEStd_128_classic, secret-key encryption. Multiplicative depth 0: there
is no level to rescale to, and OpenFHE's decoder divides by one scale only, so the other is divided out here.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Correctness, EncryptedPeer, check_scores

openfhe: Any = import_module("openfhe")  # ImportError at import and not half-way

F64 = NDArray[np.float64]
SCALE_BITS = 25
MODULUS_BITS = 53
DEGREE = 2048  #: N
SIGMA = 3.19  #: of OpenFHE's noise
ERROR_STD = SIGMA * math.sqrt(3 * DEGREE / 2) / 2**SCALE_BITS  #: of a score: 5.3e-6, as in he_engine.tenseal_format


def peers(rows: F64, vector: F64) -> dict[str, EncryptedPeer]:
    """On a sample of rows (n, d): one whole block (a partial one would cost as much)."""
    return {"packed": Packed(np.resize(rows, (DEGREE, rows.shape[1])), vector)}


class Packed:
    """rows (2048, d), vector (d,): unit vectors."""

    def __init__(self, rows: F64, vector: F64) -> None:
        self._rows, self._vector = rows, vector
        self._context = _context()
        self._index: list[Any] = []
        self._query: list[Any] = []

    def prepare(self) -> Correctness:
        context, slots = self._context, DEGREE // 2
        if context.GetRingDimension() != DEGREE:
            raise AssertionError(f"ring: got degree {context.GetRingDimension()}, expected {DEGREE}")
        key = context.KeyGen().secretKey

        def encrypt(values: list[complex]) -> Any:
            return context.Encrypt(key, context.MakeCKKSPackedPlaintext(values))

        packed = self._rows[:slots] + 1j * self._rows[slots:]
        self._index = [encrypt(column.tolist()) for column in packed.T]
        self._query = [encrypt([complex(y)] * slots) for y in self._vector]
        decrypted = context.Decrypt(key, self.run_once())
        decrypted.SetLength(slots)
        values = np.array(decrypted.GetCKKSPackedValue()) / 2**SCALE_BITS
        ciphertext_bytes = len(openfhe.Serialize(self._index[0], openfhe.BINARY))
        return check_scores(
            np.concatenate([values.real, values.imag]),
            self._rows,
            self._vector,
            tolerance=8 * ERROR_STD,
            index_bytes=ciphertext_bytes * len(self._index),
            query_bytes=ciphertext_bytes * len(self._query),
        )

    def run_once(self) -> Any:
        multiply, add = self._context.EvalMultNoRelin, self._context.EvalAddInPlace
        total = multiply(self._index[0], self._query[0])
        for row, coordinate in zip(self._index[1:], self._query[1:], strict=True):
            add(total, multiply(row, coordinate))
        return total


def _context() -> Any:
    parameters = openfhe.CCParamsCKKSRNS()
    parameters.SetMultiplicativeDepth(0)
    parameters.SetFirstModSize(MODULUS_BITS)
    parameters.SetScalingModSize(SCALE_BITS)
    parameters.SetScalingTechnique(openfhe.ScalingTechnique.FIXEDMANUAL)
    parameters.SetKeySwitchTechnique(openfhe.KeySwitchTechnique.BV)  # no key-switching prime in q
    parameters.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
    parameters.SetCKKSDataType(openfhe.CKKSDataType.COMPLEX)
    context = openfhe.GenCryptoContext(parameters)
    context.Enable(openfhe.PKESchemeFeature.PKE)
    context.Enable(openfhe.PKESchemeFeature.LEVELEDSHE)
    return context

"""The client half of the `tenseal` engine: setup, query, recover. Holds SEAL's secret key.

    setup      for each block and coordinate, Enc(Δ_x·(x[r, j] + i·x[r + N/2, j])), symmetric, with a seeded c1
    query      for each coordinate, Enc(Δ_y·y_j), the same number in every slot
    recover    Dec(c0, c1, c2)/Δ_xΔ_y: real parts are the scores of rows 0 … N/2 − 1, imaginary ones of the rest

Unlike the hint engine's, answers are not verified (a changed answer gives changed scores, or an error), and SEAL
draws all randomness from the operating system afresh for every ciphertext, without a hedge against a repeated
state. The scores are key material: see he_engine.tenseal_format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import Advance, Buffer, EncryptedRows, nothing
from he_engine.errors import DimensionError, NormError, ResidueError, SecretReuseError, TamperedDataError, WrongKeyError
from he_engine.keys import Secret
from he_engine.tenseal_format import (
    ANSWER_BYTES,
    CIPHERTEXT_BYTES,
    DEGREE,
    INDEX_SCALE,
    POLY_BYTES,
    QUERY_SCALE,
    ROWS_PER_BLOCK,
    SLOTS,
    check_ciphertexts,
    check_dim,
    check_residues,
    words,
)
from he_engine.tenseal_ring import SealRing, sealapi

STATE_BYTES = POLY_BYTES  #: SEAL's secret key: its residues in the NTT domain
NORM_SLACK = 1e-6  #: float32 rounding of vectors that were normalised by the caller
ROW_BOUND = 1 + 2**-10  #: of the norm of a decrypted row: 3,500 standard deviations of the error above 1
SCORE_BOUND = 1 + 2**-10  #: 2,000 standard deviations of the error above 1


def generate_state() -> bytes:
    """A new secret key (32,768 bytes), from SEAL's generator. Seal it, and keep it from the server."""
    ring = SealRing()
    key = sealapi().KeyGenerator(ring.context).secret_key()
    return ring.residues(key.data(), DEGREE)


@dataclass(frozen=True, slots=True)
class TensealQuery:
    """One encrypted query. Recovery needs nothing of it."""

    ciphertext: bytes = field(repr=False)  #: 32,832·d bytes

    def close(self) -> None:
        """Nothing in it is secret."""


@dataclass(frozen=True, slots=True)
class TensealSegment:
    """Recovery needs only the sizes."""

    rows: int
    blocks: int


class TensealClient(Secret):
    """ClientEngine of one collection. Thread-safe. SEAL overwrites its own copies of the key when it frees them;
    the bytes of `engine_state` stay in Python's memory for as long as anything refers to them."""

    def __init__(self, dim: int, engine_state: bytes) -> None:
        """Raises ParameterError (dim), ResidueError (not a state), MissingExtra."""
        self._dim = check_dim(dim)
        check_residues(words(engine_state, STATE_BYTES, "engine state"), "engine state")
        self._ring = SealRing()
        api, context = sealapi(), self._ring.context
        key = self._ring.load_secret_key(engine_state)
        self._encoder = api.CKKSEncoder(context)
        self._keyed: tuple[Any, Any] | None = api.Encryptor(context, key), api.Decryptor(context, key)

    @property
    def rows_per_block(self) -> int:
        """4,096."""
        return ROWS_PER_BLOCK

    @property
    def index_bytes_per_block(self) -> int:
        """32,832·d."""
        return self._dim * CIPHERTEXT_BYTES

    @property
    def query_bytes(self) -> int:
        """32,832·d."""
        return self._dim * CIPHERTEXT_BYTES

    @property
    def answer_bytes_per_block(self) -> int:
        """98,304."""
        return ANSWER_BYTES

    def _key(self) -> tuple[Any, Any]:
        """(encryptor, decryptor)."""
        if self._keyed is None:
            raise SecretReuseError("this client is closed")
        return self._keyed

    # ---- encryption ----------------------------------------------------------------------------------------
    def setup(self, rows: NDArray[np.float64], advance: Advance = nothing) -> EncryptedRows:
        """Encrypt rows (n, d), n ≥ 1, each of norm ≤ 1. Raises DimensionError, NormError.

        The index is blocks end to end, in each one ciphertext a coordinate; the last block ends with zero rows.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self._dim or not len(rows):
            raise DimensionError(f"rows: got shape {rows.shape}, expected (n ≥ 1, {self._dim})")
        return self._encrypt_rows(_within_unit_ball(rows, "rows"), advance)

    def setup_encoded(self, rows: NDArray[Any], advance: Advance = nothing) -> EncryptedRows:
        """Encrypt rows (n, d) float64 as `decrypt` gave them. Raises DimensionError, NormError."""
        if rows.ndim != 2 or rows.shape[1] != self._dim or not len(rows) or rows.dtype != np.float64:
            raise DimensionError(f"rows: got {rows.dtype} {rows.shape}, expected float64 (n ≥ 1, {self._dim})")
        if not (_norms(rows) <= ROW_BOUND).all():
            raise NormError("rows: one is no encoding of a vector of norm ≤ 1")
        return self._encrypt_rows(rows, advance)

    def _encrypt_rows(self, rows: NDArray[np.float64], advance: Advance) -> EncryptedRows:
        blocks = -(-len(rows) // ROWS_PER_BLOCK)
        index = bytearray(blocks * self.index_bytes_per_block)
        for k in range(blocks):
            part = rows[k * ROWS_PER_BLOCK : (k + 1) * ROWS_PER_BLOCK]
            slots = np.zeros((self._dim, SLOTS), np.complex128)
            slots.real[:, : len(part)] = part[:SLOTS].T
            slots.imag[:, : max(0, len(part) - SLOTS)] = part[SLOTS:].T
            for j in range(self._dim):
                start = (k * self._dim + j) * CIPHERTEXT_BYTES
                index[start : start + CIPHERTEXT_BYTES] = self._encrypt(slots[j].tolist(), INDEX_SCALE)
            advance(len(part))
        return EncryptedRows(rows=len(rows), blocks=blocks, index=index, hint=b"", seed=b"", fingerprint=b"")

    def query(self, vector: NDArray[np.float64]) -> TensealQuery:
        """Encrypt vector (d,), of norm ≤ 1, with fresh randomness. Raises DimensionError, NormError."""
        vector = np.asarray(vector, np.float64)
        if vector.shape != (self._dim,):
            raise DimensionError(f"query: got shape {vector.shape}, expected ({self._dim},)")
        coordinates = _within_unit_ball(vector[None], "query")[0].tolist()
        return TensealQuery(b"".join(self._encrypt(y, QUERY_SCALE) for y in coordinates))

    def _encrypt(self, value: float | list[complex], scale: float) -> bytes:
        """One ciphertext: a number in every slot, or a number for each slot."""
        encryptor, _ = self._key()
        plaintext = sealapi().Plaintext()
        self._encoder.encode(value, scale, plaintext)
        while True:  # once: that SEAL's file turns out compressible has no noticeable probability
            ciphertext = self._ring.save_fresh(encryptor.encrypt_symmetric(plaintext))
            if ciphertext is not None:
                return ciphertext

    def decrypt(self, segment: TensealSegment, index: Buffer) -> NDArray[np.float64]:
        """The rows of a segment, (n, d), but for the noise of encryption: standard deviation 2.7e-7 a coordinate
        (√((N/2)·(σ² + 1/12))/Δ_x). Each time that rows are encrypted again adds as much, and SEAL's 1e-9 of rounding.

        index: the bytes of its index part, whose digest the caller has checked. Raises ResidueError for a wrong length
        or residue, TamperedDataError for rows longer than 1 + 2^-10, or padding that is not zero.
        """
        check_ciphertexts(index, segment.blocks * self._dim, "index")
        _, decryptor = self._key()
        view, plaintext = memoryview(index).cast("B"), sealapi().Plaintext()
        rows = np.empty((segment.blocks, ROWS_PER_BLOCK, self._dim))
        for k in range(segment.blocks):
            for j in range(self._dim):
                start = (k * self._dim + j) * CIPHERTEXT_BYTES
                ciphertext = self._ring.load_fresh(view[start : start + CIPHERTEXT_BYTES], INDEX_SCALE)
                decryptor.decrypt(ciphertext, plaintext)
                slots = np.array(self._encoder.decode_complex(plaintext), np.complex128)
                rows[k, :SLOTS, j], rows[k, SLOTS:, j] = slots.real, slots.imag
        flat = rows.reshape(-1, self._dim)
        padding = np.abs(flat[segment.rows :])
        if not (_norms(flat[: segment.rows]) <= ROW_BOUND).all() or not (padding <= ROW_BOUND - 1).all():
            raise TamperedDataError("index: it does not decrypt to rows of this collection")
        return flat[: segment.rows].copy()

    def fingerprint_again(self, segment: TensealSegment, index: Buffer) -> bytes:  # noqa: ARG002
        """Empty: answers are not verified."""
        return b""

    # ---- recovery ------------------------------------------------------------------------------------------
    def load(self, encrypted: EncryptedRows) -> TensealSegment:
        """Raises ResidueError where there is a hint, a seed or a fingerprint: this engine has none."""
        if len(encrypted.hint) or encrypted.seed or encrypted.fingerprint:
            raise ResidueError("hint, seed, fingerprint: got some bytes, expected none for the tenseal engine")
        if encrypted.rows < 1 or encrypted.blocks != -(-encrypted.rows // ROWS_PER_BLOCK):
            raise ResidueError(f"blocks: got {encrypted.blocks} for {encrypted.rows} rows")
        return TensealSegment(encrypted.rows, encrypted.blocks)

    def recover(
        self, query: TensealQuery, segments: Sequence[TensealSegment], answers: Sequence[Buffer]
    ) -> list[NDArray[np.float64]]:
        """Inner products, one (rows,) array a segment; error std as `score_error_std` of he_engine.tenseal_format.

        Every length and residue of every answer is checked before any is decrypted: ResidueError. A score that no
        admitted vectors have raises WrongKeyError: the answer is for another key, or was altered.
        """
        if len(query.ciphertext) != self.query_bytes:
            raise DimensionError(f"query: got {len(query.ciphertext)} bytes, expected {self.query_bytes}")
        for number, (segment, answer) in enumerate(zip(segments, answers, strict=True)):
            name = f"answer {number}"
            check_residues(words(answer, segment.blocks * ANSWER_BYTES, name), name)
        return [
            np.concatenate([self._decrypt(answer, k) for k in range(segment.blocks)])[: segment.rows]
            for segment, answer in zip(segments, answers, strict=True)
        ]

    def _decrypt(self, answers: Buffer, block: int) -> NDArray[np.float64]:
        """The scores of one block, (4096,)."""
        _, decryptor = self._key()
        part = memoryview(answers).cast("B")[block * ANSWER_BYTES : (block + 1) * ANSWER_BYTES]
        plaintext = sealapi().Plaintext()
        decryptor.decrypt(self._ring.load_answer(part, INDEX_SCALE * QUERY_SCALE), plaintext)
        slots = np.array(self._encoder.decode_complex(plaintext), np.complex128)
        scores = np.concatenate([slots.real, slots.imag])
        if not np.abs(scores).max() <= SCORE_BOUND:
            raise WrongKeyError("answer: a score is outside the bound: it is for another key, or was altered")
        return scores

    def row_squares(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """‖x‖²: encoding changes it by less than the error of a score."""
        squares: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
        return squares

    def query_square(self, vector: NDArray[np.float64]) -> float:
        """‖y‖²."""
        return float(vector @ vector)

    def release(self, segment: TensealSegment) -> None:
        """Nothing is kept of a segment."""

    def close(self) -> None:
        """Drop the key; SEAL overwrites it."""
        self._keyed = None


def _within_unit_ball(rows: NDArray[np.float64], field: str) -> NDArray[np.float64]:
    """rows (n, d), those of norm up to 1 + 1e-6 scaled back to 1. Raises NormError for longer or non-finite ones."""
    norms = _norms(rows)
    bad = np.flatnonzero(~(norms <= 1 + NORM_SLACK))  # NaN compares false
    if bad.size:
        raise NormError(f"{field}: vector {bad[0]} is not finite or is longer than the bound")
    scaled: NDArray[np.float64] = rows / np.maximum(norms, 1)[:, None]
    return scaled


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms

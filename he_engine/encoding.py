"""Real vectors ↔ scaled integers, and decoded scores ↔ inner products. Validates vectors; knows no secret.

`exact`: x ↦ Δ_x·⌊S·x⌉, y ↦ Δ_y·⌊S·y⌉; a decoded value rounds to a multiple of Δ_xΔ_y, and the score is that
integer over S². `compact`, `precise`: x ↦ ⌊Δ_x·x⌉, y ↦ ⌊Δ_y·y⌉; the score is the decoded value over Δ_xΔ_y.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import DimensionError, NormError, TamperedAnswerError, TamperedDataError
from he_engine.params import TAIL, Parameters, Profile

CHUNK_ROWS = 256
NORM_SLACK = 1e-6  #: float32 rounding of vectors that were normalised by the caller


class Encoding:
    """For one set of parameters."""

    def __init__(self, parameters: Parameters) -> None:
        self._p = parameters
        self._exact = parameters.profile is Profile.EXACT
        slack = math.sqrt(parameters.dim) / 2
        x, y = parameters.index_scale + slack, parameters.query_scale + slack
        noise = TAIL * parameters.noise_bound(x, y)
        self._slack = slack
        self._largest = parameters.integer_norm**2 if self._exact else math.ceil(x * y + noise)

    def rows(self, rows: NDArray[np.float64]) -> NDArray[np.int32]:
        """(n, d) → (K, B, I·g), zero rows and zero coordinates at the end."""
        p = self._p
        if rows.ndim != 2 or rows.shape[1] != p.dim or not len(rows):
            raise DimensionError(f"rows: got shape {rows.shape}, expected (n ≥ 1, {p.dim})")
        blocks = p.blocks_for(len(rows))
        out = np.zeros((blocks * p.rows_per_block, p.planes * p.stride), np.int32)
        scale = p.index_scale if self._exact else 1
        quantiser = p.quantiser if self._exact else p.index_scale
        for first in range(0, len(rows), CHUNK_ROWS):  # what a chunk needs stays in the cache
            part = slice(first, min(first + CHUNK_ROWS, len(rows)))
            encoded = out[part, : p.dim]
            encoded[:] = self._round(rows[part], quantiser, "rows", first)
            if scale != 1:
                encoded *= scale
        return out.reshape(blocks, p.rows_per_block, -1)

    def encoded(self, rows: NDArray[Any]) -> NDArray[np.int32]:
        """Rows as `decoded` gives them, (n, d) int32, → (K, B, I·g). Raises DimensionError or NormError.

        They are taken as they are: rounding may have made them longer than the float bound, and doing it again is not
        the identity.
        """
        p = self._p
        if rows.ndim != 2 or rows.shape[1] != p.dim or not len(rows) or rows.dtype != np.int32:
            raise DimensionError(f"rows: got {rows.dtype} {rows.shape}, expected int32 (n ≥ 1, {p.dim})")
        if not self._is_encoded(rows):
            raise NormError("rows: one is no encoding of a vector of norm ≤ 1")
        blocks = p.blocks_for(len(rows))
        out = np.zeros((blocks * p.rows_per_block, p.planes * p.stride), np.int32)
        out[: len(rows), : p.dim] = rows
        return out.reshape(blocks, p.rows_per_block, -1)

    def decoded(self, blocks: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """(K, B, I·g) → its first `count` rows, (count, d).

        Raises TamperedDataError unless everything else is zero and each row could come from `rows`: coordinates are
        multiples of Δ_x (`exact`), and norms are within the bound that correctness rests on.
        """
        flat = blocks.reshape(-1, blocks.shape[-1])
        rows: NDArray[np.int32] = np.ascontiguousarray(flat[:count, : self._p.dim])
        if flat[count:].any() or flat[:count, self._p.dim :].any() or not self._is_encoded(rows):
            raise TamperedDataError("index: it does not decrypt to rows of this collection")
        return rows

    def _is_encoded(self, rows: NDArray[np.int32]) -> bool:
        p = self._p
        scale = p.index_scale if self._exact else 1
        limit = ((p.quantiser if self._exact else p.index_scale) + self._slack) * (1 + 1e-11)  # 1e-12 when it was made
        for first in range(0, len(rows), CHUNK_ROWS):
            part = rows[first : first + CHUNK_ROWS]
            integers = np.rint(part / float(scale))  # times the scale it is below 2^53: exact
            if (integers * scale != part).any() or not (_norms(integers) <= limit).all():
                return False
        return True

    def query(self, vector: NDArray[np.float64]) -> NDArray[np.int64]:
        """(d,) → (I·g,)."""
        p = self._p
        if vector.shape != (p.dim,):
            raise DimensionError(f"query: got shape {vector.shape}, expected ({p.dim},)")
        out = np.zeros(p.planes * p.stride, np.int64)
        scale = p.query_scale if self._exact else 1
        quantiser = p.quantiser if self._exact else p.query_scale
        out[: p.dim] = scale * self._round(vector[None], quantiser, "query")[0].astype(np.int64)
        return out

    def _round(self, rows: NDArray[np.float64], scale: int, field: str, first: int = 0) -> NDArray[np.float64]:
        """⌊scale·x⌉. Raises NormError unless every row is finite, of norm ≤ 1, and of rounded norm ≤ scale + √d/2.

        The second bound is the one that correctness rests on; it follows from the first. Norms up to 1 + 1e-6 are
        taken for float32 rounding and scaled to 1.
        """
        norms = _norms(rows)
        long = (norms > 1) & (norms <= 1 + NORM_SLACK)
        if long.any():
            rows = rows / np.where(long, norms, 1)[:, None]
        rounded = rows * scale
        np.rint(rounded, out=rounded)
        short = norms <= 1 + NORM_SLACK  # a NaN compares false
        bad = np.flatnonzero(~(short & (_norms(rounded) <= (scale + self._slack) * (1 + 1e-12))))
        if bad.size:
            raise NormError(f"{field}: vector {first + bad[0]} is not finite or is longer than the bound")
        return rounded

    def row_squares(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """‖x̂‖²/S² or ‖x̂‖²/Δ_x², (n,): squared norms as encoded, in the units of `scores`."""
        scale = self._p.quantiser if self._exact else self._p.index_scale
        return _squares(self._round(rows, scale, "rows")) / float(scale) ** 2

    def query_square(self, vector: NDArray[np.float64]) -> float:
        """‖ŷ‖²/S² or ‖ŷ‖²/Δ_y²."""
        scale = self._p.quantiser if self._exact else self._p.query_scale
        return float(_squares(self._round(vector[None], scale, "query"))[0] / float(scale) ** 2)

    def scores(self, decoded: NDArray[np.int64]) -> NDArray[np.float64]:
        """Decoded values (K, B) → inner products of unit-ball vectors (K·B,).

        A value that no admitted pair of vectors gives (probability ≤ 2^-128 after verification) raises
        TamperedAnswerError.
        """
        p = self._p
        values = decoded.reshape(-1)
        if self._exact:
            step = p.index_scale * p.query_scale
            values = (values + step // 2) // step
            divisor = float(p.quantiser**2)
        else:
            divisor = float(p.index_scale * p.query_scale)
        if values.size and max(-int(np.min(values)), int(np.max(values))) > self._largest:
            raise TamperedAnswerError("answer: a decoded score is outside the bound")
        return values / divisor


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(_squares(rows))
    return norms


def _squares(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows)
    return squares

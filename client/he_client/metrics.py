"""Metrics: how vectors are brought to norm ≤ 1 for the engine, and how its inner products become scores.

cosine    x/‖x‖, y/‖y‖                       score = ⟨x, y⟩/(‖x‖·‖y‖)
ip        x/M, y/‖y‖   (M: the norm bound)   score = M·‖y‖·⟨x/M, y/‖y‖⟩
l2        the same, with ‖x‖ kept, sealed    score = √(‖x‖² + ‖y‖² − 2·⟨x, y⟩), smaller is closer; norms as encoded
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_engine.errors import DimensionError, NormError, ParameterError, TamperedDataError

F64 = NDArray[np.float64]

MAX_NORM = 1e100  #: of any vector: products of two are then finite
MIN_NORM = 1e-100  #: of a vector whose direction counts


class Metric(StrEnum):
    COSINE = "cosine"
    IP = "ip"
    L2 = "l2"


NORM_SLACK = 1e-6  #: float32 rounding of vectors that the caller normalised
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Space:
    """A metric with its dimension and its bound on the norm of rows (1 under cosine)."""

    metric: Metric
    dim: int
    norm_bound: float

    @classmethod
    def make(cls, metric: str, dim: int, norm_bound: float | None) -> Space:
        """Raises ParameterError: unknown metric; a bound missing (ip, l2), not positive, or given (cosine)."""
        try:
            kind = Metric(metric)
        except ValueError:
            names = ", ".join(m.value for m in Metric)
            raise ParameterError(f"metric: got {metric!r}, expected one of {names}") from None
        if kind is Metric.COSINE:
            if norm_bound is not None and not (isinstance(norm_bound, Real) and norm_bound == 1):
                raise ParameterError("norm_bound: cosine normalises every vector; leave it out")
            return cls(kind, dim, 1.0)
        if not isinstance(norm_bound, Real) or not MIN_NORM < norm_bound < MAX_NORM:
            raise ParameterError(
                f"norm_bound: got {norm_bound!r}, expected the largest norm of any row ({MIN_NORM} to {MAX_NORM})"
            )
        return cls(kind, dim, float(norm_bound))

    @property
    def smaller_is_closer(self) -> bool:
        return self.metric is Metric.L2

    @property
    def needs_squares(self) -> bool:
        """Whether scores need the squared norms of the rows, and of the query, as the engine encoded them."""
        return self.metric is Metric.L2

    def check_rows(self, vectors: ArrayLike) -> NDArray[Any]:
        """(n, d) as an array of its own float type. Raises DimensionError or NormError."""
        array = _floats(vectors, "vectors")
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise DimensionError(f"vectors: got shape {array.shape}, expected (n, {self.dim})")
        for first in range(0, len(array), CHUNK_ROWS):
            norms = _norms(array[first : first + CHUNK_ROWS].astype(np.float64), "vectors", first)
            if self.metric is Metric.COSINE:
                _require_direction(norms, "vectors", first)
                continue
            long = np.flatnonzero(norms > self.norm_bound * (1 + NORM_SLACK))
            if long.size:
                raise NormError(
                    f"vectors: row {first + long[0]} is longer than the declared norm_bound {self.norm_bound}"
                )
        return array

    def rows(self, checked: NDArray[Any]) -> F64:
        """What `check_rows` gave, or a part of it → rows of norm ≤ 1."""
        array = checked.astype(np.float64)
        array /= _norms(array, "vectors")[:, None] if self.metric is Metric.COSINE else self.norm_bound
        return array

    def queries(self, vectors: ArrayLike) -> tuple[F64, F64, bool]:
        """(d,) or (B, d) → (unit queries (B, d), their norms (B,), whether it was a batch)."""
        array = _floats(vectors, "query").astype(np.float64)
        if array.ndim not in (1, 2) or array.shape[-1] != self.dim:
            raise DimensionError(f"query: got shape {array.shape}, expected ({self.dim},) or (B, {self.dim})")
        batch = array.ndim == 2
        array = array.reshape(-1, self.dim)
        norms = _norms(array, "query")
        if self.metric is Metric.COSINE:
            _require_direction(norms, "query")
        return array / np.where(norms < MIN_NORM, 1, norms)[:, None], norms, batch

    def scores(self, inner: F64, row_squares: F64 | None, query_norm: float, query_square: float) -> F64:
        """The engine's inner products of vectors of norm ≤ 1 → scores.

        l2: row_squares and query_square are ‖x‖² and ‖y‖² of those vectors as encoded, so that under `exact` the
        result is the distance of the quantised vectors: true norms would not cancel against quantised products.
        """
        if self.metric is Metric.COSINE:
            return inner
        products: F64 = inner * (self.norm_bound * query_norm)
        if self.metric is Metric.IP:
            return products
        if row_squares is None:
            raise TamperedDataError("row table: it has no norms, which the metric l2 needs")
        squares: F64 = self.norm_bound**2 * row_squares + query_norm**2 * query_square - 2 * products
        distances: F64 = np.sqrt(np.maximum(squares, 0))
        return distances


def _floats(vectors: Any, field: str) -> NDArray[Any]:
    try:
        array = np.asarray(vectors)
    except ValueError:
        raise DimensionError(f"{field}: got rows of different lengths") from None
    if array.dtype.kind != "f":
        raise DimensionError(f"{field}: got dtype {array.dtype}, expected float32 or float64")
    return array


def _norms(array: F64, field: str, first: int = 0) -> F64:
    with np.errstate(over="ignore", invalid="ignore"):
        norms: F64 = np.sqrt(np.einsum("ij,ij->i", array, array))
    bad = np.flatnonzero(~(norms < MAX_NORM))  # a NaN compares false
    if bad.size:
        raise NormError(f"{field}: row {first + bad[0]} has a NaN, an infinity, or a norm of {MAX_NORM:.0e} or more")
    return norms


def _require_direction(norms: F64, field: str, first: int = 0) -> None:
    zero = np.flatnonzero(norms < MIN_NORM)
    if zero.size:
        raise NormError(
            f"{field}: row {first + zero[0]} is zero, or shorter than {MIN_NORM:.0e}: it has no direction (cosine)"
        )

"""Metrics: how vectors are brought to norm ≤ 1 for the engine, and how its inner products become scores.

cosine    x/‖x‖, y/‖y‖                       score = ⟨x, y⟩/(‖x‖·‖y‖)
ip        x/M, y/‖y‖   (M: the norm bound)   score = M·‖y‖·⟨x/M, y/‖y‖⟩
l2        the same, with ‖x‖ kept, sealed    score = √(‖x‖² + ‖y‖² − 2·⟨x, y⟩), smaller is closer
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_engine.errors import DimensionError, NormError, ParameterError

F64 = NDArray[np.float64]


class Metric(StrEnum):
    COSINE = "cosine"
    IP = "ip"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class Space:
    """A metric with its dimension and its bound on the norm of rows (1 under cosine)."""

    metric: Metric
    dim: int
    norm_bound: float

    @classmethod
    def make(cls, metric: str, dim: int, norm_bound: float | None) -> Space:
        """Raises ParameterError: unknown metric, or a bound missing (ip, l2), not positive, or given (cosine)."""
        try:
            kind = Metric(metric)
        except ValueError:
            names = ", ".join(m.value for m in Metric)
            raise ParameterError(f"metric: got {metric!r}, expected one of {names}") from None
        if kind is Metric.COSINE:
            if norm_bound not in (None, 1, 1.0):
                raise ParameterError("norm_bound: cosine normalises every vector; leave it out")
            return cls(kind, dim, 1.0)
        if norm_bound is None or not 0 < norm_bound < float("inf"):
            raise ParameterError(
                f"norm_bound: got {norm_bound}, expected the largest norm that any row will have (metric {metric!r})"
            )
        return cls(kind, dim, float(norm_bound))

    @property
    def smaller_is_closer(self) -> bool:
        return self.metric is Metric.L2

    def rows(self, vectors: ArrayLike) -> tuple[F64, F64 | None]:
        """(n, d) → (rows of norm ≤ 1, their true norms where the metric needs them).

        Raises DimensionError or NormError.
        """
        array = _floats(vectors, "vectors")
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise DimensionError(f"vectors: got shape {array.shape}, expected (n, {self.dim})")
        norms = _norms(array, "vectors")
        if self.metric is Metric.COSINE:
            zero = np.flatnonzero(norms == 0)
            if zero.size:
                raise NormError(f"vectors: row {zero[0]} is zero, which has no direction (metric 'cosine')")
            return array / norms[:, None], None
        long = np.flatnonzero(norms > self.norm_bound)
        if long.size:
            raise NormError(f"vectors: row {long[0]} is longer than the declared norm_bound {self.norm_bound}")
        return array / self.norm_bound, norms if self.metric is Metric.L2 else None

    def queries(self, vectors: ArrayLike) -> tuple[F64, F64, bool]:
        """(d,) or (B, d) → (unit queries (B, d), their norms (B,), whether it was a batch)."""
        array = _floats(vectors, "query")
        if array.ndim not in (1, 2) or array.shape[-1] != self.dim:
            raise DimensionError(f"query: got shape {array.shape}, expected ({self.dim},) or (B, {self.dim})")
        batch = array.ndim == 2
        array = array.reshape(-1, self.dim)
        norms = _norms(array, "query")
        zero = np.flatnonzero(norms == 0)
        if zero.size and self.metric is Metric.COSINE:
            raise NormError(f"query: vector {zero[0]} is zero, which has no direction (metric 'cosine')")
        return array / np.where(norms == 0, 1, norms)[:, None], norms, batch

    def scores(self, inner: F64, row_norms: F64 | None, query_norm: float) -> F64:
        """The engine's inner products → scores."""
        if self.metric is Metric.COSINE:
            return inner
        products = inner * (self.norm_bound * query_norm)
        if self.metric is Metric.IP:
            return products
        assert row_norms is not None
        distances: F64 = np.sqrt(np.maximum(row_norms**2 + query_norm**2 - 2 * products, 0))
        return distances


def _floats(vectors: Any, field: str) -> F64:
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise DimensionError(f"{field}: got dtype {array.dtype}, expected float32 or float64")
    return array.astype(np.float64)


def _norms(array: F64, field: str) -> F64:
    norms: F64 = np.sqrt(np.einsum("ij,ij->i", array, array))
    bad = np.flatnonzero(~np.isfinite(norms))
    if bad.size:
        raise NormError(f"{field}: row {bad[0]} has a NaN or an infinity, or its norm overflows")
    return norms

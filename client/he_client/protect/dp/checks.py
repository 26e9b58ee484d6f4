"""What every function of this package asks of its arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_engine.errors import DimensionError, InvalidInput, NormError

F64 = NDArray[np.float64]
MOST = 2.0**100  #: of every number, so that no product of those that belong together overflows
MOST_RELEASES = 1 << 20  #: so that noise stays below 2^53 steps (gaussian.py)


def require_rows(given: ArrayLike, name: str) -> F64:
    """(n, d) float64, n and d ≥ 1, each row of norm below MOST. Raises DimensionError, NormError."""
    try:
        rows = np.asarray(given)
    except ValueError:
        raise DimensionError(f"{name}: expected an array of rows of one length") from None
    if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind not in "fiu":
        raise DimensionError(f"{name}: got {rows.dtype} of shape {rows.shape}, expected numbers of shape (n, d)")
    rows = rows.astype(np.float64)
    with np.errstate(over="ignore"):
        right = np.linalg.norm(rows, axis=1) < MOST  # not where one is NaN
    if not right.all():
        raise NormError(f"{name}: row {int(np.argmin(right))} has a number that is not finite, or too large")
    return rows


def require_count(name: str, value: int, most: int = 1 << 53) -> None:
    """Raises InvalidInput."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidInput(f"{name}: got {value!r}, expected a whole number from 1 to {most}")


def require_size(name: str, value: float) -> None:
    """A number above 0 whose products with others stay in range. Raises InvalidInput."""
    if not number(value) or not 1 / MOST < value < MOST:
        raise InvalidInput(f"{name}: got {value!r}, expected a number above 0 and below {MOST:.3g}")


def number(value: Any) -> bool:
    """An int or a float, finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf

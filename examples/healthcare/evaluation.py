"""Accuracy on n test patients, and the difference of two methods on the same ones; with intervals of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  #: 97.5 % of a standard normal distribution lies below

Interval = tuple[float, float, float]  #: estimate, low, high


def is_right(predicted: Sequence[str], truth: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([a == b for a, b in zip(predicted, truth, strict=True)])


def accuracy(share: float, n: int) -> Interval:
    """The share of n patients that is right; Wilson's score interval."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return share, centre - half, centre + half


def difference(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Interval:
    """accuracy − accuracy of the reference, on the same patients, by Agresti and Min's (2005) adjusted Wald interval.

    With b patients that only the method has right, and c that only the reference has, half a patient is added to b, to
    c and to either way of agreeing, so that the interval has a width where the two never differ.
    """
    n = len(right) + 2
    b = int((right & ~reference).sum()) + 0.5
    c = int((~right & reference).sum()) + 0.5
    half = Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return float(right.mean() - reference.mean()), (b - c) / n - half, (b - c) / n + half

"""How sure a figure is: exact binomial intervals, and bootstrap intervals of what is no share of trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

CONFIDENCE = 0.99
RESAMPLES = 1000
_HALVINGS = 60


def clopper_pearson(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share: every p that neither tail of the binomial refuses at (1 − confidence)/2."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _root(lambda p: at_least(hits, trials, p) < tail)
    high = 1.0 if hits == trials else _root(lambda p: 1 - at_least(hits + 1, trials, p) > tail)
    return low, high


def at_least(hits: int, trials: int, p: float) -> float:
    """P(X ≥ hits), X binomial."""
    if not 0 < p < 1 or hits <= 0:
        return float(hits <= 0 or p >= 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(hits, trials + 1)
    logs = factorials[trials] - factorials[k] - factorials[trials - k] + k * math.log(p) + (trials - k) * math.log1p(-p)
    return float(np.exp(logs).sum())


def _root(below: Callable[[float], bool]) -> float:
    """Where `below`, true at 0 and false at 1, changes."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def share(hits: int, trials: int, confidence: float = CONFIDENCE) -> dict[str, Any]:
    """A share of trials with its interval."""
    low, high = clopper_pearson(hits, trials, confidence)
    return {"hits": hits, "trials": trials, "share": hits / trials, "low": low, "high": high}


def bootstrap(
    counts: F64, statistic: Callable[[F64], F64], rng: np.random.Generator, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """The interval of statistic(Σ counts), counts (n, c), n items drawn again; statistic: (m, c) → (m,)."""
    n = len(counts)
    sums = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ counts
    low, high = np.quantile(statistic(sums), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

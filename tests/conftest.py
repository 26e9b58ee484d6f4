"""Shared fixtures. Every random choice in the suite is seeded; keys and noise are the real ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


def unit_rows(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

"""Shared fixtures. Every random choice in the suite is seeded; keys and noise are the real ones."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before any test imports Flower by itself
_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hesearch` remembers of servers: nothing, at the start of each test."""
    monkeypatch.setenv("HESEARCH_STATE", str(tmp_path_factory.getbasetemp() / f"state-{next(_NUMBERS)}"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


def unit_rows(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

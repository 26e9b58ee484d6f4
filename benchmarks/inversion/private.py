"""Rows released with differential privacy (he_client.protect.dp), and what the attacker makes of them.

The targets are released by `release_embeddings`, with a budget on disk. The attacker knows the mechanism and makes as
many pairs to learn from as it likes, with NumPy's Gaussian of the same σ; so have the other rows that are searched
beside the targets, as exact noise takes a minute for a million coordinates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.texts import Drawn, Sizes
from he_client.protect.dp import PrivacyBudget, release_embeddings
from he_client.protect.dp.calibration import largest_mu

F64 = NDArray[np.float64]

EPSILONS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
DELTA = 1e-6


def sigma(epsilon: float) -> float:
    """Standard deviation of the noise of a coordinate; rows have norm 1, so two of them are at most 2 apart."""
    return 2 / largest_mu(epsilon, DELTA)


def released(drawn: Drawn, sizes: Sizes, epsilon: float, folder: Path, rng: np.random.Generator) -> F64:
    """(rows, d): all rows with noise, those of the first `dp_targets` targets from the product."""
    noisy = drawn.rows + rng.normal(0, sigma(epsilon), drawn.rows.shape)
    targets = slice(sizes.known, sizes.known + sizes.dp_targets)
    budget = PrivacyBudget.open(folder / f"budget-{epsilon:g}", epsilon=epsilon, delta=DELTA)
    noisy[targets] = release_embeddings(drawn.rows[targets], epsilon=epsilon, delta=DELTA, budget=budget)
    return noisy

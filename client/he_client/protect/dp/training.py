"""A linear classifier over embeddings, trained by gradient descent of which only noisy gradients are seen.

Multinomial logistic regression with all rows in every step: a gradient is a sum of one term a row, clipped to norm C,
so replacing one row moves it by at most 2·C, and T steps are T releases of the Gaussian mechanism [Song, Chaudhuri,
Sarwate 2013; Abadi et al. 2016, without their sampling: with all rows nothing rests on who was drawn]. Everything that
is made of noisy gradients, the momentum and the weights, costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from he_client.protect.dp.budget import PrivacyBudget
from he_client.protect.dp.checks import F64, MOST_RELEASES, require_count, require_rows, require_size
from he_client.protect.dp.embeddings import ROUNDING
from he_engine.errors import DimensionError, InvalidInput

Label = str | int
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """The class with the largest score (x, 1)·W."""

    classes: tuple[Label, ...]
    weights: F64  #: (d + 1, classes); the last row is the bias

    def predict(self, rows: ArrayLike) -> list[Label]:
        """(n, d) → n classes. Raises DimensionError, NormError."""
        return [self.classes[best] for best in np.argmax(self.scores(rows), axis=1)]

    def scores(self, rows: ArrayLike) -> F64:
        """(n, d) → (n, classes), logits. Raises DimensionError, NormError."""
        x = require_rows(rows, "rows")
        if x.shape[1] != len(self.weights) - 1:
            raise DimensionError(f"rows: got shape {x.shape}, expected (n, {len(self.weights) - 1})")
        return np.asarray(x @ self.weights[:-1] + self.weights[-1])


def train_classifier(
    rows: ArrayLike,
    labels: Sequence[Label],
    *,
    classes: Sequence[Label],
    epsilon: float,
    delta: float,
    budget: PrivacyBudget,
    rows_per_person: int = 1,
    steps: int = 60,
    learning_rate: float = 16.0,
    clip_norm: float = 1.0,
    what: str = "classifier",
) -> LinearClassifier:
    """A classifier that is (ε, δ)-private in its training rows and their labels.

    rows: (n, d), of norm about 1, and below 2^100, so that no logit overflows. labels: n of `classes`, which are
    public: all that might occur, at least two, and not those that happen to. rows_per_person: m, the most rows of one
    person among these. steps: T, 1 to 2^20. clip_norm: C, of one row's gradient. A step adds noise of
    σ = 2·C·m·√T / μ(ε, δ) to the sum of gradients. steps, learning_rate and clip_norm must not be chosen on this data,
    or the choice is a leak of its own.

    Paid for before the first step. Raises DimensionError, NormError, InvalidInput, MissingExtra before anything is
    spent; BudgetExceeded and others as PrivacyBudget.spend.
    """
    x = require_rows(rows, "rows")
    require_count("rows_per_person", rows_per_person)
    require_count("steps", steps, MOST_RELEASES)
    for name, size in (("clip_norm", clip_norm), ("learning_rate", learning_rate)):
        require_size(name, size)
    right = _one_hot(labels, classes, len(x))
    x = np.hstack([x, np.ones((len(x), 1))])
    norms = np.linalg.norm(x, axis=1)
    # A computed sum of n terms of norm ≤ C is off by less than n²·C·2^-53, in whatever order it was added up.
    sensitivity = 2 * clip_norm * (rows_per_person + len(x) ** 2 * 2.0**-52) * ROUNDING
    require_size("2·clip_norm·rows_per_person", sensitivity)
    mechanism = budget.spend(epsilon=epsilon, delta=delta, what=what, releases=steps)
    weights = np.zeros((x.shape[1], right.shape[1]))
    velocity = np.zeros_like(weights)
    for _ in range(steps):
        gradient = mechanism.release(_clipped_gradient(x, norms, right, weights, clip_norm), sensitivity=sensitivity)
        velocity = MOMENTUM * velocity + gradient / len(x)
        weights = weights - learning_rate * velocity
    return LinearClassifier(tuple(classes), weights)


def _clipped_gradient(x: F64, norms: F64, right: F64, weights: F64, bound: float) -> F64:
    """Σ over rows of the gradient of the cross-entropy, x ⊗ (softmax(x·W) − y), each scaled to norm ≤ bound."""
    logits = x @ weights
    logits -= logits.max(axis=1, keepdims=True)
    residual = np.exp(logits)
    residual /= residual.sum(axis=1, keepdims=True)
    residual -= right
    residual *= (bound / np.maximum(norms * np.linalg.norm(residual, axis=1), bound))[:, None]
    return np.asarray(x.T @ residual)


def _one_hot(labels: Sequence[Label], classes: Sequence[Label], count: int) -> F64:
    """(n, classes). Raises InvalidInput; a message does not quote a label."""
    at = {label: position for position, label in enumerate(classes)}
    if len(at) != len(classes) or len(at) < 2:
        raise InvalidInput(f"classes: got {len(classes)}, of them {len(at)} different; expected 2 or more, each once")
    if len(labels) != count:
        raise InvalidInput(f"labels: got {len(labels)}, expected {count}, one a row")
    positions = [at.get(label, -1) for label in labels]
    if -1 in positions:
        raise InvalidInput(f"labels: number {positions.index(-1)} is not one of the classes")
    return np.asarray(np.eye(len(at))[positions])

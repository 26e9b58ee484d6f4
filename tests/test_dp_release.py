"""Noisy embeddings and classifiers: what is refused, how much noise there is, and audits of what they claim.

An audit plays the attacker who knows all but which of two neighbouring inputs was used, thousands of times: a lower
bound on δ at the claimed ε, right but for a chance of 2e-9, is not above the claimed δ; and above
it where noise is halved.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client.protect.dp import PrivacyBudget, public_projection, release_embeddings, train_classifier
from he_client.protect.dp.calibration import largest_mu
from he_client.protect.dp.training import _clipped_gradient
from he_engine.errors import DimensionError, InvalidInput, NormError
from tests.conftest import unit_rows
from tests.dp_fixture import Unlimited, certain_delta

CLAIM = {"epsilon": 1.0, "delta": 0.1}
SMALL = {"epsilon": 0.1, "delta": 0.3}


@pytest.fixture
def budget(tmp_path: Path) -> PrivacyBudget:
    return PrivacyBudget.open(tmp_path / "budget", epsilon=3, delta=1e-6)


@pytest.mark.parametrize(
    ("clip_norm", "rows_per_person", "to"), [(1.0, 1, None), (0.5, 9, None), (2.0, 1, 16)]
)  # fmt: skip
def test_the_noise_is_for_two_rows_at_opposite_ends(clip_norm: float, rows_per_person: int, to: int | None) -> None:
    rows = np.zeros((400, 100))
    rows[:, 0] = 7.0
    projection = None if to is None else public_projection(100, to)
    noisy = release_embeddings(
        rows, **CLAIM, budget=Unlimited(), clip_norm=clip_norm, rows_per_person=rows_per_person, projection=projection
    )
    clean = rows if projection is None else rows @ projection
    noise = noisy - clean * clip_norm / np.linalg.norm(clean[0])
    sigma = 2 * clip_norm * math.sqrt(rows_per_person) / largest_mu(**CLAIM)
    assert abs(noise.var() / sigma**2 - 1) < 6 * math.sqrt(2 / noise.size)
    assert np.abs(noise.mean(axis=0)).max() < 6 * sigma / math.sqrt(len(rows)), "clipped to its norm, not turned"


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (np.zeros(4), DimensionError), (np.zeros((0, 4)), DimensionError), (np.zeros((4, 0)), DimensionError),
        ([[1.0], [1.0, 2.0]], DimensionError), ([["a"]], DimensionError), (np.ones((2, 2), complex), DimensionError),
        ([[1.0, np.nan]], NormError), ([[np.inf, 1.0]], NormError), ([[1e300, 1e300]], NormError),
        ([[2.0**100, 1.0]], NormError),
    ],
)  # fmt: skip
def test_vectors_that_are_refused_cost_nothing(vectors: Any, error: type[Exception], budget: PrivacyBudget) -> None:
    with pytest.raises(error):
        release_embeddings(vectors, epsilon=1, delta=1e-7, budget=budget)
    with pytest.raises(error):
        train_classifier(vectors, [0], classes=[0, 1], epsilon=1, delta=1e-7, budget=budget)
    assert not budget.report().spendings


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0}, {"delta": 1}, {"clip_norm": 0}, {"clip_norm": math.nan}, {"rows_per_person": 0},
        {"rows_per_person": 1.5}, {"projection": np.ones((3, 2))}, {"projection": np.full((4, 2), 1e25)}, {"what": ""},
        {"clip_norm": 2.0**99}, {"rows_per_person": 10**61}, {"rows_per_person": 10**400},
        {"clip_norm": 2.0**80, "rows_per_person": 2**40},
    ],
)  # fmt: skip
def test_arguments_that_are_refused_cost_nothing(wrong: dict[str, Any], budget: PrivacyBudget) -> None:
    rows = np.full((2, 4), 1e25 if "projection" in wrong else 1.0)
    given: dict[str, Any] = {"epsilon": 1, "delta": 1e-7, "budget": budget} | wrong
    with pytest.raises(InvalidInput):
        release_embeddings(rows, **given)
    assert not budget.report().spendings


def test_the_projection_is_public_and_keeps_inner_products(rng: np.random.Generator) -> None:
    matrix = public_projection(256, 64)
    assert matrix.shape == (256, 64) and (np.abs(matrix) == 1 / 8).all()
    assert (matrix == public_projection(256, 64)).all()
    assert abs((matrix == public_projection(256, 64, label="other")).mean() - 0.5) < 0.03
    known = hashlib.sha256(np.packbits(matrix > 0).tobytes()).hexdigest()
    assert known.startswith("9a54557e1472fb18"), "data that were released with it need it for good"
    rows = unit_rows(rng, 50, 256)
    off = (rows @ matrix) @ (rows @ matrix).T - rows @ rows.T
    assert np.abs(off).max() < 6 / 8 and abs(off.mean()) < 0.05
    for dim, to in ((4, 5), (0, 0), (1 << 17, 2), (4, True)):
        with pytest.raises(InvalidInput, match="got"):
            public_projection(dim, to)


@pytest.mark.parametrize("wrong", [1.0, 2.0])
def test_audit_of_released_embeddings(wrong: float) -> None:
    tries = 20_000
    rows = np.zeros((2 * tries, 2))
    rows[:tries, 0], rows[tries:, 0] = 1, -1  # the two worst rows; longer ones are clipped to them
    noisy = release_embeddings(rows * 3, **CLAIM, budget=Unlimited(wrong=wrong))[:, 0]
    sigma = 2 / (largest_mu(**CLAIM) * wrong)
    taken = noisy > CLAIM["epsilon"] * sigma**2 / 2  # where one is e^ε times as likely as the other
    certain = certain_delta(CLAIM["epsilon"], int(taken[:tries].sum()), int(taken[tries:].sum()), tries)
    assert (certain > CLAIM["delta"]) is (wrong > 1)


@pytest.mark.parametrize("wrong", [1.0, 2.0])
def test_audit_of_training(wrong: float) -> None:
    """One row has the other label; a rate near 0 keeps its gradient at the bound in both steps."""
    tries, budget = 1500, Unlimited(wrong=wrong)
    rows = np.array([[1.0]] * 3)

    def weight(label: int) -> float:
        made = train_classifier(
            rows, [0, 1, label], classes=[0, 1], **SMALL, budget=budget, steps=2, learning_rate=1e-9
        )  # fmt: skip
        return float((made.weights[:, 0] - made.weights[:, 1]).sum())

    taken = [sum(weight(label) > 0 for _ in range(tries)) for label in (0, 1)]
    certain = certain_delta(SMALL["epsilon"], taken[0], taken[1], tries)
    assert (certain > SMALL["delta"]) is (wrong > 1)


def test_the_gradient_is_the_clipped_one(rng: np.random.Generator) -> None:
    """Against a row at a time, by differences; and no row's share is longer than the bound."""
    x, weights = rng.standard_normal((6, 4)), rng.standard_normal((4, 3))
    right = np.eye(3)[[0, 1, 2, 0, 1, 2]]

    def loss(row: int, w: np.ndarray[Any, Any]) -> float:
        logits = x[row] @ w
        return float(np.log(np.exp(logits).sum()) - logits @ right[row])

    expected = np.zeros_like(weights)
    for row in range(6):
        numeric = np.zeros_like(weights)
        for at in np.ndindex(*weights.shape):
            step = np.zeros_like(weights)
            step[at] = 1e-6
            numeric[at] = (loss(row, weights + step) - loss(row, weights - step)) / 2e-6
        expected += numeric * min(1, 0.7 / np.linalg.norm(numeric))
        alone = _clipped_gradient(x[[row]], np.linalg.norm(x[[row]], axis=1), right[[row]], weights, 0.7)
        assert np.linalg.norm(alone) <= 0.7 * (1 + 1e-12)
    got = _clipped_gradient(x, np.linalg.norm(x, axis=1), right, weights, 0.7)
    assert np.allclose(got, expected, atol=1e-7)


def test_a_classifier_learns(rng: np.random.Generator, budget: PrivacyBudget) -> None:
    rows = unit_rows(rng, 4000, 5)
    labels = [("left", "right")[int(row[0] > 0)] for row in rows]
    made = train_classifier(
        rows[:3000], labels[:3000], classes=["left", "right", "up"], epsilon=2, delta=1e-6, budget=budget
    )  # fmt: skip
    right = np.mean([a == b for a, b in zip(made.predict(rows[3000:]), labels[3000:], strict=True)])
    assert right > 0.9
    (paid,) = budget.report().spendings
    assert (paid.what, paid.epsilon) == ("classifier", 2.0)
    with pytest.raises(DimensionError):
        made.predict(rows[:, :4])


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": [0, 1]}, {"labels": [0, 1, 2]}, {"classes": [0]}, {"classes": [0, 0]}, {"classes": [0, 1, 1]},
        {"steps": 0}, {"learning_rate": 0}, {"learning_rate": math.inf}, {"clip_norm": -1}, {"rows_per_person": 0},
        {"epsilon": -1}, {"delta": 0}, {"clip_norm": 2.0**99}, {"rows_per_person": 10**400}, {"steps": 10**400},
        {"clip_norm": 2.0**80, "rows_per_person": 2**40},
    ],
)  # fmt: skip
def test_training_that_is_refused_costs_nothing(wrong: dict[str, Any], budget: PrivacyBudget) -> None:
    given: dict[str, Any] = {"labels": [0, 1, 0], "classes": [0, 1], "epsilon": 1, "delta": 1e-7, "budget": budget}
    with pytest.raises(InvalidInput):
        train_classifier(np.eye(3), **(given | wrong))
    assert not budget.report().spendings


def test_what_is_paid_for_is_given(budget: PrivacyBudget) -> None:
    """At the ends of what is taken, nothing overflows after paying."""
    rows = np.diag([2.0**99, 2.0**-99, 1.0])
    small, large = 2.0**-99, 2.0**98
    paying: dict[str, Any] = {"epsilon": 0.1, "delta": 1e-9, "budget": budget}
    for clip_norm in (small, large):
        assert np.isfinite(release_embeddings(rows, clip_norm=clip_norm, **paying)).all()
        made = train_classifier(
            rows, [0, 1, 0], classes=[0, 1], clip_norm=clip_norm, learning_rate=2.0**99, steps=3, **paying
        )
        assert np.isfinite(made.weights).all()
    assert len(budget.report().spendings) == 4

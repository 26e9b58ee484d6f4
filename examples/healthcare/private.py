"""Differential privacy: a classifier trained under it, and k-NN over vectors that are released under it.

Each ε is an alternative with a budget of its own: releasing several of them would add up (docs/privacy.md).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from examples.healthcare.figures import Row
from examples.healthcare.neighbours import Cohort, PlaintextNeighbours
from examples.healthcare.patients import CHAPTERS
from examples.healthcare.timing import median_s
from he_client.protect.dp import PrivacyBudget, public_projection, release_embeddings, train_classifier

DELTA = 1e-5  #: below 1 over the number of patients
PROJECTED = 64  #: dimensions that vectors are released in
OF_MODEL = "who gets the model: (ε, δ) of each patient; who trains it: all records"
OF_VECTORS = "who gets the noisy vectors: (ε, δ) of each patient's note, and the chapters as they are"


def classifier(train: Cohort, test: Cohort, epsilon: float) -> Row:
    """Softmax regression on noisy gradients."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hesearch-healthcare-") as folder:
        budget = PrivacyBudget.open(Path(folder) / "patients.budget", epsilon=epsilon, delta=DELTA)
        model = train_classifier(
            train.vectors, train.chapters, classes=CHAPTERS, epsilon=epsilon, delta=DELTA, budget=budget
        )
    prepare_s = time.perf_counter() - start
    predicted = [str(one) for one in model.predict(test.vectors)]
    return Row.of(
        "softmax regression, DP", "dp", predicted, test.chapters, OF_MODEL, epsilon=epsilon, prepare_s=prepare_s,
        prepare_bytes=model.weights.nbytes, predict_s=median_s(lambda: model.predict(test.vectors[:1])),
        predict_bytes=0,
    )  # fmt: skip


def neighbours(train: Cohort, test: Cohort, epsilon: float, threads: int) -> Row:
    """k-NN over noisy vectors, for questions without noise."""
    start = time.perf_counter()
    projection = public_projection(train.vectors.shape[1], PROJECTED)
    with tempfile.TemporaryDirectory(prefix="hesearch-healthcare-") as folder:
        budget = PrivacyBudget.open(Path(folder) / "patients.budget", epsilon=epsilon, delta=DELTA)
        noisy = release_embeddings(train.vectors, epsilon=epsilon, delta=DELTA, budget=budget, projection=projection)
    prepare_s = time.perf_counter() - start
    queries = (test.vectors @ projection).astype("float32")
    search = PlaintextNeighbours(Cohort(noisy, train.chapters), threads)
    return Row.of(
        "k-NN over DP vectors", "dp", search.predict(queries), test.chapters, OF_VECTORS, epsilon=epsilon,
        prepare_s=prepare_s, prepare_bytes=noisy.nbytes, predict_s=search.seconds(queries[0]), predict_bytes=0,
    )  # fmt: skip

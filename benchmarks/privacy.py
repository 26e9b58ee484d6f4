"""What differential privacy costs: search in noisy embeddings and training on noisy gradients, against ε.

    python -m benchmarks.privacy --json docs/figures/privacy.json      # some minutes
    python -m benchmarks.privacy_page                                  # docs/privacy.md and its plot from the figures

Data: ICD-10-CM, 98,505 titles through `wordllama` (256-d), each a record of its own; inclusion terms as questions; the
chapter of a code as its class. Noise of embeddings is NumPy's, seeded, at the σ that `release_embeddings` would use:
drawing it as that does takes minutes an ε; `speed` is how fast `release_embeddings` itself is. Classifiers are those of
`train_classifier` itself, with a budget each.

JSON keys (stable): `machine`, `arguments`, `rows`, `dim`, `queries`, `delta`, `speed` (`values_per_s`), `retrieval` (a
point: `epsilon`, null without noise; `dim`; `sigma`; `recall_at_10` against the search without noise in all dimensions;
`hit_at_10`, the right code among ten; the same with noisy questions), `training` (a point: `epsilon`, `rows`,
`accuracy`, `balanced_accuracy`, the mean over chapters) and `largest_class`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe, print_json
from he_client.demo.catalogue import Catalogue, load_catalogue
from he_client.demo.encoders import load_encoder
from he_client.demo.recall import hit_share
from he_client.progress import progress_bar
from he_client.protect.dp import (
    GaussianMechanism,
    PrivacyBudget,
    public_projection,
    release_embeddings,
    train_classifier,
)
from he_client.protect.dp.calibration import largest_mu

F32 = NDArray[np.float32]
K = 10
SEED = 1
DELTA = 1e-6
EPSILONS = (1, 2, 4, 8, 16, 32, 64, 256, 1024, None)
PROJECTED = 64
TRAINING_EPSILONS = (0.5, 1, 2, 4, 8, None)
TEST_ROWS = 0.2  #: of the catalogue


class _NoNoise(PrivacyBudget):
    """Training without privacy, by the same steps."""

    def spend(self, *, epsilon: float, delta: float, what: str, releases: int = 1) -> GaussianMechanism:
        del epsilon, delta, what, releases
        return _Clear(1.0)


class _Clear(GaussianMechanism):
    def release(self, values: NDArray[np.float64], *, sensitivity: float) -> NDArray[np.float64]:
        del sensitivity
        return values


def measure(rows: int | None, queries: int) -> dict[str, Any]:
    catalogue, encoder = load_catalogue(), load_encoder("wordllama")
    if rows is not None:
        catalogue = catalogue.subset(rows)
    vectors = encoder.embed(catalogue.titles)
    terms = catalogue.sample_terms(queries, SEED)
    asked = encoder.embed([term.text for term in terms])
    right = [term.code for term in terms]
    total = 2 * len(EPSILONS) + 2 * len(TRAINING_EPSILONS)
    with progress_bar(None, total, "measure", "points") as advance:
        retrieval = []
        for dim in (encoder.dim, PROJECTED):
            for epsilon in EPSILONS:
                retrieval.append(_retrieval(catalogue, vectors, asked, right, epsilon, dim))
                advance(1)
        training = []
        labels = chapters(catalogue)
        for count in (len(vectors), len(vectors) // 16):
            for one in TRAINING_EPSILONS:
                training.append(_training(vectors, labels, one, count))
                advance(1)
    return {
        "machine": describe(),
        "arguments": {"rows": rows, "queries": queries},
        "rows": len(vectors),
        "dim": encoder.dim,
        "queries": len(terms),
        "delta": DELTA,
        "speed": {"values_per_s": _values_per_s(vectors[:400])},
        "retrieval": retrieval,
        "training": training,
        "largest_class": max(labels.count(label) for label in set(labels)) / len(labels),
    }


def chapters(catalogue: Catalogue) -> list[str]:
    """The chapter of each row's code."""
    import simple_icd_10_cm as icd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in he_client.demo.catalogue
        return [(icd.get_ancestors(code) or [code])[-1] for code in catalogue.codes]


def _retrieval(
    catalogue: Catalogue, vectors: F32, asked: F32, right: list[str], epsilon: float | None, dim: int
) -> dict[str, Any]:
    truth = _best(vectors, asked)
    sigma = 0.0 if epsilon is None else 2 / largest_mu(epsilon, DELTA)
    rng = np.random.default_rng(SEED)
    shown, questions = vectors, asked
    if dim < vectors.shape[1]:
        projection = public_projection(vectors.shape[1], dim).astype(np.float32)
        shown, questions = vectors @ projection, asked @ projection
    if epsilon is not None:
        shown = _clipped(shown)
    noisy = shown + sigma * rng.standard_normal(shown.shape, np.float32)
    hidden = _clipped(questions) + sigma * rng.standard_normal(questions.shape, np.float32)
    figures: dict[str, Any] = {"epsilon": epsilon, "dim": dim, "sigma": sigma}
    for name, queries in (("", questions), ("noisy_queries_", hidden)):
        found = _best(noisy, queries)
        overlap = [len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]
        figures[f"{name}recall_at_10"] = float(np.mean(overlap))
        figures[f"{name}hit_at_10"] = hit_share([[catalogue.codes[r] for r in one] for one in found], right, K)
    return figures


def _clipped(rows: F32) -> F32:
    return np.asarray(rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True)), np.float32)


def _best(rows: F32, queries: F32) -> list[list[int]]:
    """For each query the K rows with the largest inner product."""
    found = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ rows.T
        found += np.argpartition(-scores, K, axis=1)[:, :K].tolist()
    return found


def _training(vectors: F32, labels: list[str], epsilon: float | None, count: int) -> dict[str, Any]:
    order = np.random.default_rng(SEED).permutation(len(vectors))
    held_out = int(len(vectors) * TEST_ROWS)
    test, train = order[:held_out], order[held_out:][: int(count * (1 - TEST_ROWS))]
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        path = Path(folder) / "budget"
        asked = 1.0 if epsilon is None else epsilon
        budget = _NoNoise(path) if epsilon is None else PrivacyBudget.open(path, epsilon=asked, delta=DELTA)
        model = train_classifier(
            vectors[train], [labels[i] for i in train], classes=sorted(set(labels)), epsilon=asked, delta=DELTA,
            budget=budget,
        )  # fmt: skip
    right = np.array([a == labels[i] for a, i in zip(model.predict(vectors[test]), test, strict=True)])
    of = np.array([labels[i] for i in test])
    return {
        "epsilon": epsilon,
        "rows": len(train),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([right[of == label].mean() for label in sorted(set(of))])),
    }


def _values_per_s(vectors: F32) -> float:
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        budget = PrivacyBudget.open(Path(folder) / "budget", epsilon=2, delta=DELTA)
        release_embeddings(vectors[:1], epsilon=1, delta=DELTA, budget=budget)  # imports
        start = time.perf_counter()
        release_embeddings(vectors, epsilon=1, delta=DELTA, budget=budget)
        return vectors.size / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, help="of the catalogue; default: all")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print_json(measure(arguments.rows, arguments.queries), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the hospitals train: a low-rank adapter of frozen embeddings, and a softmax classifier behind it.

    h = x + (x·A)·B        A (d, r), B (r, d): the adapter, B = 0 at first, so h = x
    p = softmax(h·W + b)   W (d, c), b (c,)

One flat vector of 2·d·r + d·c + c numbers. Training is minibatch gradient descent on the cross-entropy, in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.federated.records import Records

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """Shapes and how to train; the weights are passed in and out."""

    dim: int
    classes: int
    rank: int = 16
    learning_rate: float = 1.0  #: of `train`
    batch: int = 64

    @property
    def size(self) -> int:
        return 2 * self.dim * self.rank + (self.dim + 1) * self.classes

    def initial(self, seed: int) -> F64:
        """A ~ N(0, 1/d), the rest zero. Everybody starts from the same."""
        weights = np.zeros(self.size)
        adapter = np.random.default_rng(seed).normal(0, self.dim**-0.5, self.dim * self.rank)
        weights[: adapter.size] = adapter
        return weights

    def _parts(self, weights: F64) -> tuple[F64, F64, F64, F64]:
        """(A, B, W, b), views."""
        d, r, c = self.dim, self.rank, self.classes
        a, b, w, bias = np.split(weights, np.cumsum([d * r, r * d, d * c]))
        return a.reshape(d, r), b.reshape(r, d), w.reshape(d, c), bias

    def _forward(self, weights: F64, x: F64) -> tuple[F64, F64, F64]:
        """(x·A, h, logits)."""
        a, b, w, bias = self._parts(weights)
        low = x @ a
        h = x + low @ b
        return low, h, h @ w + bias

    def accuracy(self, weights: F64, records: Records) -> float:
        return float(
            np.mean(np.argmax(self._forward(weights, records.vectors.astype(np.float64))[2], axis=1) == records.labels)
        )

    def gradient(self, weights: F64, records: Records) -> F64:
        """Σ over records of the cross-entropy's gradient."""
        x = records.vectors.astype(np.float64)
        _, b, w, _ = self._parts(weights)
        low, h, delta = self._errors(weights, records)
        g = delta @ w.T
        parts = x.T @ (g @ b.T), low.T @ g, h.T @ delta, delta.sum(axis=0)
        return np.concatenate([part.reshape(-1) for part in parts])

    def clipped_gradient(self, weights: F64, records: Records, clip: float) -> F64:
        """The same of W and b alone, the last numbers of the weights, each record's scaled to a norm ≤ clip.

        A record's is the outer product of (h, 1) and δ, so its norm is √(‖h‖² + 1)·‖δ‖.
        """
        _, h, delta = self._errors(weights, records)
        norms = np.sqrt((np.einsum("ij,ij->i", h, h) + 1) * np.einsum("ij,ij->i", delta, delta))
        delta *= np.minimum(1, clip / np.maximum(norms, 1e-300))[:, None]
        return np.concatenate([(h.T @ delta).reshape(-1), delta.sum(axis=0)])

    def _errors(self, weights: F64, records: Records) -> tuple[F64, F64, F64]:
        """(x·A, h, δ): δ = p − y, predicted less true."""
        low, h, logits = self._forward(weights, records.vectors.astype(np.float64))
        delta = np.exp(logits - logits.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(records)), records.labels] -= 1
        return low, h, delta

    def train(self, weights: F64, records: Records, epochs: int, rng: np.random.Generator) -> F64:
        """The weights after some epochs over shuffled minibatches. Raises FloatingPointError where they grow without
        bound: the learning rate is too large for these records."""
        weights = weights.copy()
        for _ in range(epochs):
            order = rng.permutation(len(records))
            for start in range(0, len(order), self.batch):
                part = records[order[start : start + self.batch]]
                with np.errstate(over="raise", invalid="raise"):
                    weights -= self.learning_rate / len(part) * self.gradient(weights, part)
        return weights

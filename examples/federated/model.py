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
    learning_rate: float = 1.0
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

    def gradient(self, weights: F64, records: Records, clip: float = np.inf) -> F64:
        """Σ over records of the cross-entropy's gradient, each record's scaled to a norm ≤ clip.

        A record's gradient is four outer products, so its norm is that of their factors:
        ‖x‖²·‖B·g‖² + ‖x·A‖²·‖g‖² + ‖h‖²·‖δ‖² + ‖δ‖², with δ = p − y and g = W·δ.
        """
        x = records.vectors.astype(np.float64)
        _, b, w, _ = self._parts(weights)
        low, h, logits = self._forward(weights, x)
        delta = np.exp(logits - logits.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(x)), records.labels] -= 1
        if np.isfinite(clip):
            g = delta @ w.T
            squares = [np.einsum("ij,ij->i", v, v) for v in (x, g @ b.T, low, g, h, delta)]
            norms = np.sqrt(squares[0] * squares[1] + squares[2] * squares[3] + (squares[4] + 1) * squares[5])
            delta *= np.minimum(1, clip / np.maximum(norms, 1e-300))[:, None]  # every term is linear in δ
        g = delta @ w.T
        parts = x.T @ (g @ b.T), low.T @ g, h.T @ delta, delta.sum(axis=0)
        return np.concatenate([part.reshape(-1) for part in parts])

    def train(self, weights: F64, records: Records, epochs: int, rng: np.random.Generator) -> F64:
        """The weights after some epochs over shuffled minibatches."""
        weights = weights.copy()
        for _ in range(epochs):
            order = rng.permutation(len(records))
            for start in range(0, len(order), self.batch):
                part = records[order[start : start + self.batch]]
                weights -= self.learning_rate / len(part) * self.gradient(weights, part)
        return weights

"""k-nearest-neighbour prediction: the k most similar notes, weighted by how much more similar than the last they are.

    weight of neighbour i = s_i − s_k,   s_1 ≥ … ≥ s_k cosines        [Dudani 1976]

Weights go to 0 where one neighbour gives way to another, so scores that are a little off change little: with a vote for
each neighbour, a prediction often hangs on which of two notes is the k-th.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.healthcare.timing import REPEATS
from he_client.demo.plaintext import PlaintextSearch

F32 = NDArray[np.float32]
K = 30  #: chosen on patients of other seeds (11, 12)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Notes of some patients, as vectors, and the chapters of their principal diagnoses."""

    vectors: F32  #: (n, d)
    chapters: list[str]

    def __len__(self) -> int:
        return len(self.chapters)


def vote(neighbours: Sequence[tuple[str, float]]) -> str:
    """The chapter of most weight; of several, the nearest's. neighbours: chapter and score, the nearest first."""
    weights: dict[str, float] = {}
    for chapter, score in neighbours:
        weights[chapter] = weights.get(chapter, 0.0) + score - neighbours[-1][1]
    return max(weights, key=weights.__getitem__)


class PlaintextNeighbours:
    """By FAISS IndexFlatIP, in this process."""

    def __init__(self, train: Cohort, threads: int) -> None:
        self._search = PlaintextSearch(train.vectors, threads)
        self._train = train

    def predict(self, queries: F32) -> list[str]:
        predicted = []
        for query, rows in zip(queries, self._search.search(queries, K), strict=True):
            scores = self._train.vectors[rows] @ query
            neighbours = [(self._train.chapters[row], float(s)) for row, s in zip(rows, scores, strict=True)]
            predicted.append(vote(neighbours))
        return predicted

    def seconds(self, query: F32) -> float:
        """Of one query alone, median."""
        return self._search.seconds(query, K, REPEATS)

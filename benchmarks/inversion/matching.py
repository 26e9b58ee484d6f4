"""The attacker who looks for the text in a public corpus: nearest neighbour, of what is seen or of what is made of it.

The attacker has K pairs of (what is seen, vector of the text behind it), the corpus and its vectors. What is seen comes
as several maps of features. Each map is tried as it is, where it has as many features as a vector has coordinates and
they could be those (`direct`), and through a ridge regression from features to vectors. The attacker keeps whichever
does best on a quarter of the known pairs, learns it anew from all of them, and matches the targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.chance import share
from benchmarks.inversion.texts import Game

F64 = NDArray[np.float64]

WAYS = (2, 100)  #: choices offered beside the whole corpus
SHRINKAGE = (1e-3, 1e-2, 0.1, 1.0, 10.0)  #: of a ridge, times the number of samples (features have variance 1)
CHUNK = 1024  #: targets compared at a time


@dataclass(frozen=True, slots=True)
class View:
    """What one attacker sees: maps of features, (K + n, p) each, the known ones first."""

    maps: dict[str, F64]
    direct: frozenset[str] = frozenset()  #: those that might be vectors already


@dataclass(frozen=True, slots=True)
class Choice:
    """How the attacker goes about it."""

    map: str
    shrinkage: float | None  #: None: direct


class Ridge:
    """min ‖XW − Y‖² + λ‖W‖² on features of mean 0 and variance 1; one decomposition for every λ."""

    def __init__(self, features: F64, wanted: F64) -> None:
        self._mean, self._scale = features.mean(0), features.std(0)
        self._scale[self._scale == 0] = 1.0
        self._offset = wanted.mean(0)
        x = (features - self._mean) / self._scale
        self._values, self._axes = np.linalg.eigh(x.T @ x)
        self._projected = self._axes.T @ (x.T @ (wanted - self._offset))
        self._samples = len(x)

    def predict(self, features: F64, shrinkage: float) -> F64:
        weights = self._axes @ (self._projected / (self._values + shrinkage * self._samples)[:, None])
        predicted: F64 = (features - self._mean) / self._scale @ weights + self._offset
        return predicted


def choose(game: Game, view: View) -> Choice:
    """The map and the method that do best on known pairs which were kept from learning."""
    fit = game.known - game.known // 4
    wanted = _unit(game.learned - game.candidates.mean(0))
    best, choice = -1.0, Choice("", None)
    for name, features in view.maps.items():
        known = features[: game.known]
        tried: list[tuple[float | None, F64]] = []
        if name in view.direct:
            tried.append((None, known[fit:] - known.mean(0)))
        ridge = Ridge(known[:fit], wanted[:fit])
        tried += [(shrinkage, ridge.predict(known[fit:], shrinkage)) for shrinkage in SHRINKAGE]
        for shrinkage, guessed in tried:
            if (found := _percentile(guessed, wanted[fit:])) > best:
                best, choice = found, Choice(name, shrinkage)
    return choice


def guesses(game: Game, view: View, choice: Choice) -> F64:
    """A vector for each target."""
    features = view.maps[choice.map]
    known, targets = features[: game.known], features[game.known :]
    if choice.shrinkage is None:
        vectors: F64 = targets - known.mean(0)
        return vectors
    return Ridge(known, _unit(game.learned - game.candidates.mean(0))).predict(targets, choice.shrinkage)


def match(game: Game, guessed: F64, rng: np.random.Generator, confidence: float) -> dict[str, Any]:
    """How often the right text comes first, by how many there are to choose from: chance is 1/that."""
    corpus = _unit(game.candidates - game.candidates.mean(0)).astype(np.float32)
    n, size = len(game.places), len(corpus)
    others = rng.integers(0, size - 1, (n, max(WAYS) - 1))
    others += others >= game.places[:, None]
    hits = dict.fromkeys((*WAYS, size), 0)
    for first in range(0, n, CHUNK):
        part = slice(first, first + CHUNK)
        near = _unit(guessed[part]).astype(np.float32) @ corpus.T
        right = np.take_along_axis(near, game.places[part, None], 1)
        beside = np.take_along_axis(near, others[part], 1)
        for ways in WAYS:
            hits[ways] += int(np.sum(right[:, 0] > beside[:, : ways - 1].max(1)))
        hits[size] += int(np.sum(near.argmax(1) == game.places[part]))
    return {str(ways): share(count, n, confidence) for ways, count in hits.items()}


def _percentile(guessed: F64, wanted: F64) -> float:
    """Mean share of the others that are farther from a guess than the right one: chance is 1/2."""
    near = _unit(guessed) @ wanted.T
    return float(np.mean(near < np.diag(near)[:, None])) * len(near) / (len(near) - 1)


def _unit(vectors: NDArray[Any]) -> F64:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: F64 = wide / np.where(norms > 0, norms, 1)
    return unit

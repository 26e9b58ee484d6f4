"""The attacker who decodes words: from features of what is seen to the set of words of the text, linear or an MLP.

Learnt from the same known pairs as benchmarks.inversion.matching; words that too few of them have are not learnt, and
count as missed. A word is said to be there when its value is over a threshold, the one that is best (F1 over all words
of all texts) on a quarter of the pairs. Chance is what the same answers would score if they were given for the texts of
other targets, so it is 0 gain, exactly in the mean, for whoever learns nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.chance import bootstrap
from benchmarks.inversion.matching import SHRINKAGE, Ridge
from benchmarks.inversion.texts import Game, words_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bits = NDArray[np.bool_]

HIDDEN = 256
BATCH = 128
EPOCHS = 20
RATE = 2e-3
KINDS = ("linear", "mlp")


class Vocabulary:
    """The words that at least `least` of the known texts have, and which texts have them."""

    def __init__(self, game: Game, least: int) -> None:
        sets = [set(words_of(text)) for text in game.embedded]
        counts = Counter(word for words in sets[: game.known] for word in words)
        self.words = sorted(word for word, count in counts.items() if count >= least)
        self.known = self._matrix(sets[: game.known])
        self.targets = self._matrix(sets[game.known :])
        self.sizes = np.array([len(words) for words in sets[game.known :]], np.float64)  # of any word

    def _matrix(self, sets: Sequence[set[str]]) -> Bits:
        return np.array([[word in words for word in self.words] for words in sets], bool)


class Decoder:
    """A linear or MLP decoder with its threshold, learnt from features (K, p)."""

    def __init__(self, kind: str, features: F64, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
        fit = len(features) - len(features) // 4
        wanted, kept = vocabulary.known[:fit], vocabulary.known[fit:]
        if kind == "linear":
            ridge = Ridge(features[:fit], wanted.astype(np.float64))
            tried = [(s, *_threshold(ridge.predict(features[fit:], s), kept)) for s in SHRINKAGE]
            shrinkage, _, self._least = max(tried, key=lambda one: one[1])
            again = Ridge(features, vocabulary.known.astype(np.float64))
            self._values: Callable[[F64], F64] = partial(again.predict, shrinkage=shrinkage)
        else:
            network = Network(features[:fit], wanted, rng)  # not learnt anew: its threshold belongs to it
            _, self._least = _threshold(network(features[fit:]), kept)
            self._values = network

    def __call__(self, features: F64) -> Bits:
        said: Bits = self._values(features) > self._least
        return said


class Network:
    """features → 256 ReLU → a logit for each word; cross entropy, Adam."""

    def __init__(self, features: F64, wanted: Bits, rng: np.random.Generator) -> None:
        self._mean, self._scale = features.mean(0), features.std(0)
        self._scale[self._scale == 0] = 1.0
        x, y = self._standard(features), wanted.astype(np.float32)
        shapes = ((x.shape[1], HIDDEN), (HIDDEN, y.shape[1]))
        self._weights = [rng.normal(0, (2 / a) ** 0.5, (a, b)).astype(np.float32) for a, b in shapes]
        prior = np.clip(y.mean(0), 1e-4, 1 - 1e-4)
        self._biases = [np.zeros(HIDDEN, np.float32), np.log(prior / (1 - prior)).astype(np.float32)]
        self._weights[1] *= np.float32(0.1)
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in (*self._weights, *self._biases)]
        step = 0
        for _ in range(EPOCHS):
            order = rng.permutation(len(x))
            for first in range(0, len(x), BATCH):
                step += 1
                self._step(x[order[first : first + BATCH]], y[order[first : first + BATCH]], moments, step)

    def _standard(self, features: F64) -> F32:
        return np.asarray((features - self._mean) / self._scale, np.float32)

    def _step(self, x: F32, y: F32, moments: list[tuple[F32, F32]], step: int) -> None:
        (w1, w2), (b1, b2) = self._weights, self._biases
        hidden = np.maximum(x @ w1 + b1, 0)
        slope = (1 / (1 + np.exp(-np.clip(hidden @ w2 + b2, -30, 30))) - y) / np.float32(len(x))
        back = (slope @ w2.T) * (hidden > 0)
        gradients = (x.T @ back, hidden.T @ slope, back.sum(0), slope.sum(0))
        for value, gradient, (mean, square) in zip((w1, w2, b1, b2), gradients, moments, strict=True):
            mean += np.float32(0.1) * (gradient - mean)
            square += np.float32(1e-3) * (gradient * gradient - square)
            size = np.sqrt(square / np.float32(1 - 0.999**step)) + np.float32(1e-8)
            value -= np.float32(RATE / (1 - 0.9**step)) * mean / size

    def __call__(self, features: F64) -> F64:
        hidden = np.maximum(self._standard(features) @ self._weights[0] + self._biases[0], 0)
        values: F64 = (hidden @ self._weights[1] + self._biases[1]).astype(np.float64)
        return values


def _threshold(values: F64, wanted: Bits) -> tuple[float, float]:
    """(best F1, the value above which a word is said to be there)."""
    order = np.argsort(-values, axis=None)
    right = np.cumsum(wanted.reshape(-1)[order])
    f1 = 2 * right / (np.arange(1, right.size + 1) + wanted.sum())
    best = int(np.argmax(f1))
    sorted_values = values.reshape(-1)[order]
    following = sorted_values[best + 1] if best + 1 < right.size else sorted_values[best] - 1
    return float(f1[best]), float((sorted_values[best] + following) / 2)


def judge(said: Bits, vocabulary: Vocabulary, rng: np.random.Generator, confidence: float) -> dict[str, float]:
    """Precision, recall and F1 over all words of all targets, each with what chance is, and the gain over it."""
    there = vocabulary.targets
    right = np.sum(said & there, axis=1)
    by_chance = said @ there.sum(0, dtype=np.float64) - right  # over all other targets
    counts = np.column_stack([right, said.sum(1), vocabulary.sizes, by_chance / (len(there) - 1)]).astype(np.float64)
    total = counts.sum(0)
    f1_low, f1_high = bootstrap(counts, _f1, rng, confidence)
    gain_low, gain_high = bootstrap(counts, _gain, rng, confidence)
    return {
        "precision": float(total[0] / max(total[1], 1.0)),
        "recall": float(total[0] / total[2]),
        "f1": float(_f1(total[None])[0]),
        "f1_low": f1_low,
        "f1_high": f1_high,
        "f1_by_chance": float((_f1(total[None]) - _gain(total[None]))[0]),
        "gain": float(_gain(total[None])[0]),
        "gain_low": gain_low,
        "gain_high": gain_high,
    }


def _f1(sums: F64) -> F64:
    return np.asarray(2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]), np.float64)


def _gain(sums: F64) -> F64:
    return np.asarray(2 * (sums[:, 0] - sums[:, 3]) / (sums[:, 1] + sums[:, 2]), np.float64)


def decode(
    features: F64, vocabulary: Vocabulary, kinds: Sequence[str], rng: np.random.Generator, confidence: float
) -> dict[str, dict[str, float]]:
    """What the decoders of these kinds say of features (K + n, p); nothing, where too few texts are known."""
    if not vocabulary.words:
        return {}
    known = len(vocabulary.known)
    out = {}
    for kind in kinds:
        decoder = Decoder(kind, features[:known], vocabulary, rng)
        out[kind] = judge(decoder(features[known:]), vocabulary, rng, confidence)
    return out


def prior(vocabulary: Vocabulary, rng: np.random.Generator, confidence: float) -> dict[str, float]:
    """Of who sees nothing, and always names the words that are most frequent in known texts."""
    frequency = np.broadcast_to(vocabulary.known.mean(0), vocabulary.known.shape)
    _, least = _threshold(frequency.astype(np.float64), vocabulary.known)
    said = np.broadcast_to(frequency[0] > least, vocabulary.targets.shape)
    return judge(said, vocabulary, rng, confidence)

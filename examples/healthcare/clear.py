"""What is compared with: the most frequent chapter, k-NN and softmax regression, all of them on readable vectors."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from examples.healthcare.figures import Row
from examples.healthcare.neighbours import Cohort, PlaintextNeighbours
from examples.healthcare.patients import CHAPTERS
from examples.healthcare.timing import median_s
from he_client.protect.dp import LinearClassifier

STEPS, LEARNING_RATE, MOMENTUM = 200, 16.0, 0.9
SEARCHER = "who runs the search: vectors, chapters, questions, answers"
TRAINER = "who trains: all records; who gets the model: what it happens to give away of a patient"


def most_frequent(train: Cohort, test: Cohort) -> Row:
    most = Counter(train.chapters).most_common(1)[0][0]
    return Row.of("the most frequent chapter", "clear", [most] * len(test), test.chapters, "all: which one that is")


def neighbours(train: Cohort, test: Cohort, threads: int) -> tuple[list[str], Row]:
    """(predictions, row)."""
    start = time.perf_counter()
    search = PlaintextNeighbours(train, threads)
    prepare_s = time.perf_counter() - start
    predicted = search.predict(test.vectors)
    return predicted, Row.of(
        "k-NN", "clear", predicted, test.chapters, SEARCHER, prepare_s=prepare_s, prepare_bytes=train.vectors.nbytes,
        predict_s=search.seconds(test.vectors[0]), predict_bytes=test.vectors[0].nbytes,
    )  # fmt: skip


def softmax(train: Cohort, test: Cohort) -> Row:
    start = time.perf_counter()
    model = _trained(train)
    prepare_s = time.perf_counter() - start
    predicted = [str(one) for one in model.predict(test.vectors)]
    return Row.of(
        "softmax regression", "clear", predicted, test.chapters, TRAINER, prepare_s=prepare_s,
        prepare_bytes=train.vectors.nbytes, predict_s=median_s(lambda: model.predict(test.vectors[:1])),
        predict_bytes=0,
    )  # fmt: skip


def _trained(train: Cohort) -> LinearClassifier:
    """Gradient descent with all rows in every step, from zero: nothing is random."""
    x = np.hstack([train.vectors, np.ones((len(train), 1))])
    right = np.eye(len(CHAPTERS))[[CHAPTERS.index(chapter) for chapter in train.chapters]]
    weights = np.zeros((x.shape[1], len(CHAPTERS)))
    velocity = np.zeros_like(weights)
    for _ in range(STEPS):
        guess = np.exp(x @ weights)
        guess /= guess.sum(axis=1, keepdims=True)
        velocity = MOMENTUM * velocity + x.T @ (guess - right) / len(train)
        weights = weights - LEARNING_RATE * velocity
    return LinearClassifier(CHAPTERS, weights)

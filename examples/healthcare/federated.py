"""Federated: every hospital keeps its records, and an aggregator without a key adds up encrypted updates.

All of it is examples/federated, with these patients' records: softmax regression behind a low-rank adapter of the
embedding, through Flower, in one process.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.federated.records import Records
from examples.federated.run import Federation, Outcome
from examples.federated.setting import Setting
from examples.healthcare.figures import Row
from examples.healthcare.neighbours import Cohort
from examples.healthcare.patients import CHAPTERS, HOSPITALS

NEVER = "who trains: all records"
AGGREGATOR = "the aggregator: every hospital's updates, which give records away"
HOSPITALS_SEE = "the aggregator: sizes and times; hospitals: the average of their updates"
PRIVATE = "the aggregator: sizes and times; everybody else: (ε, δ) of each patient"

EPOCHS, LEARNING_RATE = 3, 0.5  #: chosen with the patients of another seed than those measured


def federation(train: Cohort, test: Cohort, hospitals: Sequence[str], rounds: int) -> Federation:
    """hospitals: of each patient to train on."""
    labels = np.array([CHAPTERS.index(chapter) for chapter in train.chapters])
    of = np.array(hospitals)
    shares = [Records(train.vectors[of == name], labels[of == name]) for name in HOSPITALS]
    tested = Records(test.vectors, np.array([CHAPTERS.index(chapter) for chapter in test.chapters]))
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = Setting(hospitals=len(HOSPITALS), rounds=rounds, epochs=EPOCHS, learning_rate=LEARNING_RATE)
    return Federation(setting, shares, tested, len(CHAPTERS))


def rows(one: Federation, epsilons: Sequence[float]) -> list[Row]:
    """Each ε is an alternative: every hospital has a budget for each."""
    found = [
        _row(one, "adapter, all records together", NEVER, one.centralised()),
        _row(one, "adapter, each hospital alone (mean)", "nobody anything", one.local()),
        _row(one, "adapter, federated", AGGREGATOR, one.plain()),
        _row(one, "adapter, federated, encrypted", HOSPITALS_SEE, one.encrypted()),
    ]
    for epsilon in epsilons:
        with tempfile.TemporaryDirectory(prefix="hesearch-healthcare-") as folder:
            outcome = one.private(epsilon, Path(folder))
        found.append(_row(one, "adapter, federated, encrypted, DP", PRIVATE, outcome, epsilon))
    return found


def _row(one: Federation, method: str, learns: str, outcome: Outcome, epsilon: float | None = None) -> Row:
    rounds, sent = one.setting.rounds, outcome.get("bytes_up")
    return Row.of_share(
        method, "federated", outcome["accuracy"], len(one.tested), learns, epsilon=epsilon,
        prepare_s=outcome["seconds_a_round"] * rounds,
        prepare_bytes=None if sent is None else round(sent * rounds * len(one.shares)),
    )  # fmt: skip

"""A hospital: its records, its copy of the model, and how it trains. With `python -m`, a process.

It gets three things: a folder of what everybody knows, its own identity, and the shared key, sealed to that
identity by the first hospital. When the aggregator says that training is over, it leaves result.json and ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from examples.federated.model import F64, Model
from examples.federated.records import Records, load_records, split
from examples.federated.setting import Setting
from he_client.key_sharing import Identity, PublicIdentity, accept_key
from he_client.protect.federated import UpdateCipher
from he_client.protect.federated.participant import Participant


class Mechanism(Protocol):
    """Of he_client.protect.dp, which spends a budget for it."""

    def release(self, values: F64, *, sensitivity: float) -> F64:
        """values and noise for that sensitivity."""


class Hospital:
    """A Trainer. The records stay in it."""

    def __init__(self, setting: Setting, model: Model, records: Records, number: int) -> None:
        self._setting, self._model, self._records, self._number = setting, model, records, number
        self.weights = model.initial(setting.seed)

    def train(self, round_: int) -> tuple[F64, int]:
        """(change, number of records): local epochs, and then every coordinate clipped to the bound."""
        rng = np.random.default_rng((self._setting.seed, self._number, round_))
        trained = self._model.train(self.weights, self._records, self._setting.epochs, rng)
        return self._clipped(trained - self.weights), len(self._records)

    def apply(self, change: F64) -> None:
        self.weights = self.weights + change

    def _clipped(self, change: F64) -> F64:
        return np.clip(change, -self._setting.bound, self._setting.bound)


class PrivateHospital(Hospital):
    """One gradient step of the classifier over all records a round, of which only a noisy gradient is seen.

    Replacing one record moves the sum of clipped gradients by at most 2·CLIP, so every round is a release of the
    Gaussian mechanism, whatever others do with it. The adapter stays as it is: noise in both factors of a product grows
    from round to round, and with few records without bound, whereas a classifier alone is a convex problem.
    """

    CLIP, LEARNING_RATE = 1.0, 32.0
    SENSITIVITY = 2 * CLIP * (1 + 2.0**-20)  # and rounding: n terms of float64 are off by less than n²·2^-53

    def __init__(self, setting: Setting, model: Model, records: Records, number: int, mechanism: Mechanism) -> None:
        super().__init__(setting, model, records, number)
        self._mechanism = mechanism

    def train(self, round_: int) -> tuple[F64, int]:
        del round_
        gradient = self._model.clipped_gradient(self.weights, self._records, self.CLIP)
        change = np.zeros(self._model.size)
        change[-gradient.size :] = self._mechanism.release(gradient, sensitivity=self.SENSITIVITY)
        return self._clipped(-self.LEARNING_RATE / len(self._records) * change), len(self._records)


def main() -> int:
    parser = argparse.ArgumentParser(description="One hospital of a federation, as a process of its own.")
    parser.add_argument("--common", type=Path, required=True, help="setting.json, participants.json, ca.pem")
    parser.add_argument(
        "--own", type=Path, required=True, help="identity.key, shared.key; the passphrase comes on stdin"
    )
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--aggregator", required=True, metavar="HOST:PORT")
    arguments = parser.parse_args()
    from flwr.client import start_client

    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = Setting.load(arguments.common / "setting.json")
    begun = arguments.own / f"{setting.run}.begun"
    if begun.exists():
        parser.error(f"{begun}: this hospital has begun that run before; start a new one, with another `run`")
    begun.touch()
    identity = Identity.load(arguments.own / "identity.key", passphrase=sys.stdin.readline().strip())
    people = json.loads((arguments.common / "participants.json").read_text())
    first = PublicIdentity.parse(people[setting.names[0]]["identity"])
    key = accept_key(arguments.own / "shared.key", identity, first)
    records, classes = load_records(setting.records)
    shares, tested = split(records, setting.hospitals, setting.alpha, setting.seed)
    model = Model(dim=records.vectors.shape[1], classes=classes, learning_rate=setting.learning_rate)
    trainer = Hospital(setting, model, shares[arguments.number], arguments.number)
    cipher = UpdateCipher(key, setting.parameters(model.size), setting.names[arguments.number], setting.minimum)
    start_client(
        server_address=arguments.aggregator,
        client=Participant(trainer, cipher, identity),
        root_certificates=(arguments.common / "ca.pem").read_bytes(),
        max_retries=setting.retries,
    )
    result = {"accuracy": model.accuracy(trainer.weights, tested), "weights": trainer.weights.tolist()}
    (arguments.own / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

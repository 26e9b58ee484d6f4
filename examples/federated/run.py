"""Hospitals train one model without showing anybody their records: accuracy, bytes and seconds of five ways to do it.

    python -m examples.federated.run --small                  (a minute)
    python -m examples.federated.run --json docs/figures/federated.json --readme

Needs  pip install '.[federated,demo]'  and, for --dp,  '.[protect]'.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from examples.federated import in_process, processes, table
from examples.federated.hospital import Hospital, PrivateHospital
from examples.federated.model import F64, Model
from examples.federated.plain import PlainHospital, average
from examples.federated.records import Records, load_records, split
from examples.federated.setting import Setting
from he_client import CollectionKey
from he_client.key_sharing import Identity
from he_client.protect.federated import UpdateCipher
from he_client.protect.federated.participant import Participant
from he_server.federated import EncryptedAverage

DELTA = 1e-5
README = Path(__file__).with_name("README.md")
Outcome = dict[str, float]


class Federation:
    """Records, dealt out, and the ways to train on them."""

    def __init__(self, setting: Setting, shares: list[Records], tested: Records, classes: int) -> None:
        """shares: of each hospital. tested: what all are tested on."""
        self.setting, self.shares, self.tested = setting, shares, tested
        self.model = Model(dim=tested.vectors.shape[1], classes=classes, learning_rate=setting.learning_rate)

    def _accuracy(self, weights: F64) -> float:
        return self.model.accuracy(weights, self.tested)

    def _alone(self, records: Records) -> F64:
        rng = np.random.default_rng((self.setting.seed, 99))
        first = self.model.initial(self.setting.seed)
        return self.model.train(first, records, self.setting.rounds * self.setting.epochs, rng)

    def centralised(self) -> Outcome:
        """What nobody may do: all records in one place."""
        pooled = Records(
            np.concatenate([share.vectors for share in self.shares]),
            np.concatenate([share.labels for share in self.shares]),
        )
        start = time.perf_counter()
        weights = self._alone(pooled)
        return {
            "accuracy": self._accuracy(weights),
            "seconds_a_round": (time.perf_counter() - start) / self.setting.rounds,
        }

    def local(self) -> Outcome:
        """Each hospital by itself; the mean over hospitals."""
        start = time.perf_counter()
        accuracies = [self._accuracy(self._alone(share)) for share in self.shares]
        seconds = (time.perf_counter() - start) / self.setting.rounds
        return {"accuracy": float(np.mean(accuracies)), "seconds_a_round": seconds}

    def plain(self) -> Outcome:
        """Flower's FedAvg: the aggregator reads every update."""
        hospitals = self._hospitals()
        strategy = average(self.model.initial(self.setting.seed), len(hospitals))
        server, costs = in_process.run(strategy, [PlainHospital(one) for one in hospitals], self.setting.rounds)
        return {"accuracy": self._accuracy(strategy.weights(server)), **costs}

    def encrypted(self, hospitals: list[Hospital] | None = None) -> Outcome:
        """The same, encrypted. hospitals: others than usual."""
        hospitals = hospitals or self._hospitals()
        setting, key = self.setting, CollectionKey.generate()
        parameters = setting.parameters(self.model.size)
        identities = [Identity.generate() for _ in hospitals]
        clients = [
            Participant(hospital, UpdateCipher(key, parameters, name, setting.minimum), identity).to_client()
            for hospital, name, identity in zip(hospitals, setting.names, identities, strict=True)
        ]
        people = {name: one.public.signing for name, one in zip(setting.names, identities, strict=True)}
        strategy = EncryptedAverage(parameters, people, minimum=len(hospitals))
        _, costs = in_process.run(strategy, clients, setting.rounds)
        if any(not np.array_equal(one.weights, hospitals[0].weights) for one in hospitals):
            raise RuntimeError("the hospitals ended with different models")
        return {"accuracy": self._accuracy(hospitals[0].weights), **costs}

    def private(self, epsilon: float, folder: Path) -> Outcome:
        """Encrypted, and every hospital's updates are (ε, δ)-private in each of its records."""
        from he_client.protect.dp import PrivacyBudget

        hospitals: list[Hospital] = []
        for number, share in enumerate(self.shares):
            path = folder / f"{self.setting.seed}-{number}.budget"
            budget = PrivacyBudget.open(path, epsilon=epsilon, delta=DELTA)
            what, rounds = "federated training", self.setting.rounds
            mechanism = budget.spend(epsilon=epsilon, delta=DELTA, what=what, releases=rounds)
            hospitals.append(PrivateHospital(self.setting, self.model, share, number, mechanism))
        return self.encrypted(hospitals)

    def _hospitals(self) -> list[Hospital]:
        return [Hospital(self.setting, self.model, share, number) for number, share in enumerate(self.shares)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="1,500 records, 3 hospitals, 10 rounds, 2 seeds")
    parser.add_argument("--seeds", type=int, default=5, help="splits and first models (default: %(default)s)")
    parser.add_argument(
        "--dp", type=float, action="append", default=[], metavar="EPSILON", help=f"with δ = {DELTA:g}; repeatable"
    )
    parser.add_argument(
        "--processes", action="store_true", help="also as separate processes over TLS, for the first seed"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md of this folder")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds: got {arguments.seeds}, expected 2 or more: intervals are over seeds")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    small: dict[str, Any] = {"records": 1500, "hospitals": 3, "rounds": 10, "epochs": 2} if arguments.small else {}
    figures = measure(Setting(**small), 2 if arguments.small else arguments.seeds, arguments.dp, arguments.processes)
    print(table.markdown(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.readme:
        README.write_text(table.inserted(README.read_text(), figures))
    return 0


def measure(setting: Setting, seeds: int, epsilons: list[float], with_processes: bool) -> dict[str, Any]:
    records, classes = load_records(setting.records)
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            dealt = split(records, setting.hospitals, setting.alpha, seed)
            federation = Federation(replace(setting, seed=seed), *dealt, classes)
            ways: dict[str, Callable[[], Outcome]] = {
                "centralised": federation.centralised,
                "local": federation.local,
                "plain": federation.plain,
                "encrypted": federation.encrypted,
            }
            for epsilon in epsilons:
                ways[f"dp {epsilon:g}"] = lambda epsilon=epsilon, f=federation: f.private(  # type: ignore[misc]
                    epsilon, Path(folder) / f"{epsilon}"
                )
                (Path(folder) / f"{epsilon}").mkdir(exist_ok=True)
            for way, train in ways.items():
                outcomes.setdefault(way, []).append(train())
    parameters = setting.parameters(federation.model.size)
    figures: dict[str, Any] = {
        "records": len(records), "classes": classes, "hospitals": setting.hospitals, "rounds": setting.rounds,
        "alpha": setting.alpha, "seeds": seeds, "parameters": parameters.values, "ciphertexts": parameters.blocks,
        "levels": parameters.levels, "bound": setting.bound, "delta": DELTA,
        "cores": os.cpu_count(), "versions": {name: version(name) for name in ("flwr", "tenseal", "numpy")},
        "ways": {way: summary(found) for way, found in outcomes.items()},
    }  # fmt: skip
    pairs = zip(outcomes["encrypted"], outcomes["plain"], strict=True)
    figures["encrypted_less_plain"] = [one["accuracy"] - other["accuracy"] for one, other in pairs]
    if with_processes:
        figures["processes"] = separate(
            replace(setting, seed=0), federation.model, outcomes["encrypted"][0]["accuracy"]
        )
    return figures


def summary(found: list[Outcome]) -> dict[str, Any]:
    """Means over seeds; of the accuracy, half the 95 % interval by Student's t, too."""
    accuracies = [one["accuracy"] for one in found]
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    half = _T95[len(found)] * float(np.std(accuracies, ddof=1)) / math.sqrt(len(found))
    return {**means, "accuracy_half_interval": half, "accuracies": accuracies}


#: Student's t at 97.5 %, by the number of seeds.
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def separate(setting: Setting, model: Model, in_one_process: float) -> dict[str, Any]:
    """The same training as processes of their own: it must end with the same model."""
    with tempfile.TemporaryDirectory() as folder:
        found = processes.run(setting, model.size, Path(folder), CollectionKey.generate())
    models = [one["weights"] for one in found["hospitals"]]
    if any(weights != models[0] for weights in models):
        raise RuntimeError("the hospitals ended with different models")
    told = found["aggregator"]
    exchanges = setting.hospitals * setting.rounds
    return {
        "accuracy": found["hospitals"][0]["accuracy"],
        "same_as_in_one_process": found["hospitals"][0]["accuracy"] == in_one_process,
        "seconds": found["seconds"],
        "bytes_up": told["bytes_in"] / exchanges,
        "bytes_down": told["bytes_out"] / exchanges,
        "aggregator_can_decrypt": sorted(
            name for name in told["modules"] if name.split(".")[0] in ("tenseal", "he_client")
        ),
    }


if __name__ == "__main__":
    sys.exit(main())

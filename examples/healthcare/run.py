"""Diagnoses predicted from notes of synthetic patients: in the clear, encrypted, private, federated.

    make healthcare                                                   # all of it; a page and a plot in build/healthcare
    python -m examples.healthcare.run --small                         # a tenth of the patients, in a minute
    python -m examples.healthcare.run --json figures.json --seed 2    # other patients; figures in a file

It prints the table of the page (examples/healthcare/README.md), which says what it means.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import describe
from examples.healthcare import clear, encrypted, federated, page, private
from examples.healthcare.figures import Against, Figures, Row
from examples.healthcare.identifiers import left, pseudonyms, without_identifiers
from examples.healthcare.neighbours import Cohort, K
from examples.healthcare.patients import CHAPTERS, HOSPITALS, Patient, make_patients
from he_client import Client
from he_client.demo.encoders import load_encoder
from he_client.demo.server_process import ServerProcess
from he_client.protect.text import PseudonymKey
from he_engine.errors import HesearchError

TRAIN, TEST = 6000, 2000  #: patients
SMALL = 10  #: divides both
PROFILES = ("exact", "compact")
OF_MODELS, OF_VECTORS = (1.0, 2.0, 4.0, 8.0), (8.0, 64.0)  #: ε
STEPS = 5
ROUNDS, SMALL_ROUNDS = 30, 5  #: of federated training
FEDERATED = (8.0,)  #: ε


@dataclass(frozen=True, slots=True)
class Setting:
    small: bool
    seed: int
    threads: int


@dataclass(frozen=True, slots=True)
class Data:
    """Patients, and what is known of them, in order: those to train on first."""

    patients: list[Patient]
    notes: list[str]  #: without identifiers
    train: Cohort
    test: Cohort


def run(setting: Setting) -> Figures:
    """Raises MissingExtra, Unavailable (the server does not start). The server and its folder are gone afterwards."""
    started = time.perf_counter()
    data = _data(setting)
    rows, against = _searches(data, setting)
    rows += _private(data, setting)
    rows += _federated(data, setting)
    train = data.patients[: len(data.train)]
    return Figures(
        machine=describe(),
        arguments=asdict(setting),
        train=len(data.train),
        test=len(data.test),
        hospitals={name: sum(p.hospital == name for p in train) for name in HOSPITALS},
        chapters=len(CHAPTERS),
        dim=data.train.vectors.shape[1],
        k=K,
        delta=private.DELTA,
        identifiers=sum(len(p.identifiers) for p in data.patients),
        identifiers_left=left(data.patients, data.notes),
        note=data.patients[len(data.train)].note,
        embedded=data.notes[len(data.train)],
        total_s=time.perf_counter() - started,
        rows=rows,
        against=against,
    )


def _data(setting: Setting) -> Data:
    of_training, of_test = (count // SMALL if setting.small else count for count in (TRAIN, TEST))
    _step(1, f"{of_training + of_test:,} synthetic patients")
    patients = make_patients(of_training + of_test, setting.seed)
    _step(2, "names, record numbers and telephones taken out of the notes, and the rest embedded; all of it here")
    notes = without_identifiers(patients)
    vectors = load_encoder("wordllama").embed(notes)
    chapters = [p.chapter for p in patients]
    train = Cohort(vectors[:of_training], chapters[:of_training])
    return Data(patients, notes, train, Cohort(vectors[of_training:], chapters[of_training:]))


def _searches(data: Data, setting: Setting) -> tuple[list[Row], list[Against]]:
    _step(3, "k-nearest neighbours on a server that reads nothing, and in the clear")
    train, test = data.train, data.test
    ids = pseudonyms(data.patients[: len(train)], PseudonymKey.generate())
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-healthcare-") as folder,
        ServerProcess(Path(folder), setting.threads) as server,
        Client(server.address, insecure=True, threads=setting.threads) as client,
    ):
        found = [encrypted.predict(client, profile, ids, train, test.vectors) for profile in PROFILES]
    # Afterwards: threads of FAISS and NumPy spin for a while when their work is done, beside the server.
    plain, row = clear.neighbours(train, test, setting.threads)
    rows = [clear.most_frequent(train, test), row, *(one.row(test) for one in found), clear.softmax(train, test)]
    return rows, [one.against(plain, test) for one in found]


def _private(data: Data, setting: Setting) -> list[Row]:
    _step(4, "differential privacy: noisy training, noisy vectors")
    of_models, of_vectors = (OF_MODELS[-1:], OF_VECTORS[:1]) if setting.small else (OF_MODELS, OF_VECTORS)
    return [
        *(private.classifier(data.train, data.test, epsilon) for epsilon in of_models),
        *(private.neighbours(data.train, data.test, epsilon, setting.threads) for epsilon in of_vectors),
    ]


def _federated(data: Data, setting: Setting) -> list[Row]:
    _step(5, "federated: hospitals keep their records, and an aggregator adds up encrypted updates")
    hospitals = [p.hospital for p in data.patients[: len(data.train)]]
    rounds = SMALL_ROUNDS if setting.small else ROUNDS
    return federated.rows(federated.federation(data.train, data.test, hospitals, rounds), FEDERATED)


def _step(number: int, what: str) -> None:
    print(f"[{number}/{STEPS}] {what}", file=sys.stderr, flush=True)


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.healthcare.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="a tenth of the patients, and one ε")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=1, help="of the patients (default: 1); of no key and no noise")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of server and client")
    given = parser.parse_args(None if arguments is None else list(arguments))
    if given.json and not given.json.parent.is_dir():
        parser.error(f"--json {given.json}: there is no folder {given.json.parent}")
    try:
        figures = asdict(run(Setting(given.small, given.seed, given.threads)))
    except HesearchError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(page.render(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

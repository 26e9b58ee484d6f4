"""Is everything there that was acknowledged, and nothing that was not?"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from he_server.storage.kek import open_kek
from tests.faults.workload import Keys, Model, Rows, Session, payload, vector

TOLERANCE = 6e-3  #: of a score of the profile `compact`: ten standard deviations, and the rounding of rows
_QUERY = vector(-1 & 0xFFFF, 0)
_PROBES = 900  #: ids of rows that a check inserts; the script has none of them


@dataclass(slots=True)
class Verdict:
    """Of one run. `lost`, `phantom`: rows. `notes`: what happened, for counts."""

    lost: int = 0
    phantom: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Any exception is a problem."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")

    def compare(self, what: str, found: Model, allowed: Sequence[Model]) -> None:
        """`found` is one of `allowed`; if not, it is compared with the nearest."""
        if found in allowed:
            return
        lost, phantom = min((_differences(found, model) for model in allowed), key=lambda d: len(d[0]) + len(d[1]))
        self.lost += sum(" row " in item for item in lost)
        self.phantom += sum(" row " in item for item in phantom)
        if not lost and not phantom:
            lost = ["a mixture"]
        self.problems.append(f"{what}: missing {lost[:4]}, there and not expected {phantom[:4]}")


def _items(model: Model) -> set[str]:
    rows = {f"{name} row {row} revision {revision}" for name in model for row, revision in model[name].items()}
    return rows | {f"collection {name}" for name in model}


def _differences(found: Model, expected: Model) -> tuple[list[str], list[str]]:
    return sorted(_items(expected) - _items(found)), sorted(_items(found) - _items(expected))


def observe(session: Session, verdict: Verdict, what: str) -> Model:
    """Everything that there is, by searching all of it; wrong payloads, scores and counts are problems."""
    return {name: _rows(session, name, verdict, what) for name in session.names()}


def _rows(session: Session, name: str, verdict: Verdict, what: str) -> Rows:
    collection = session.collection(name)
    hits = collection.search(_QUERY, k=1000)
    rows: Rows = {}
    for hit in hits:
        revision = str(hit.payload).rpartition(" ")[2]
        if hit.payload != payload(name, hit.id, int(revision) if revision.isdigit() else -1):
            verdict.problems.append(f"{what}: {name} row {hit.id} has another payload")
            continue
        rows[hit.id] = int(revision)
        if abs(hit.score - float(vector(hit.id, int(revision)) @ _QUERY)) > TOLERANCE:
            verdict.problems.append(f"{what}: {name} row {hit.id} has a wrong score")
    if any(first.score < second.score for first, second in pairwise(hits)):
        verdict.problems.append(f"{what}: {name}: the scores do not descend")
    if len(rows) != len(hits) or collection.count() != len(hits):
        verdict.problems.append(f"{what}: {name}: {len(hits)} hits, {len(rows)} rows, count {collection.count()}")
    return rows


def probe(session: Session, model: Model, revision: int) -> Model:
    """A row more in every collection, and so what there is then. Raises what the client raises."""
    row = _PROBES + revision
    for name in sorted(model) or ["probe"]:
        if name not in model:
            session.create(name)
        session.write(name, "insert", {row: revision})
        model = {**model, name: model.get(name, {}) | {row: revision}}
    return model


def examine(folder: Path, keys: Keys, allowed: Sequence[Model], verdict: Verdict) -> None:
    """Opens the folder: it is all there; it takes a write; opened again, it is all there again; and fsck is content."""
    expected = list(allowed)
    for opening in (1, 2):
        what = f"opening {opening}"
        session = Session(folder, keys)
        found: Model | None = None
        with verdict.trying(what):
            session.open()
            found = observe(session, verdict, what)
            verdict.compare(what, found, expected)
            expected = [probe(session, found, opening)]
        if found is None:  # nobody can read them: it is no comfort that an error says so
            verdict.lost += min(sum(map(len, model.values())) for model in expected)
        with verdict.trying(f"{what}, closing"):
            session.close()
        if verdict.problems:
            return
    with verdict.trying("fsck"):
        verdict.problems += [f"fsck: {problem}" for problem in fsck(folder, keys)]


def fsck(folder: Path, keys: Keys) -> list[str]:
    """Its problems."""
    if importlib.util.find_spec("he_server.operate.fsck") is None:
        return []
    report = importlib.import_module("he_server.operate.fsck").check(folder, open_kek(keys.kek) if keys.kek else None)
    return [] if report.clean else list(report.problems) or ["not clean"]

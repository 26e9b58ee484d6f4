"""What a store is put through: a script of steps, and what there is after each.

A row is (id, revision): its vector and payload follow from both, so whatever a search finds tells what it ought to be.
A step that is missing here is one line in `scripts`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_client import Client, Collection, CollectionKey, embedded
from he_server.config import ServerConfig
from he_server.storage.kek import new_kek_file
from he_server.storage.rekey import rotate

DIM = 8
STRIDE = 4  #: small blocks and hints: what is tested here is files, not arithmetic

Rows = dict[int, int]  #: id → revision
Model = dict[str, Rows]  #: by collection


def vector(row: int, revision: int) -> NDArray[np.float64]:
    """(DIM,), of norm 1."""
    drawn = np.random.default_rng([row, revision]).standard_normal(DIM)
    unit: NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return unit


def payload(name: str, row: int, revision: int) -> str:
    return f"{name} {row} {revision}"


@dataclass(frozen=True, slots=True)
class Keys:
    """`kek`, `previous_kek`: as ServerConfig takes them; empty: the folder is not sealed."""

    collection: CollectionKey
    kek: str = ""
    previous_kek: str = ""


class Session:
    """One client after the other on one folder. `open` first; `keys` are those of the next one."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder = folder
        self.keys = keys
        self.client: Client | None = None
        self._opened: dict[str, Collection] = {}

    def open(self) -> None:
        config = functools.partial(ServerConfig, kek=self.keys.kek, previous_kek=self.keys.previous_kek)
        vars(embedded)["ServerConfig"] = config  # clients have no such arguments
        self.client = Client(self.folder, threads=1)

    @property
    def _client(self) -> Client:
        assert self.client is not None, "the session is not open"
        return self.client

    def collection(self, name: str) -> Collection:
        if name not in self._opened:
            self._opened[name] = self._client.open_collection(name, key=self.keys.collection)
        return self._opened[name]

    def names(self) -> list[str]:
        return [c.name for c in self._client.list_collections()]

    def create(self, name: str) -> None:
        self._opened[name] = self._client.create_collection(
            name, dim=DIM, key=self.keys.collection, profile="compact", stride=STRIDE
        )

    def compact(self, name: str) -> None:
        self.collection(name).compact(progress=False)

    def drop(self, name: str) -> None:
        self._opened.pop(name, None)
        self._client.drop_collection(name)

    def write(self, name: str, method: str, rows: Rows) -> None:
        """`method`: insert or upsert."""
        vectors = np.array([vector(*row) for row in rows.items()])
        payloads = [payload(name, *row) for row in rows.items()]
        getattr(self.collection(name), method)(list(rows), vectors, payloads, progress=False)

    def rotate(self) -> None:
        """New data keys, and all files under them."""
        rotate(self._client._remote.transport._service.store, 0.0)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._opened.clear()
        client, self.client = self.client, None
        if client is not None:
            client.close()


@dataclass(frozen=True, slots=True)
class Step:
    """One call, or a few that change nothing of what there is. It is acknowledged when `run` returns."""

    name: str
    run: Callable[[Session], None]
    after: Callable[[Model], Model]
    keys: Keys | None = None  #: those that the folder is under from now on, where they change


def _same(model: Model) -> Model:
    return model


def opening(what: str = "open") -> Step:
    return Step(what, Session.open, _same)


def _reopen(what: str = "reopen", keys: Keys | None = None) -> Step:
    def run(session: Session) -> None:
        session.close()
        session.keys = keys or session.keys
        session.open()

    return Step(what, run, _same, keys)


def _rotate() -> Step:
    return Step("rotate data keys", Session.rotate, _same)


def _create(name: str) -> Step:
    return Step(f"create {name}", lambda s: s.create(name), lambda m: {**m, name: {}})


def _write(name: str, method: str, ids: Iterable[int], revision: int) -> Step:
    rows = dict.fromkeys(ids, revision)
    label = f"{method} {len(rows)} rows into {name}"
    return Step(label, lambda s: s.write(name, method, rows), lambda m: {**m, name: m[name] | rows})


def _delete(name: str, ids: Iterable[int]) -> Step:
    gone = list(ids)

    def run(session: Session) -> None:
        session.collection(name).delete(gone)

    def after(model: Model) -> Model:
        return {**model, name: {row: revision for row, revision in model[name].items() if row not in gone}}

    return Step(f"delete {len(gone)} rows of {name}", run, after)


def _drop(name: str) -> Step:
    return Step(f"drop {name}", lambda s: s.drop(name), lambda m: {n: rows for n, rows in m.items() if n != name})


def _compact(name: str) -> Step:
    return Step(f"compact {name}", lambda s: s.compact(name), _same)


def scripts(key: CollectionKey, folder: Path) -> dict[str, tuple[Keys, list[Step]]]:
    """Each from an empty folder on, with the keys of its first step. `folder`: for files of key-encryption keys."""
    keks = [folder / "kek-1", folder / "kek-2"]
    for path in keks:
        new_kek_file(path)
    plain, sealed = Keys(key), Keys(key, f"file:{keks[0]}")
    changed = Keys(key, f"file:{keks[1]}", previous_kek=sealed.kek)
    return {
        "plain": (plain, _everything([])),
        "sealed": (sealed, _everything([_rotate()])),
        "sealing": (
            plain,
            [
                opening(),
                _create("notes"),
                _write("notes", "insert", range(9), 1),
                _write("notes", "insert", range(20, 25), 1),
                _reopen("reopen and seal", sealed),
                _rotate(),
                _delete("notes", range(5)),
                _reopen("reopen under another kek", changed),
                _write("notes", "upsert", range(3, 8), 2),
                _rotate(),
            ],
        ),
    }


def _everything(at_half: list[Step]) -> list[Step]:
    return [
        opening(),
        _create("notes"),
        _write("notes", "insert", range(12), 1),
        _create("people"),
        _write("people", "insert", range(7), 1),
        _write("notes", "insert", range(20, 29), 2),
        _delete("notes", [1, 3, 21]),
        _reopen(),
        _write("notes", "upsert", [0, 2, 22, 30, 31], 3),
        _write("people", "insert", range(10, 14), 2),
        *at_half,
        _delete("people", range(7)),  # a whole segment, whose file goes
        _compact("notes"),
        _drop("people"),
        _create("people"),
        _write("people", "insert", range(5), 3),
        _write("notes", "insert", range(40, 44), 4),
        _reopen(),
        _delete("people", range(5)),
    ]

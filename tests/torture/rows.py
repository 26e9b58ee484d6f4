"""Rows that are known from their numbers alone, and operations on them that are known before they run.

A row is (id, revision): its vector is drawn from both, its payload names both, so every hit of a search tells what it
ought to be. An id belongs to one owner, the only one that changes it; a revision is the number of the owner's operation
that wrote it. What an owner does next follows from the seed, the number and its rows, so that every process can work
out what any owner has after n operations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from he_client import Client, Collection, CollectionKey, collection

DIM, STRIDE = 32, 16  #: blocks of 128 rows and 16 KiB
SEGMENT_BYTES = 32 << 10  #: two of them
OWNED = 1_000_000_000  #: ids of one owner
IDS = 10_000  #: at most, that one operation writes
KINDS = {"insert": 0.4, "upsert": 0.25, "delete": 0.25, "compact": 0.1}  #: and how often

Rows = dict[int, int]  #: id → revision


@lru_cache(maxsize=50_000)
def vector(row: int, revision: int) -> NDArray[np.float64]:
    """(DIM,), of norm 1."""
    drawn = np.random.default_rng([row, revision]).standard_normal(DIM)
    unit: NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return unit


def payload(row: int, revision: int) -> str:
    return f"{row} {revision}"


def owner_of(row: int) -> int:
    return row // OWNED


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of an owner. Of `compact` there are no ids."""

    kind: str
    ids: tuple[int, ...]
    revision: int

    def after(self, rows: Rows) -> Rows:
        """What the owner has when it is done."""
        if self.kind == "delete":
            return {row: revision for row, revision in rows.items() if row not in set(self.ids)}
        return rows | dict.fromkeys(self.ids, self.revision)

    def run(self, opened: Collection) -> None:
        """Raises what the collection raises."""
        if self.kind == "delete":
            opened.delete(self.ids)
        elif self.kind == "compact":
            opened.compact(progress=False)
        else:
            vectors = np.array([vector(row, self.revision) for row in self.ids])
            write = opened.insert if self.kind == "insert" else opened.upsert
            payloads = [payload(row, self.revision) for row in self.ids]
            write(self.ids, vectors, payloads, progress=False)


def plan(seed: int, owner: int, number: int, rows: Rows, *, most: int = 60, large: int = 0) -> Operation:
    """What `owner` does as its operation `number`, with these rows.

    most: rows that it keeps; with more it deletes. large: rows of every twentieth insert or so, in several segments.
    """
    rng = random.Random(f"{seed} {owner} {number}")
    held = sorted(rows)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if len(held) > most:
        kind = "delete"
    elif len(held) < 4:
        kind = "insert"
    first = owner * OWNED + number * IDS
    if kind == "compact":
        return Operation(kind, (), number)
    count = rng.randint(1, 12)
    if kind == "insert":
        count = large if large and rng.random() < 0.05 else count
        return Operation(kind, tuple(range(first, first + count)), number)
    if kind == "upsert":
        count = min(count, len(held))
        ids = [*rng.sample(held, count), *range(first, first + rng.randint(0, 4))]
        return Operation(kind, tuple(ids), number)
    share = rng.randint(1, len(held)) if len(held) > most else min(count, len(held))
    return Operation(kind, tuple(rng.sample(held, share)), number)


@dataclass(slots=True)
class Owner:
    """What one owner has, and the operation that it has not heard of yet."""

    seed: int
    number: int  #: of the owner
    large: int = 0
    rows: Rows = field(default_factory=dict)
    done: int = 0  #: operations settled
    pending: Operation | None = None

    def begin(self) -> Operation:
        """The next operation; until `settle` it may have happened or not."""
        self.pending = plan(self.seed, self.number, self.done, self.rows, large=self.large)
        return self.pending

    def states(self) -> list[Rows]:
        """What it may have now."""
        return [self.rows] if self.pending is None else [self.rows, self.pending.after(self.rows)]

    def settle(self, rows: Rows) -> None:
        """The pending operation has ended, this way."""
        self.rows, self.pending = rows, None
        self.done += 1

    def acknowledged(self) -> None:
        self.settle(self.states()[-1])


def small_segments() -> None:
    """In this process, from now on: a large insert is several segments, and compaction has something to do."""
    collection.SEGMENT_BYTES = SEGMENT_BYTES


def create(client: Client, name: str, key: CollectionKey) -> Collection:
    """A new collection of such rows."""
    return client.create_collection(name, dim=DIM, key=key, profile="compact", stride=STRIDE)

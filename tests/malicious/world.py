"""What a lying server has to lie with: collections, older and forked states of them, and the honest results."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client import Client, Collection, CollectionKey
from he_client.transport import Transport
from he_engine.params import TILE, Parameters
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows

DIM, STRIDE = 16, 128  # one plane, 32 rows a block
PARAMETERS = Parameters.choose("exact", DIM, STRIDE)
EVERYTHING = 1000  #: k: all rows, so that no wrong score hides
NOTES, TWIN, SCRAPS, LEDGER = "notes", "twin", "scraps", "ledger"
Results = list[list[Any]]
Exact = list[list[tuple[float, str, bytes, Any]]]


def embedded(folder: Path) -> tuple[Client, Transport]:
    client = Client(folder, threads=1)
    return client, client._remote.transport


def insert(made: Collection, ids: range, rows: NDArray[np.float64]) -> None:
    made.insert(ids, rows[ids.start : ids.stop], [f"text {i:04}" for i in ids], progress=False)


def exact(results: Results) -> Exact:
    """With every score as its eight bytes, equal ones in the order of ids: rows may lie in another order elsewhere."""
    return [sorted((-h.score, repr(h.id), struct.pack("<d", h.score), h.payload) for h in hits) for hits in results]


@dataclass
class Watch:
    """What is decrypted, compared with what an honest server answered."""

    names: dict[bytes, bytes]  #: salt of a fingerprint → segment id
    honest: dict[tuple[bytes, bytes], bytes]  #: digest of a query, segment id → its answer
    indexes: dict[bytes, bytes]  #: seed of a segment → digest of its index
    counts: Counter[str]  #: "answers", "wrong answers", "indexes", "wrong indexes"

    def know(self, collection: Collection) -> None:
        for segment in collection._state.current[1]:
            self.names[segment.engine.fingerprint.salt] = segment.id
            self.indexes[segment.engine.seed] = segment.entry.parts[0].sha256


class World:
    """`main` is the honest server. `old` is `main` as it was, `fork` a copy on which others went on."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.key = CollectionKey.generate()
        self.watch = Watch({}, {}, {}, Counter())
        rng = np.random.default_rng([seed, 1])
        self.rows = unit_rows(rng, 400, DIM)
        self.queries = unit_rows(rng, 6, DIM)
        client, _ = embedded(folder / "main")
        with client:
            for name in (NOTES, TWIN):
                self._create(client, name)
            notes, twin = (client.open_collection(name, key=self.key) for name in (NOTES, TWIN))
            insert(notes, range(40), self.rows)
            insert(notes, range(40, 80), self.rows)
            insert(notes, range(80, 100), self.rows)
            for first in (100, 140, 180):
                insert(twin, range(first, first + 40), self.rows)
            self._know(notes, twin)
        shutil.copytree(folder / "main", folder / "old")
        client, _ = embedded(folder / "main")
        with client:
            notes = client.open_collection(NOTES, key=self.key)
            notes.delete(range(80, 100))
            insert(notes, range(220, 290), self.rows)
            self._know(notes)
        shutil.copytree(folder / "main", folder / "fork")
        self.clients: list[Client] = []
        (self.main, honest), (self.old, _), (self.fork, fork) = (
            self._serve(folder / name) for name in ("main", "old", "fork")
        )
        self.client = honest
        notes = honest.open_collection(NOTES, key=self.key)
        notes.upsert([3, 41], self.rows[[303, 341]], ["new 3", "new 41"], progress=False)
        notes.delete([5, 230])
        forked = fork.open_collection(NOTES, key=self.key)
        insert(forked, range(300, 340), self.rows)
        forked.delete([7, 8, 9])
        insert(forked, range(340, 360), self.rows)
        self._know(notes, forked)
        self.notes = notes
        self.segments = [bytes(s.id) for s in notes._state.current[1]]
        self.entries = {s.id: s.entry for s in notes._state.current[1]}
        self.expected = {NOTES: exact(notes.search(self.queries, k=EVERYTHING))}
        self.renew(SCRAPS)
        self.renew(LEDGER)
        self.earlier: list[list[pb.AnswerResponse]] = []  #: honest answers to single queries
        self._indexes: dict[bytes, NDArray[np.uint64]] = {}

    def _serve(self, folder: Path) -> tuple[Transport, Client]:
        client, transport = embedded(folder)
        self.clients.append(client)
        return transport, client

    def _create(self, client: Client, name: str) -> Collection:
        return client.create_collection(name, dim=DIM, stride=STRIDE, key=self.key, profile="exact")

    def _know(self, *collections: Collection) -> None:
        for collection in collections:
            self.watch.know(collection)

    def renew(self, name: str) -> None:
        """A collection of three small segments, as it is before it is rewritten or written to."""
        if any(c.name == name for c in self.client.list_collections()):
            self.client.drop_collection(name)
        made = self._create(self.client, name)
        for first in (0, 12, 24):
            insert(made, range(first, first + 12), self.rows)
            self._know(made)
        made.delete([1, 14])
        self.expected[name] = exact(made.search(self.queries[:1], k=EVERYTHING))
        made.close()

    def version(self, name: str) -> int:
        return self.client.describe(name).version

    def found(self, name: str, key: CollectionKey | None = None) -> Exact:
        """What an honest server answers now, to a client that knows nothing."""
        opened = self.client.open_collection(name, key=key or self.key)
        results = exact(opened.search(self.queries[:1], k=EVERYTHING))
        opened.close()
        return results

    def read(self, server: Transport, name: str, segment_id: bytes, kind: pb.PartKind) -> bytes:
        """A whole part as a server has it."""
        context = wire.context(name, PARAMETERS.digest)
        request = pb.ReadSegmentPartRequest(context=context, segment_id=segment_id, kind=kind)
        return b"".join(r.chunk for r in server.stream("ReadSegmentPart", request, timeout_s=60))

    def folded_block(self, segment_id: bytes, block: int) -> NDArray[np.uint64]:
        """(P, B): a block of the index, its planes added and folded as an answer is."""
        if segment_id not in self._indexes:
            raw = self.read(self.main, NOTES, segment_id, pb.PART_KIND_INDEX)
            self._indexes[segment_id] = np.frombuffer(raw, "<u4").astype(np.uint64)
        words = PARAMETERS.block_words
        return folded(self._indexes[segment_id][block * words : (block + 1) * words])

    def close(self) -> None:
        for client in self.clients:
            client.close()


def primes() -> NDArray[np.uint64]:
    """(P, 1)."""
    return np.array(PARAMETERS.ring.primes, np.uint64).reshape(-1, 1)


def folded(stack: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(P, B) of one stack [prime][tile][plane][16]: its planes added, then g adjacent slots."""
    ring = PARAMETERS.ring
    planes = stack.reshape(len(ring.primes), ring.degree // TILE, PARAMETERS.planes, TILE).sum(axis=2)
    slots = planes.reshape(len(ring.primes), PARAMETERS.rows_per_block, PARAMETERS.stride)
    sums: NDArray[np.uint64] = slots.sum(axis=2) % primes()
    return sums


def digest(raw: bytes | memoryview) -> bytes:
    return hashlib.sha256(raw).digest()

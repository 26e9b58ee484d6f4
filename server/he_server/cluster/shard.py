"""One shard: an actor that holds the indexes that it was asked for in its memory, and computes their answers.

A front end opens a call and takes what there is of its answers until they are done. Who does not take them holds up
nobody (he_server.search.scan), and a call that nobody asks about for LEASE_S is forgotten.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from he_engine.engine import IndexFile
from he_engine.errors import HesearchError, TamperedDataError, Unavailable
from he_server.cluster.messages import Asked, Batch, DataKeys, Header
from he_server.config import ServerConfig
from he_server.search.answering import Piece, Searched
from he_server.search.engines import Engines, engine_maker
from he_server.search.scan import Scans
from he_server.storage.indexes import Indexes
from he_server.storage.opening import open_objects
from he_server.storage.places import Place
from he_server.storage.segment_file import Description, FileSource
from he_server.storage.tally import Tally

if TYPE_CHECKING:
    from he_server.storage.objects import Objects

TAKE_BYTES = 4 << 20  #: of answers in one batch, and one unit's
TAKE_S = 0.04  #: how long a call's first batch waits for more when it has something; each later one twice as long,
MOST_TAKE_S = 0.16  #: up to so long: a batch costs Ray some milliseconds, whatever its size
LIFE_S = 0.5  #: who has nothing to give says so after that
LEASE_S = 60.0
IDLE_S = 900.0  #: an actor that no front end asks for so long ends
LATELY_S = 300.0  #: what was searched within that time should not have to be read again, wherever actors are moved
CALLS = 256  #: methods at the same time
_OPEN = 64  #: calls at a time
_SLOW_S = 5.0  #: who takes nothing for so long may lose its place to another
_TOLD = 2  #: names of a collection that are remembered: of its version, and of the one before
_LOADS = 4  #: segments that are read at the same time
_SWEEP_S = 5.0


Sizes = dict[tuple[bytes, bytes], int]  #: by key of a segment, bytes of its index


@dataclass(slots=True)
class _Call:
    pieces: Iterator[Piece]
    positions: dict[tuple[bytes, bytes], int]  #: of segments, in Asked.places
    loading: list[Future[None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  #: of `pieces`
    coming: Future[Batch] | None = None
    touched_s: float = field(default_factory=time.monotonic)
    take_s: float = TAKE_S  #: of the next batch
    left: bool = False


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What of a server's configuration an actor has to know; see ServerConfig."""

    segments: str
    threads: int
    target: str
    index_memory_bytes: int
    device: str = "cpu"


class Shard:
    """See the module. Thread-safe. `open` and `take` return within about LIFE_S, if only an empty Batch; errors are in
    the Batch, since others would be wrapped."""

    def __init__(self, settings: ShardSettings) -> None:
        kinds: dict[str, Any] = {"threads": settings.threads, "target": settings.target, "device": settings.device}
        config = ServerConfig(data=Path("/nonexistent"), **kinds)
        self._tally = Tally()
        self._objects = open_objects(settings.segments, self._tally)
        self._engines = Engines(engine_maker(config))
        self._memory_bytes = settings.index_memory_bytes
        self._indexes = Indexes(settings.index_memory_bytes, self._engines.forget)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="answer")
        self._loaders = ThreadPoolExecutor(_LOADS, thread_name_prefix="load")
        self._takers = ThreadPoolExecutor(CALLS, thread_name_prefix="take")
        self._scans = Scans(self._pool, settings.threads, self._reading)
        self._lock = threading.Lock()
        self._calls: dict[bytes, _Call] = {}
        self._told: dict[bytes, _Told] = {}  # by name, the latest asked last
        self._left: dict[bytes, float] = {}  # calls that were left before they came, and when
        self._damaged: set[tuple[bytes, bytes]] = set()
        self._searched: dict[bytes, tuple[float, Sequence[_Located]]] = {}  # by collection: when last, and what
        self._asked_s = time.monotonic()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    # ---- what a front end asks --------------------------------------------------------------------------
    def open(
        self, call_id: bytes, name: bytes, keys: DataKeys, queries: NDArray[np.uint8], asked: Asked | None = None
    ) -> Batch:
        """name: of what is asked; without `asked`, of what was asked before, with the same keys. queries: (queries,
        bytes of each)."""
        if (told := self._told_of(name, keys, asked)) is None:
            return Batch(untold=True)
        segments = told.segments
        searched = Searched(name, told.asked.parameters, segments)
        call = _Call(iter(()), told.positions)
        call.pieces = self._pieces(call, searched, [memoryview(query) for query in queries])
        self._make_room()
        with self._lock:
            if call_id in self._left:
                return Batch(unknown=True)
            if len(self._calls) >= _OPEN:  # of all front ends together: what they hold of answers is bounded
                return Batch(full=True)
            call.loading = self._loading(segments)
            self._calls[call_id] = call
        return self.take(call_id)

    def _told_of(self, name: bytes, keys: DataKeys, asked: Asked | None) -> _Told | None:
        new = None if asked is None else _Told(asked, keys, self._objects)
        with self._lock:
            told = self._told.pop(name, None) or new
            if told is None:
                return None
            told.touched_s = time.monotonic()
            self._told[name] = told
            same = [one for one, other in self._told.items() if other.collection_id == told.collection_id]
            for one in same[:-_TOLD]:
                del self._told[one]
            return told

    def _make_room(self) -> None:
        """Where all places are taken, that of a call whose client reads slowly; its front end asks for it again."""
        with self._lock:
            if len(self._calls) < _OPEN:
                return
            call_id, call = min(self._calls.items(), key=lambda one: one[1].touched_s)
        if call.touched_s < time.monotonic() - _SLOW_S:
            self._drop(call_id)

    def take(self, call_id: bytes) -> Batch:
        self._asked_s = time.monotonic()
        with self._lock:
            call = self._calls.get(call_id)
            if call is None:
                return Batch(unknown=True)
            call.touched_s = time.monotonic()
            coming = call.coming = call.coming or self._takers.submit(self._batch, call)
        try:
            batch = coming.result(LIFE_S)
        except TimeoutError:
            return Batch(loading=any(not one.done() for one in call.loading))
        with self._lock:
            call.coming, call.touched_s = None, time.monotonic()
        if batch.done:
            self._drop(call_id)
        return batch

    @ray.method(concurrency_group="control")
    def leave(self, call_id: bytes) -> None:
        """Nobody takes answers of this call any more."""
        self._drop(call_id)

    def _drop(self, call_id: bytes) -> None:
        with self._lock:
            call = self._calls.pop(call_id, None)
            if call is None:
                self._left[call_id] = time.monotonic()  # it may come yet: methods overtake each other
                return
        call.left = True
        with call.lock:
            call.pieces.close()  # type: ignore[attr-defined]

    @ray.method(concurrency_group="control")
    def ping(self) -> dict[str, int | str]:
        """That it is wanted. `node`, `pid`, `held_bytes` of indexes in memory, open `calls`, and `object_failures`."""
        self._asked_s = time.monotonic()
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "held_bytes": self.held_bytes,
            "calls": len(self._calls),
            "object_failures": self.object_failures,
        }

    @property
    def held_bytes(self) -> int:
        """Of indexes in memory."""
        return self._indexes.held_bytes

    @property
    def object_failures(self) -> int:
        """Requests to object storage that failed since it began."""
        return self._tally.values()["object_failures"]

    @ray.method(concurrency_group="control")
    def lately(self) -> Sizes:
        """The segments of each collection's last search, of those that were searched within LATELY_S."""
        since_s = time.monotonic() - LATELY_S
        with self._lock:
            found = [segments for when_s, segments in self._searched.values() if when_s > since_s]
        return {one.key: one.index_bytes for segments in found for one in segments}

    @ray.method(concurrency_group="control")
    def stands_in(self, sizes: Sizes) -> bool:
        """Whether all of these are in memory here, or more than it has room for, so that any actor reads them anew."""
        return sum(sizes.values()) > self._memory_bytes or all(map(self._indexes.holds, sizes))

    def load(self, places: Sequence[Place], keys: DataKeys) -> None:
        """Reads these while there is room. Raises nothing: who searches them meets the error."""
        self._asked_s = time.monotonic()
        with ThreadPoolExecutor(_LOADS) as pool:  # not that of searches, which would wait behind it
            pool.map(lambda place: self._load_where_room(place.with_key(keys)), places)

    # ---- one call ---------------------------------------------------------------------------------------
    def _batch(self, call: _Call) -> Batch:
        try:
            for one in call.loading:
                one.result()
            with call.lock:
                return self._taken(call)
        except HesearchError as error:
            damaged: list[int] = []
            if isinstance(error, TamperedDataError):
                damaged = [call.positions[key] for key in self._damaged & call.positions.keys()]
            return Batch(done=True, error=error.with_traceback(None), damaged=tuple(damaged))

    def _taken(self, call: _Call) -> Batch:
        headers: list[Header] = []
        answers: list[bytes] = []
        size, until_s, done = 0, math.inf, True
        for piece in call.pieces:
            unit = piece.unit
            headers.append((call.positions[unit.segment.key], piece.query, unit.first_block, unit.blocks))
            answers.append(piece.answers)
            size += len(piece.answers)
            until_s = min(until_s, time.monotonic() + call.take_s)
            if size >= TAKE_BYTES or time.monotonic() > until_s:
                done = False
                break
        call.take_s = min(2 * call.take_s, MOST_TAKE_S)
        return Batch(tuple(headers), np.frombuffer(b"".join(answers), np.uint8), done)

    def _pieces(self, call: _Call, searched: Searched, queries: Sequence[memoryview]) -> Iterator[Piece]:
        with self._engines.using(searched.parameters) as engine, self._scans.of(engine, searched) as scan:
            yield from scan.answer(queries, lambda: not call.left)

    # ---- segments ---------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _reading(self, segment: _Located) -> Iterator[IndexFile]:
        try:
            with self._indexes.open(segment) as index:
                self._damaged.discard(segment.key)
                yield index
        except TamperedDataError:
            self._damaged.add(segment.key)
            raise

    def _loading(self, segments: Sequence[_Located]) -> list[Future[None]]:
        """Those that are not in memory yet, on their way there; where not all fit, the scan reads each as it comes.
        The lock is held."""
        self._searched[segments[0].key[0]] = time.monotonic(), segments
        if sum(one.index_bytes for one in segments) > self._memory_bytes:
            return []
        return [self._loaders.submit(self._load, one) for one in segments if not self._indexes.holds(one.key)]

    def _load_where_room(self, place: Place) -> None:
        with contextlib.suppress(HesearchError):
            if self._indexes.has_room(place.index_bytes):
                self._load(_Located(place, self._objects))

    def _load(self, segment: _Located) -> None:
        with self._reading(segment):
            pass

    # ---- what nobody wants any more ---------------------------------------------------------------------
    def _sweep(self) -> None:
        while True:
            time.sleep(_SWEEP_S)
            now_s = time.monotonic()
            with self._lock:
                old = [call_id for call_id, call in self._calls.items() if call.touched_s < now_s - LEASE_S]
                self._left = {one: left_s for one, left_s in self._left.items() if left_s > now_s - LEASE_S}
                self._told = {name: told for name, told in self._told.items() if told.touched_s > now_s - LATELY_S}
                self._searched = {one: last for one, last in self._searched.items() if last[0] > now_s - LATELY_S}
            for call_id in old:
                with contextlib.suppress(Exception):  # whatever it met: the next ones are to go, too
                    self._drop(call_id)
            if self._asked_s < now_s - IDLE_S and not self._calls:
                ray.kill(ray.get_runtime_context().current_actor)


class _Told:
    """What was asked, ready to be searched."""

    def __init__(self, asked: Asked, keys: DataKeys, objects: Objects | None) -> None:
        self.asked = asked
        self.collection_id = asked.places[0].key[0]
        self.touched_s = 0.0
        self.segments = [_Located(place.with_key(keys), objects) for place in asked.places]
        self.positions = {place.key: number for number, place in enumerate(asked.places)}


@dataclass(frozen=True, slots=True)
class _Located:
    """A segment as Indexes and Scans want it."""

    place: Place
    objects: Objects | None

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.place.key

    @property
    def blocks(self) -> int:
        return self.place.blocks

    @property
    def index_bytes(self) -> int:
        return self.place.index_bytes

    @property
    def in_place(self) -> bool:
        return False  # an actor's indexes are in its memory

    @property
    def index(self) -> IndexFile:
        raise Unavailable("shard: an index is in memory alone")

    def opened(self) -> contextlib.AbstractContextManager[tuple[Description, FileSource]]:
        return self.place.opened(self.objects)

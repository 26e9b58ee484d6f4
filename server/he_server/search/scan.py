"""Shared scans: whoever searches a collection at the same time shares one pass over its index.

The units of the index stand in a circle, and workers go round it. A call joins at the unit that is next and has its
answers, in that order, when the circle has come round. Each unit is computed for all queries that lack it, at most
SHARED_QUERIES at a time, so its bytes are read from memory once for all of them. Nobody waits for others to come.
(The idea is that of cooperative scans in databases: Zukowski et al., VLDB 2007; Unterbrunner et al., VLDB 2009.)

A call whose client reads slowly is passed over while CALL_ANSWER_BYTES a thread of its answers wait to be taken or are
being computed; the units that it missed are computed for it on a later round. So it slows nobody else, and a call holds
less than that and the answers of one unit more for RIDER_QUERIES queries. Its Pace says how long it was passed over.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from he_engine.engine import Buffer, IndexFile, ServerEngine
from he_engine.errors import HesearchError, InvalidInput, Unavailable
from he_proto.chunks import CHUNK_BYTES
from he_proto.wire import PublicParameters
from he_server.search.answering import Pace, Piece, Searched, Segment, Unit, blocks_per_unit, units
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.store import Store

SHARED_QUERIES = 32  #: computed at a time; more share no better (docs/performance.md)
RIDER_QUERIES = 8
CALL_ANSWER_BYTES = 8 << 20  #: for each thread: so many that every one may work for a lone call
_POLL_S = 0.1  #: between looks for cancellation while units run

Reading = Callable[[Any], AbstractContextManager[IndexFile]]  #: of a segment, as it was given


@dataclass(slots=True, eq=False)
class _Call:
    """One caller. All fields belong to the scan's lock."""

    ready: threading.Condition
    active: Callable[[], bool]
    queries: int
    missing: int  #: pieces that it has not been given
    uncomputed: int  #: pieces that nobody has computed
    computed: Callable[[], object]
    pace: Pace
    pieces: deque[Piece] = field(default_factory=deque)
    held_bytes: int = 0  #: of answers that it has not taken, or that are being computed for it
    running: int = 0  #: riders of it for whom a unit is being computed
    error: BaseException | None = None
    served: int = 0  #: queries times units; who comes or had no room starts where the others are


@dataclass(slots=True, eq=False)
class _Rider:
    """Some queries of one call, which go together. `lacks` has bit u while they need unit u."""

    call: _Call
    first_query: int
    queries: Sequence[Buffer]
    lacks: int


class Scan:
    """The circle of one version of one collection. Thread-safe; `pool` has `threads` workers."""

    def __init__(
        self,
        engine: ServerEngine,
        segments: Sequence[Segment],
        pool: Executor,
        threads: int,
        reading: Reading,
    ) -> None:
        index_bytes = sum(segment.index_bytes for segment in segments)
        self._engine = engine
        self._units = list(units(segments, blocks_per_unit(engine, index_bytes, threads)))
        self._pool = pool
        self._threads = threads
        self._reading = reading
        self._lock = threading.Lock()
        self._riders: list[_Rider] = []
        self._next = 0  #: unit
        self._served = 0  #: of the least served, when they were last
        self._workers = 0

    def answer(
        self,
        queries: Sequence[Buffer],
        active: Callable[[], bool],
        computed: Callable[[], object] = bool,
        pace: Pace | None = None,
    ) -> Iterator[Piece]:
        """See Answerer."""
        call = self._join(queries, active, computed, pace or Pace())
        try:
            while call.missing:
                yield self._take(call)
        finally:
            self._leave(call)

    # ---- callers ---------------------------------------------------------------------------------------
    def _join(
        self, queries: Sequence[Buffer], active: Callable[[], bool], computed: Callable[[], object], pace: Pace
    ) -> _Call:
        pieces = len(queries) * len(self._units)
        call = _Call(threading.Condition(self._lock), active, len(queries), pieces, pieces, computed, pace)
        everything = (1 << len(self._units)) - 1
        with self._lock:
            call.served = self._served
            for first in range(0, len(queries), RIDER_QUERIES):
                some = queries[first : first + RIDER_QUERIES]
                self._riders.append(_Rider(call, first, some, everything))
            self._wake()
        return call

    def _take(self, call: _Call) -> Piece:
        with self._lock:
            while True:
                if not call.active():
                    raise Unavailable("the call was cancelled")
                if call.error:
                    raise copy.copy(call.error)  # others may be raising it, too
                if call.pieces:
                    piece = call.pieces.popleft()
                    call.missing -= 1
                    call.held_bytes -= len(piece.answers)
                    if self._fits(call):
                        call.pace.room()
                    self._wake()
                    return piece
                call.ready.wait(_POLL_S)

    def _leave(self, call: _Call) -> None:
        with self._lock:
            self._riders = [rider for rider in self._riders if rider.call is not call]
            while call.running:
                call.ready.wait()

    # ---- workers: the lock is held, except by _work and _compute ------------------------------------------
    def _wake(self) -> None:
        """As many workers as there may be, if there is something to do."""
        while self._workers < self._threads and self._find() is not None:
            self._workers += 1
            self._submit()

    def _submit(self) -> None:
        with contextlib.suppress(RuntimeError):  # the pool is shut down: no call is active any more
            self._pool.submit(self._work)

    def _has_room(self, call: _Call) -> bool:
        return self._fits(call) and call.active()

    def _fits(self, call: _Call) -> bool:
        return call.held_bytes < self._threads * CALL_ANSWER_BYTES

    def _find(self) -> int | None:
        """The next unit that somebody lacks who is still there and has room for its answers."""
        wanted = 0
        for rider in self._riders:
            if self._has_room(rider.call):
                wanted |= rider.lacks
        if not wanted:
            return None
        ahead = wanted >> self._next << self._next or wanted
        return (ahead & -ahead).bit_length() - 1

    def _board(self, number: int) -> list[_Rider]:
        """Those who lack this unit and have room, SHARED_QUERIES at most; the calls served least come first,
        and of these the smallest.

        Who is left behind gets the unit on a later round.
        """
        boarded: list[_Rider] = []
        queries = 0
        self._next = (number + 1) % len(self._units)
        for rider in sorted(self._riders, key=lambda rider: (rider.call.served, rider.call.queries)):
            if rider.lacks >> number & 1 and self._has_room(rider.call):
                if queries + len(rider.queries) > SHARED_QUERIES:
                    break
                if not boarded:
                    self._served = max(self._served, rider.call.served)
                queries += len(rider.queries)
                rider.lacks ^= 1 << number
                rider.call.served = max(rider.call.served, self._served) + len(rider.queries)
                rider.call.running += 1
                rider.call.held_bytes += self._answer_bytes(rider, number)
                boarded.append(rider)
        return boarded

    def _answer_bytes(self, rider: _Rider, number: int) -> int:
        return len(rider.queries) * self._units[number].blocks * self._engine.answer_bytes_per_block

    def _work(self) -> None:
        """One unit, for all who board; then the worker queues again, behind those of other collections."""
        with self._lock:
            number = self._find()
            if number is None:
                self._workers -= 1
                return
            boarded = self._board(number)
        if boarded:  # who has just gone must not be worked for: it may have unpinned the segments
            self._compute(self._units[number], boarded)
        self._submit()

    def _compute(self, unit: Unit, boarded: Sequence[_Rider]) -> None:
        outcomes = self._outcomes(unit, boarded)
        with self._lock:
            for rider, outcome in zip(boarded, outcomes, strict=True):
                call = rider.call
                call.running -= 1
                if isinstance(outcome, BaseException):
                    call.error = call.error or outcome
                else:
                    numbers = range(rider.first_query, rider.first_query + len(rider.queries))
                    call.pieces.extend(map(Piece, [unit] * len(numbers), numbers, outcome))
                    call.uncomputed -= len(rider.queries)
                    if not call.uncomputed:
                        call.computed()
                    elif not call.running and not self._fits(call):
                        call.pace.full()
                call.ready.notify()

    def _outcomes(self, unit: Unit, boarded: Sequence[_Rider]) -> Sequence[list[bytes] | BaseException]:
        """The answers of each, or what it met. A query that the engine refuses is its own caller's error: then each
        is answered by itself."""
        try:
            waiting = iter(self._answered(unit, [query for rider in boarded for query in rider.queries]))
            return [list(itertools.islice(waiting, len(rider.queries))) for rider in boarded]
        except BaseException as caught:
            error = caught.with_traceback(None)  # which would keep this frame, and so the calls and itself
        if isinstance(error, InvalidInput) and len(boarded) > 1:
            return [outcome for rider in boarded for outcome in self._outcomes(unit, [rider])]
        return [error] * len(boarded)

    def _answered(self, unit: Unit, queries: Sequence[Buffer]) -> list[bytes]:
        with self._reading(unit.segment) as index:
            return self._engine.answer(index, unit.first_block, unit.blocks, queries)


class Scans:
    """The scans that are under way, one for each version of a collection that somebody searches. Thread-safe."""

    def __init__(self, pool: Executor, threads: int, reading: Reading) -> None:
        self._pool = pool
        self._threads = threads
        self._reading = reading
        self._lock = threading.Lock()
        self._scans: dict[Hashable, tuple[Scan, int]] = {}  # and how many calls have it

    @contextlib.contextmanager
    def of(self, engine: ServerEngine, searched: Searched) -> Iterator[Scan]:
        """The scan of these segments, which whoever uses it keeps pinned, as the engine."""
        key = searched.key
        with self._lock:
            scan, users = self._scans.get(key, (None, 0))
            if scan is None:
                scan = Scan(engine, searched.segments, self._pool, self._threads, self._reading)
            self._scans[key] = (scan, users + 1)
        try:
            yield scan
        finally:
            with self._lock:
                _, users = self._scans.pop(key)
                if users > 1:
                    self._scans[key] = (scan, users - 1)


class LocalAnswerer:
    """An Answerer with threads of its own in this process."""

    def __init__(self, threads: int, store: Store) -> None:
        self._threads = threads
        self._store = store
        self._reading: Reading = store.reading
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._scans = Scans(self._pool, threads, self._reading)

    def answer(
        self,
        engine: ServerEngine,
        searched: Searched,
        queries: Sequence[Buffer],
        active: Callable[[], bool],
        computed: Callable[[], object] = bool,
        pace: Pace | None = None,
        remaining_s: Callable[[], float] = lambda: math.inf,
    ) -> Iterator[Piece]:
        """See Answerer."""
        del remaining_s
        with self._scans.of(engine, searched) as scan:
            yield from scan.answer(queries, active, computed, pace)

    @contextlib.contextmanager
    def searched(self, record: CollectionRecord, version: int, parameters: PublicParameters) -> Iterator[Searched]:
        """See Answerer."""
        with self._store.snapshot(record, version) as snapshot:
            yield Searched((record.collection_id, version, snapshot.edition), parameters, snapshot.segments)

    def warm(self, engine: ServerEngine, searched: Searched, room_bytes: float, stop: threading.Event) -> int:
        """See Answerer."""
        warmed = 0
        for segment in searched.segments:
            if not stop.is_set() and warmed + segment.index_bytes <= room_bytes:
                with contextlib.suppress(HesearchError, OSError):
                    with self._reading(segment) as index:
                        engine.warm(index)
                    warmed += segment.index_bytes
        return warmed

    def gauges(self) -> Mapping[str, float]:
        """See Answerer."""
        return {}

    def call_bytes(self, answer_bytes: int) -> int:
        """See Answerer, and the module's docstring."""
        return min(answer_bytes, self._threads * CALL_ANSWER_BYTES + RIDER_QUERIES * CHUNK_BYTES)

    def close(self) -> None:
        """Waits for the units that are running."""
        self._pool.shutdown(cancel_futures=True)

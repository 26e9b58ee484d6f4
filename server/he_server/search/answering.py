"""What is answered, by whom, and how an index is cut for it: units of some milliseconds, each a range of blocks of one
segment."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from he_engine.engine import Buffer, ServerEngine
from he_proto.chunks import CHUNK_BYTES
from he_proto.wire import PublicParameters
from he_server.storage.catalogue_rows import CollectionRecord

UNIT_INDEX_BYTES = 32 << 20  #: of index in one unit: 2 ms of one core for one query, 10 ms for 32
_MIN_INDEX_BYTES = 4 << 20  #: under this, handing out a unit costs more than computing it
SLOW_S = 1.0


class Segment(Protocol):
    """What is known of one that is searched."""

    @property
    def key(self) -> tuple[bytes, bytes]: ...  #: collection and segment

    @property
    def blocks(self) -> int: ...

    @property
    def index_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """Blocks [first_block, first_block + blocks) of one segment."""

    segment: Segment
    first_block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The answers of one query against a unit."""

    unit: Unit
    query: int
    answers: bytes


def blocks_per_unit(engine: ServerEngine, index_bytes: int, threads: int) -> int:
    """At least 1, and so many that every thread gets several units and one query's answers fit in a message.

    An engine for which UNIT_INDEX_BYTES are too few says so in `unit_index_bytes` (he_engine.gpu_server)."""
    most = getattr(engine, "unit_index_bytes", UNIT_INDEX_BYTES)
    wanted = max(_MIN_INDEX_BYTES, min(most, index_bytes // (4 * threads)))
    return max(1, min(wanted // engine.index_bytes_per_block, CHUNK_BYTES // engine.answer_bytes_per_block))


def units(segments: Sequence[Segment], size: int) -> Iterator[Unit]:
    """Every block of every segment, once, in order, `size` at a time."""
    for segment in segments:
        for first in range(0, segment.blocks, size):
            yield Unit(segment, first, min(size, segment.blocks - first))


@dataclass(frozen=True, slots=True)
class Searched:
    """The segments that a search goes over, all of one collection; whoever has it keeps them pinned."""

    key: Hashable  #: equal where the segments, and their files, are the same
    parameters: PublicParameters
    segments: Sequence[Segment]

    def answer_bytes(self, engine: ServerEngine, queries: int) -> int:
        """Of so many queries."""
        return queries * engine.answer_bytes_per_block * sum(segment.blocks for segment in self.segments)


class Pace:
    """How long a call was passed over because its client did not take the answers that it had. Its answerer writes it,
    under a lock; anybody may read."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._before_s, self._since_s = 0.0, math.inf

    def full(self) -> None:
        self._since_s = min(self._since_s, self._clock_s())

    def room(self) -> None:
        self._before_s += max(0.0, self._clock_s() - self._since_s)
        self._since_s = math.inf

    def slow(self) -> bool:
        """Longer than SLOW_S altogether."""
        return self._before_s + max(0.0, self._clock_s() - self._since_s) > SLOW_S


class Answerer(Protocol):
    """Who computes answers: threads of this process, or actors of a cluster. Thread-safe."""

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
        """Each query's answers over every block, each once, as they are ready and in no promised order; `computed` is
        called when none is left to compute, though some may be left to take. `pace` is kept up to date. remaining_s:
        until the caller's deadline, before which it may be told what is missing.

        Raises Unavailable soon after `active()` has become false, and what computing raised: never are answers missing
        without an error. When it ends, in whatever way, nothing reads the segments for it any more.
        """

    def searched(
        self, record: CollectionRecord, version: int, parameters: PublicParameters
    ) -> AbstractContextManager[Searched]:
        """The live segments of the current version, readable for who answers until the block ends. Raises NotFound,
        Conflict if that is not `version`, TamperedDataError if one is damaged, Unavailable."""

    def warm(self, engine: ServerEngine, searched: Searched, room_bytes: float, stop: threading.Event) -> int:
        """Brings indexes into memory, or lets that begin, while they fit in there and until `stop`: so many bytes.
        Damaged ones are passed over."""

    def gauges(self) -> Mapping[str, float]:
        """For metrics (he_server.observe.metrics), by name; empty where there is no cluster."""

    def call_bytes(self, answer_bytes: int) -> int:
        """The most that is held at a time, in this process, of a call's answers that are so many bytes in all."""

    def close(self) -> None:
        """Calls still under way then fail, once they are no longer active."""

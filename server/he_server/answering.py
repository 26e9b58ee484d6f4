"""Answers of all live segments, computed in parallel and handed out as they are ready.

The work is cut into units of some milliseconds: a range of blocks of one segment, with all queries of the call, so
that a unit's index bytes are read from memory once for all of them. Between units the call looks for
cancellation. At most `threads + 1` units of a call are under way or waiting to be taken, so it holds at most

    (threads + 1) · max(UNIT_ANSWER_BYTES, queries · answer bytes of one block)

of answers; a client that reads slowly slows its own call, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass

from he_engine.engine import Buffer, ServerEngine
from he_engine.errors import TamperedDataError, Unavailable
from he_proto.wire import CHUNK_BYTES
from he_server.files import storage_errors
from he_server.segment_file import StoredSegment

UNIT_INDEX_BYTES = 32 << 20  #: of index in one unit: 2 ms of one core for one query
UNIT_ANSWER_BYTES = 8 << 20
_MIN_INDEX_BYTES = 4 << 20  #: under this, handing out a unit costs more than computing it
_FREE_QUERIES = 32  #: that a unit of full size may have: about 10 ms of one core
_POLL_S = 0.1  #: between looks for cancellation while units run


@dataclass(frozen=True, slots=True)
class Unit:
    """Blocks [first_block, first_block + blocks) of one segment."""

    segment: StoredSegment
    first_block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The answers of one query against a unit."""

    unit: Unit
    query: int
    answers: bytes


def blocks_per_unit(engine: ServerEngine, index_bytes: int, queries: int, threads: int) -> int:
    """At least 1, and so many that a unit takes some milliseconds, that every thread gets several, and that
    one query's answers fit in a message, all queries' in UNIT_ANSWER_BYTES."""
    wanted = UNIT_INDEX_BYTES // -(-queries // _FREE_QUERIES)
    wanted = max(_MIN_INDEX_BYTES, min(wanted, index_bytes // (4 * threads)))
    return max(
        1,
        min(
            wanted // engine.index_bytes_per_block,
            CHUNK_BYTES // engine.answer_bytes_per_block,
            UNIT_ANSWER_BYTES // (queries * engine.answer_bytes_per_block),
        ),
    )


def units(segments: Sequence[StoredSegment], size: int) -> Iterator[Unit]:
    """Every block of every segment, once, in order, `size` at a time."""
    for segment in segments:
        blocks = segment.description.blocks
        for first in range(0, blocks, size):
            yield Unit(segment, first, min(size, blocks - first))


def answer(
    engine: ServerEngine,
    segments: Sequence[StoredSegment],
    queries: Buffer,
    count: int,
    *,
    pool: Executor,
    threads: int,
    active: Callable[[], bool],
    damaged: Callable[[StoredSegment], None],
) -> Iterator[Piece]:
    """Each query's answers over every block, in no promised order; `pool` has `threads` workers.

    Stops within a unit's time once `active()` is false, and raises Unavailable. When it ends, in whatever way,
    no unit of it is running. `damaged` is told of a segment whose file turns out to be wrong.
    """
    index_bytes = sum(segment.description.index_bytes for segment in segments)
    waiting = units(segments, blocks_per_unit(engine, index_bytes, count, threads))

    def compute(unit: Unit) -> list[bytes]:
        if not active():
            raise Unavailable("the call was cancelled")
        try:
            with storage_errors("answering"):
                return engine.answer(unit.segment.index, unit.first_block, unit.blocks, queries, count)
        except TamperedDataError:
            damaged(unit.segment)
            raise

    running: dict[Future[list[bytes]], Unit] = {}
    try:
        while True:
            while len(running) <= threads and (unit := next(waiting, None)):
                running[pool.submit(compute, unit)] = unit
            if not running:
                return
            done, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                unit = running.pop(future)
                for query, answers in enumerate(future.result()):
                    if not active():
                        raise Unavailable("the call was cancelled")
                    yield Piece(unit, query, answers)
            if not active():
                raise Unavailable("the call was cancelled")
    finally:
        for future in running:
            future.cancel()
        wait(running)

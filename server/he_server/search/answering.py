"""How an index is cut for answering: units of some milliseconds, each a range of blocks of one segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from he_engine.engine import ServerEngine
from he_proto.chunks import CHUNK_BYTES
from he_server.storage.segment_file import StoredSegment

UNIT_INDEX_BYTES = 32 << 20  #: of index in one unit: 2 ms of one core for one query, 10 ms for 32
_MIN_INDEX_BYTES = 4 << 20  #: under this, handing out a unit costs more than computing it


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


def blocks_per_unit(engine: ServerEngine, index_bytes: int, threads: int) -> int:
    """At least 1, and so many that every thread gets several units and one query's answers fit in a message."""
    wanted = max(_MIN_INDEX_BYTES, min(UNIT_INDEX_BYTES, index_bytes // (4 * threads)))
    return max(1, min(wanted // engine.index_bytes_per_block, CHUNK_BYTES // engine.answer_bytes_per_block))


def units(segments: Sequence[StoredSegment], size: int) -> Iterator[Unit]:
    """Every block of every segment, once, in order, `size` at a time."""
    for segment in segments:
        blocks = segment.description.blocks
        for first in range(0, blocks, size):
            yield Unit(segment, first, min(size, blocks - first))

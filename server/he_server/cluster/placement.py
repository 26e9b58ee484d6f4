"""Which shard has which segment: the same for everybody who knows the same segments, with nothing to agree on.

Rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): each
segment goes to the first shard, in an order that its id alone decides, that has room for it. So a new segment moves few
others, and no shard has much more than its share of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from he_server.cluster.messages import Asked, DataKeys
from he_server.search.answering import Searched, Segment
from he_server.storage.places import Place

SPARE = 1.1  #: a shard takes so many times its share of bytes, or one segment more: a call waits for the fullest
_AT_ONCE = 1 << 20  #: weights

U64 = NDArray[np.uint64]
S = TypeVar("S", bound=Segment)


def placed(segments: Sequence[S], shards: int) -> list[list[S]]:
    """The segments of each shard, largest first."""
    share = sum(segment.index_bytes for segment in segments) / shards
    out: list[list[S]] = [[] for _ in range(shards)]
    loads = [0] * shards
    ordered = sorted(segments, key=lambda segment: (-segment.index_bytes, segment.key))
    for segment, weights in zip(ordered, _weights(ordered, shards), strict=True):
        room = max(SPARE * share, share + segment.index_bytes) - segment.index_bytes
        number = int(weights.argmin())
        if loads[number] > room:
            number = next(int(n) for n in weights.argsort(kind="stable") if loads[n] <= room)
        out[number].append(segment)
        loads[number] += segment.index_bytes
    return out


def _weights(segments: Sequence[Segment], shards: int) -> Iterator[U64]:
    """(shards,) of each segment; it prefers shards of less weight."""
    seeds = np.array([_seed(segment) for segment in segments], np.uint64)
    numbers = _mixed(np.arange(1, shards + 1, dtype=np.uint64))
    for start in range(0, len(seeds), rows := max(1, _AT_ONCE // shards)):
        yield from _mixed(seeds[start : start + rows, None] ^ numbers)


def _seed(segment: Segment) -> int:
    return int.from_bytes(hashlib.sha256(b"".join(segment.key)).digest()[:8], "little")


def _mixed(x: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Division:
    """What a version of a collection comes to; made once, as it may have many thousand segments."""

    segments: tuple[Place, ...]
    keys: DataKeys
    parts: list[tuple[int, Asked]]  #: shards that have something, and what

    @classmethod
    def of(cls, searched: Searched, segments: tuple[Place, ...], shards: int) -> Division:
        keys = {place.record.generation: place.secret for place in segments if place.secret}
        parts = []
        for shard, places in enumerate(placed(segments, shards)):
            if places:
                rows = repr([place.record for place in places])  # which say in which files their segments are
                bare = tuple(replace(place, secret=b"") for place in places)
                parts.append((shard, Asked(hashlib.sha256(rows.encode()).digest(), searched.parameters, bare)))
        return cls(segments, keys, parts)

"""Which shard has which segment: the same for everybody who knows the same segments, with nothing to agree on.

Rendezvous hashing (Thaler and Ravishankar, 1998) with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): each
segment goes to the first shard, in an order that its id alone decides, that has room for it. So a new segment moves few
others, and no shard has much more than its share of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from he_server.search.answering import Segment

SPARE = 1.1  #: a shard takes so many times its share of bytes, or one segment more: a call waits for the fullest

S = TypeVar("S", bound=Segment)


def placed(segments: Sequence[S], shards: int) -> list[list[S]]:
    """The segments of each shard, largest first."""
    share = sum(segment.index_bytes for segment in segments) / shards
    out: list[list[S]] = [[] for _ in range(shards)]
    loads = [0] * shards
    for segment in sorted(segments, key=lambda segment: (-segment.index_bytes, segment.key)):
        room = max(SPARE * share, share + segment.index_bytes)
        number = next(n for n in _order(segment.key, shards) if loads[n] + segment.index_bytes <= room)
        out[number].append(segment)
        loads[number] += segment.index_bytes
    return out


def _order(key: tuple[bytes, bytes], shards: int) -> list[int]:
    """Of all shards, for one segment."""
    weights = [hashlib.sha256(b"".join(key) + number.to_bytes(4, "little")).digest() for number in range(shards)]
    return sorted(range(shards), key=weights.__getitem__)

"""What front ends and shards tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import HesearchError
from he_proto.wire import PublicParameters
from he_server.storage.places import Place

#: One more whenever a message or a method of Shard becomes another, so that builds which differ in it share no actors.
PROTOCOL = 2

#: Of one collection, by generation. An argument of its own, and small: what is larger than 100 KB goes through Ray's
#: object store, which may be written to disk.
DataKeys = dict[int, bytes]

#: Of whose answers: (position in Asked.places, query, first block, blocks).
Header = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """Some segments of a collection, to be searched for some queries. A shard remembers it by its name."""

    name: bytes  #: equal where the segments and their files are the same: who asks at the same time shares passes
    parameters: PublicParameters
    places: tuple[Place, ...]  #: without their keys


@dataclass(frozen=True, slots=True)
class Batch:
    """What a shard has of a call's answers: those that it has not given before. None: it works on them."""

    headers: tuple[Header, ...] = ()
    answers: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))  #: end to end
    done: bool = False  #: no more come
    loading: bool = False  #: segments are being read; ask again
    unknown: bool = False  #: there is no such call (any more)
    untold: bool = False  #: what is asked has to be said, not its name alone
    full: bool = False  #: it takes no call more at present
    error: HesearchError | None = None
    damaged: tuple[int, ...] = ()  #: positions in Asked.places, where that is the error

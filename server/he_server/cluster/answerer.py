"""An Answerer whose answers are computed by a cluster's shards."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from he_engine.engine import Buffer, ServerEngine
from he_engine.errors import Unavailable
from he_proto.chunks import CHUNK_BYTES
from he_proto.wire import PublicParameters
from he_server.cluster.actors import Actors
from he_server.cluster.fanout import FanOut
from he_server.cluster.messages import Asked, DataKeys
from he_server.cluster.placement import placed
from he_server.cluster.shard import TAKE_BYTES
from he_server.cluster.waits import Waits
from he_server.config import ServerConfig
from he_server.search.answering import Pace, Piece, Searched
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.places import Place
from he_server.storage.store import Store

_KEPT = 64  #: versions whose placement is remembered, and collections whose waits are
_CLOSE_S = 10.0  #: what calls get to notice that they are no longer active


class RayAnswerer:
    """See Answerer. Raises Unavailable, MissingExtra."""

    def __init__(self, config: ServerConfig, store: Store) -> None:
        self._store = store
        self._actors = Actors(config)
        self._lock = threading.Lock()
        self._ended = threading.Condition()
        self._calls = 0
        self._waits: dict[bytes, Waits] = {}  # by collection, the latest used last
        self._placed: dict[Hashable, list[tuple[int, Asked]]] = {}  # by Searched.key, the latest made last

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
        parts = self._parts(searched)
        if not parts:
            computed()
            return
        with self._calling():
            try:
                sent = ray.put(np.frombuffer(b"".join(queries), np.uint8).reshape(len(queries), -1))
            except Exception as error:  # of Ray: they have no class in common
                raise Unavailable(f"cluster: {type(error).__name__} while queries were sent") from error
            waits = self._waits_of(parts[0][1])
            block_bytes = engine.answer_bytes_per_block
            call = FanOut(self._actors, waits, self._store, parts, _keys(searched), sent, len(queries), block_bytes)
            yield from call.pieces(active, computed, pace or Pace(), remaining_s)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        """So that Ray stays until it ends."""
        with self._ended:
            self._calls += 1
        try:
            yield
        finally:
            with self._ended:
                self._calls -= 1
                self._ended.notify_all()

    def _waits_of(self, asked: Asked) -> Waits:
        """Of a collection."""
        with self._lock:
            waits = self._waits.pop(asked.places[0].key[0], None) or Waits()
            self._waits[asked.places[0].key[0]] = waits
            _bound(self._waits)
            return waits

    def _parts(self, searched: Searched) -> list[tuple[int, Asked]]:
        """Shards, and what each has of these."""
        with self._lock:
            if (known := self._placed.get(searched.key)) is not None:
                return known
        parts = []
        for shard, places in enumerate(placed(_places(searched), self._actors.shards)):
            if places:
                records = tuple(place.record for place in places)  # front ends count editions for themselves
                bare = tuple(replace(place, secret=b"") for place in places)
                parts.append((shard, Asked((searched.key, records), searched.parameters, bare)))
        with self._lock:
            self._placed[searched.key] = parts
            _bound(self._placed)
        return parts

    @contextlib.contextmanager
    def searched(self, record: CollectionRecord, version: int, parameters: PublicParameters) -> Iterator[Searched]:
        """See Answerer."""
        with self._store.places(record, version) as snapshot:
            rows = hash(tuple(place.record for place in snapshot.segments))  # editions begin anew with a collection
            key = (record.collection_id, version, snapshot.edition, rows)
            yield Searched(key, parameters, snapshot.segments)

    def warm(self, engine: ServerEngine, searched: Searched, room_bytes: float, stop: threading.Event) -> int:
        """See Answerer: every replica is told to read its part, and nobody waits. What they have no room for, they
        read when it is searched."""
        del engine, room_bytes
        if stop.is_set():
            return 0
        keys = _keys(searched)
        for shard, asked in self._parts(searched):
            for replica in range(self._actors.replicas):
                self._actors.actor(shard, replica).load.remote(asked.places, keys)
        return sum(segment.index_bytes for segment in searched.segments)

    def gauges(self) -> Mapping[str, float]:
        """See Answerer."""
        replies = self._actors.replies
        return {
            "cluster_actors": self._actors.shards * self._actors.replicas,
            "cluster_actors_replying": len(replies),
            "cluster_index_bytes": sum(int(one["held_bytes"]) for one in replies),
        }

    def call_bytes(self, answer_bytes: int) -> int:
        """See Answerer: from each replica, a batch that is being passed on and one that has come."""
        parts = self._actors.shards * min(2, self._actors.replicas)
        return min(answer_bytes, parts * 2 * (TAKE_BYTES + 8 * CHUNK_BYTES))

    def close(self) -> None:
        """See Answerer."""
        with self._ended:
            self._ended.wait_for(lambda: not self._calls, _CLOSE_S)
        self._actors.close()


def _places(searched: Searched) -> list[Place]:
    return [segment for segment in searched.segments if isinstance(segment, Place)]


def _keys(searched: Searched) -> DataKeys:
    return {place.record.generation: place.secret for place in _places(searched) if place.secret}


def _bound(kept: dict[Any, Any]) -> None:
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]

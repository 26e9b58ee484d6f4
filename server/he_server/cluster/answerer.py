"""An Answerer whose answers are computed by a cluster's shards."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from he_engine.engine import Buffer, ServerEngine
from he_engine.errors import NotFound, Unavailable
from he_proto.chunks import CHUNK_BYTES
from he_proto.wire import PublicParameters
from he_server.cluster.actors import Actors
from he_server.cluster.fanout import FanOut
from he_server.cluster.placement import Division
from he_server.cluster.shard import TAKE_BYTES
from he_server.cluster.waits import Waits
from he_server.config import ServerConfig
from he_server.search.answering import Pace, Piece, Searched
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.places import Place
from he_server.storage.store import Store

_KEPT = 64  #: collections whose placement and waits are remembered
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
        self._divisions: dict[bytes, Division] = {}  # by collection, the latest used last

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
        if not searched.segments:
            computed()
            return
        division = self._division(searched)
        with self._calling():
            try:
                sent = ray.put(np.frombuffer(b"".join(queries), np.uint8).reshape(len(queries), -1))
            except Exception as error:  # of Ray: they have no class in common
                raise Unavailable(f"cluster: {type(error).__name__} while queries were sent") from error
            waits = self._waits_of(_collection_of(searched))
            block_bytes = engine.answer_bytes_per_block
            call = FanOut(
                self._actors, waits, self._store, division.parts, division.keys, sent, len(queries), block_bytes
            )
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

    def _waits_of(self, collection_id: bytes) -> Waits:
        with self._lock:
            waits = self._waits.pop(collection_id, None) or Waits()
            self._waits[collection_id] = waits
            _bound(self._waits)
            return waits

    def _division(self, searched: Searched) -> Division:
        segments = tuple(place for place in searched.segments if isinstance(place, Place))
        with self._lock:
            known = self._divisions.get(_collection_of(searched))
        # mostly these are the same objects, and comparing them costs a thousandth of placing them
        if known is None or known.segments != segments:
            known = Division.of(searched, segments, self._actors.shards)
        with self._lock:
            self._divisions.pop(_collection_of(searched), None)
            self._divisions[_collection_of(searched)] = known
            _bound(self._divisions)
        return known

    @contextlib.contextmanager
    def searched(self, record: CollectionRecord, version: int, parameters: PublicParameters) -> Iterator[Searched]:
        """See Answerer."""
        try:
            snapshot = self._store.places(record, version)
        except NotFound:
            with self._lock:
                self._divisions.pop(record.collection_id, None)  # with its data keys
            raise
        with snapshot:
            yield Searched((record.collection_id, version, snapshot.edition), parameters, snapshot.segments)

    def warm(self, engine: ServerEngine, searched: Searched, room_bytes: float, stop: threading.Event) -> int:
        """See Answerer: every replica is told to read its part, and nobody waits. What they have no room for, they
        read when it is searched."""
        del engine, room_bytes
        if stop.is_set() or not searched.segments:
            return 0
        division = self._division(searched)
        for shard, asked in division.parts:
            for replica in range(self._actors.replicas):
                self._actors.actor(shard, replica).load.remote(asked.places, division.keys)
        return sum(segment.index_bytes for segment in searched.segments)

    def gauges(self) -> Mapping[str, float]:
        """See Answerer."""
        replies = self._actors.replies
        return {
            "cluster_actors": self._actors.shards * self._actors.replicas,
            "cluster_actors_replying": len(replies),
            "cluster_index_bytes": sum(int(one["held_bytes"]) for one in replies),
            "cluster_object_failures": sum(int(one["object_failures"]) for one in replies),
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


def _collection_of(searched: Searched) -> bytes:
    return searched.segments[0].key[0]


def _bound(kept: dict[Any, Any]) -> None:
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]

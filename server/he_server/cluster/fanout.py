"""One call's answers from all shards: taken as they come, from another replica where one is slow or lost, each once.

A part is what one shard has of the searched segments. It is asked of one replica, and of a further one when
that has been silent for longer than usual (Dean and Barroso, "The Tail at Scale", 2013: hedged requests), reads its
segments first, or is lost. If no replica can answer for as long as the configuration says, the call fails, and says
which part is missing: an answer is never left out.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from he_engine.errors import Unavailable
from he_server.cluster.actors import Actors
from he_server.cluster.coverage import Coverage
from he_server.cluster.messages import Asked, Batch
from he_server.cluster.waits import Waits
from he_server.search.answering import Pace, Piece, Unit
from he_server.storage.store import Store

_POLL_S = 0.05  #: between looks for cancellation and for what is late
_LAST_S = 0.3  #: before a deadline
_AGAIN_S = 0.2  #: between attempts when every replica failed


@dataclass(slots=True, eq=False)
class _Source:
    """One replica that was asked for a part."""

    replica: int
    actor: Any
    call_id: bytes
    coming: Any  #: reference to the next Batch
    since_s: float
    loading: bool = False


@dataclass(slots=True, eq=False)
class _Part:
    shard: int
    asked: Asked
    missing: Coverage
    next_replica: int
    sources: list[_Source] = field(default_factory=list)
    failing_since_s: float | None = None
    again_s: float = 0.0
    reason: str = ""


class FanOut:
    """One call. Not thread-safe."""

    def __init__(
        self,
        actors: Actors,
        waits: Waits,
        parts: Sequence[tuple[int, Asked]],
        answer_bytes_per_block: int,
        queries: Any,
        count: int,
        store: Store,
    ) -> None:
        """parts: shards, and what each is asked. queries: reference to (count, bytes of each)."""
        self._actors = actors
        self._waits = waits
        self._block_bytes = answer_bytes_per_block
        self._queries = queries
        self._store = store
        first = secrets.randbelow(actors.replicas)  # so that replicas share the load
        self._parts = [
            _Part(shard, asked, Coverage([place.blocks for place in asked.places], count), first)
            for shard, asked in parts
        ]
        self._open = list(self._parts)

    def pieces(
        self,
        active: Callable[[], bool],
        computed: Callable[[], object],
        pace: Pace,
        remaining_s: Callable[[], float],
    ) -> Iterator[Piece]:
        """See Answerer.answer."""
        try:
            while self._open:
                if not active():
                    raise Unavailable("the call was cancelled")
                self._ask(remaining_s() < _LAST_S)
                for part, source in self._ready():
                    yield from self._given(part, source, computed, pace)
        finally:
            for part in self._parts:
                for source in part.sources:
                    self._leave(source)

    # ---- asking -----------------------------------------------------------------------------------------
    def _ask(self, last: bool) -> None:
        """last: the deadline is near, and who fails now can still say why."""
        now_s = time.monotonic()
        for part in self._open:
            for source in list(part.sources):
                if now_s - source.since_s > self._actors.wait_s:
                    self._lost(part, source, "it does not reply")
            failing_s = 0.0 if part.failing_since_s is None else now_s - part.failing_since_s
            if last and failing_s:
                raise Unavailable(self._missing(part))
            if not part.sources:
                if failing_s > self._actors.wait_s:
                    raise Unavailable(self._missing(part))
                if now_s >= part.again_s:
                    self._start(part)
            elif len(part.sources) == 1 and self._actors.replicas > 1 and self._late(part.sources[0], now_s):
                self._store.tally.add("cluster_hedges")
                self._start(part)

    def _late(self, source: _Source, now_s: float) -> bool:
        return source.loading or now_s - source.since_s > self._waits.late_s

    def _start(self, part: _Part) -> None:
        """Asks the next replica."""
        taken = {source.replica for source in part.sources}
        replica = part.next_replica % self._actors.replicas
        while replica in taken:
            replica = (replica + 1) % self._actors.replicas
        part.next_replica = replica + 1
        call_id = secrets.token_bytes(16)
        try:
            actor = self._actors.actor(part.shard, replica)
            coming = actor.open.remote(call_id, part.asked, self._queries)
        except RayError as error:
            self._failed(part, type(error).__name__)
            return
        part.sources.append(_Source(replica, actor, call_id, coming, time.monotonic()))

    # ---- what comes -------------------------------------------------------------------------------------
    def _ready(self) -> list[tuple[_Part, _Source]]:
        waiting = {source.coming: (part, source) for part in self._open for source in part.sources}
        if not waiting:
            time.sleep(_POLL_S)
            return []
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=min(_POLL_S, self._waits.late_s))
        return [waiting[one] for one in ready]

    def _given(self, part: _Part, source: _Source, computed: Callable[[], object], pace: Pace) -> Iterator[Piece]:
        batch = self._batch(part, source)
        if batch is None:
            return
        source.loading = batch.loading
        if not batch.loading:
            self._waits.add(time.monotonic() - source.since_s)
        if not batch.done:
            source.coming, source.since_s = source.actor.take.remote(source.call_id), time.monotonic()
        pieces = list(self._new(part, batch))
        if part.missing.complete:
            self._open.remove(part)
            if not self._open:
                computed()
        elif batch.done:
            self._lost(part, source, "it left answers out")
        pace.full()  # the client is waited for
        yield from pieces
        pace.room()
        if part.missing.complete:
            while part.sources:
                self._leave(part.sources.pop())

    def _batch(self, part: _Part, source: _Source) -> Batch | None:
        """The next, or None where this source is of no use. Raises what is wrong with segments or queries."""
        try:
            batch: Batch = ray.get(source.coming)
        except RayError as error:
            if isinstance(error, ActorDiedError):
                self._actors.forget(part.shard, source.replica)
            self._lost(part, source, type(error).__name__)
            return None
        if batch.unknown:
            self._lost(part, source, "it was started again")
            return None
        if batch.error is not None:
            for number in batch.damaged:
                self._store.place_damaged(part.asked.places[number])
            if isinstance(batch.error, Unavailable):
                self._lost(part, source, str(batch.error))
                return None
            raise batch.error
        if not batch.loading:
            part.failing_since_s = None
        return batch

    def _new(self, part: _Part, batch: Batch) -> Iterator[Piece]:
        """What of it was missing."""
        view, start = batch.answers.data, 0
        for number, query, first, blocks in batch.headers:
            for found, count in part.missing.take(number, query, first, blocks):
                begin = start + (found - first) * self._block_bytes
                answers = bytes(view[begin : begin + count * self._block_bytes])
                yield Piece(Unit(part.asked.places[number], found, count), query, answers)
            start += blocks * self._block_bytes

    # ---- what fails -------------------------------------------------------------------------------------
    def _lost(self, part: _Part, source: _Source, reason: str) -> None:
        self._leave(source)
        part.sources.remove(source)
        self._failed(part, reason)

    def _failed(self, part: _Part, reason: str) -> None:
        now_s = time.monotonic()
        part.reason = reason
        self._store.tally.add("cluster_losses")
        if part.failing_since_s is None:
            part.failing_since_s = now_s
        else:
            part.again_s = now_s + _AGAIN_S

    def _missing(self, part: _Part) -> str:
        failing_s = time.monotonic() - (part.failing_since_s or 0.0)
        segments = sum(len(other.asked.places) for other in self._parts)
        return (
            f"cluster: shard {part.shard} of {self._actors.shards}, which has {len(part.asked.places)} of {segments} "
            f"segments, did not answer for {failing_s:.0f} s ({part.reason}); no answer was left out"
        )

    @staticmethod
    def _leave(source: _Source) -> None:
        with contextlib.suppress(Exception):  # it forgets the call by itself
            source.actor.leave.remote(source.call_id)

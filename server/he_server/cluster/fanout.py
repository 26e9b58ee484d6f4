"""One call's answers from all shards: taken as they come, from another replica where one is slow or lost, each once.

A part is what one shard has of the searched segments. It is asked of one replica, and of a further one when
that is late with its first answers (Dean and Barroso, "The Tail at Scale", 2013: hedged requests), reads its segments
first, stands still or is lost. If nothing is heard of a part for as long as the configuration says, the call fails and
says which it is: an answer is never left out.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError

from he_engine.errors import HesearchError, Unavailable
from he_server.cluster.actors import Actors
from he_server.cluster.coverage import Coverage
from he_server.cluster.messages import Asked, Batch, DataKeys
from he_server.cluster.shard import LIFE_S
from he_server.cluster.waits import Waits
from he_server.search.answering import Pace, Piece, Unit
from he_server.storage.store import Store

_POLL_S = 0.05  #: between looks for cancellation and for what is late
_LAST_S = 0.3  #: before a deadline
_AGAIN_S = 0.2  #: between attempts when every replica failed
_STILL_S = 4 * LIFE_S  #: who works says so more often


@dataclass(slots=True, eq=False)
class _Source:
    """One replica that was asked for a part."""

    replica: int
    actor: Any
    call_id: bytes
    coming: Any  #: reference to the next Batch
    asked_s: float
    heard_s: float
    loading: bool = False
    answering: bool = False  #: its first answers came


@dataclass(slots=True, eq=False)
class _Part:
    shard: int
    asked: Asked
    missing: Coverage
    next_replica: int
    heard_s: float  #: of any source; while the client is waited for, it does not age
    sources: list[_Source] = field(default_factory=list)
    again_s: float = 0.0
    reason: str = "no actor has room, or none replies"


class FanOut:
    """One call. Not thread-safe."""

    def __init__(
        self,
        actors: Actors,
        waits: Waits,
        store: Store,
        parts: Sequence[tuple[int, Asked]],
        keys: DataKeys,
        queries: Any,
        count: int,
        answer_bytes_per_block: int,
    ) -> None:
        """parts: shards, and what each is asked. queries: reference to (count, bytes of each)."""
        self._actors = actors
        self._waits = waits
        self._store = store
        self._keys = keys
        self._queries = queries
        self._block_bytes = answer_bytes_per_block
        first, now_s = secrets.randbelow(actors.replicas), time.monotonic()  # so that replicas share the load
        self._parts = [
            _Part(shard, asked, Coverage([place.blocks for place in asked.places], count), first, now_s)
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
                for part, source in self._ready(_POLL_S):
                    pieces = self._given(part, source)
                    if not self._open:
                        computed()
                    yield from self._passed_on(pieces, pace)
        finally:
            for part in self._parts:
                for source in part.sources:
                    self._leave(source)

    def _passed_on(self, pieces: Sequence[Piece], pace: Pace) -> Iterator[Piece]:
        """The client takes them; meanwhile no shard is late, and if all have given what they have, it is the client
        that is waited for."""
        if not pieces:
            return
        began_s = time.monotonic()
        waiting = sum(len(part.sources) for part in self._open)
        if len(self._ready(0.0, waiting)) == waiting:
            pace.full()
        yield from pieces
        pace.room()
        paused_s = time.monotonic() - began_s
        for part in self._open:
            part.heard_s += paused_s
            for source in part.sources:
                source.asked_s += paused_s
                source.heard_s += paused_s

    # ---- asking -----------------------------------------------------------------------------------------
    def _ask(self, last: bool) -> None:
        """last: the deadline is near, and who fails now can still say why."""
        now_s = time.monotonic()
        for part in self._open:
            unheard_s = now_s - part.heard_s
            if unheard_s > self._actors.wait_s or (last and unheard_s > _STILL_S):
                raise Unavailable(self._missing(part, unheard_s))
            if now_s < part.again_s:
                continue
            if not part.sources:
                self._start(part)
            elif len(part.sources) == 1 and self._actors.replicas > 1 and self._late(part.sources[0], now_s):
                self._store.tally.add("cluster_hedges")
                self._start(part)

    def _late(self, source: _Source, now_s: float) -> bool:
        if source.answering:
            return now_s - source.heard_s > _STILL_S
        return source.loading or now_s - source.asked_s > self._waits.late_s

    def _start(self, part: _Part) -> None:
        """Asks the next replica."""
        taken = {source.replica for source in part.sources}
        replica = part.next_replica % self._actors.replicas
        while replica in taken:
            replica = (replica + 1) % self._actors.replicas
        part.next_replica = replica + 1
        call_id, now_s = secrets.token_bytes(16), time.monotonic()
        try:
            actor = self._actors.actor(part.shard, replica)
            coming = self._opened(actor, call_id, part)
        except Exception as error:  # of Ray: they have no class in common
            self._failed(part, type(error).__name__)
            return
        part.sources.append(_Source(replica, actor, call_id, coming, now_s, now_s))

    # ---- what comes -------------------------------------------------------------------------------------
    def _ready(self, timeout_s: float, most: int = 1) -> list[tuple[_Part, _Source]]:
        waiting = {source.coming: (part, source) for part in self._open for source in part.sources}
        if not waiting:
            time.sleep(timeout_s)
            return []
        try:
            ready, _ = ray.wait(list(waiting), num_returns=max(1, min(most, len(waiting))), timeout=timeout_s)
        except Exception as error:
            raise Unavailable(f"cluster: {type(error).__name__} while answers were waited for") from error
        return [waiting[one] for one in ready]

    def _given(self, part: _Part, source: _Source) -> list[Piece]:
        batch = self._batch(part, source)
        if batch is None:
            return []
        part.heard_s = source.heard_s = time.monotonic()
        source.loading = batch.loading
        if batch.untold:  # of a version that it is asked for the first time
            self._next(part, source, lambda: self._opened(source.actor, source.call_id, part, part.asked))
            return []
        if batch.headers and not source.answering:
            source.answering = True
            self._waits.add(source.heard_s - source.asked_s)
        pieces = list(self._new(part, batch))
        if part.missing.complete:
            self._open.remove(part)
            if batch.done:  # it has forgotten the call
                part.sources.remove(source)
            while part.sources:
                self._leave(part.sources.pop())
        elif batch.done:
            self._lost(part, source, "it left answers out")
        else:
            self._next(part, source, lambda: source.actor.take.remote(source.call_id))
        return pieces

    def _next(self, part: _Part, source: _Source, ask: Callable[[], Any]) -> None:
        try:
            source.coming = ask()
        except Exception as error:  # of Ray: they have no class in common
            self._lost(part, source, type(error).__name__)

    def _opened(self, actor: Any, call_id: bytes, part: _Part, asked: Asked | None = None) -> Any:
        return actor.open.remote(call_id, part.asked.name, self._keys, self._queries, asked)

    def _batch(self, part: _Part, source: _Source) -> Batch | None:
        """The next, or None where this source is of no use. Raises what is wrong with segments or queries."""
        try:
            batch: Batch = ray.get(source.coming)
        except Exception as error:
            if isinstance(error, ActorDiedError):
                self._actors.forget(part.shard, source.replica, source.actor)
            self._lost(part, source, type(error).__name__)
            return None
        if batch.full:
            part.sources.remove(source)
            part.reason, part.again_s = "it takes no call more", time.monotonic() + _AGAIN_S
            return None
        if batch.unknown:
            self._lost(part, source, "it was started again")
            return None
        if batch.error is not None:
            self._wrong(part, source, batch.error, batch.damaged)
            return None
        return batch

    def _wrong(self, part: _Part, source: _Source, error: HesearchError, damaged: Sequence[int]) -> None:
        """Raises what another replica would meet, too."""
        try:
            for number in damaged:
                self._store.place_damaged(part.asked.places[number].with_key(self._keys))
            raise error
        except Unavailable as passing:
            self._lost(part, source, str(passing))

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
        part.reason = reason
        part.again_s = time.monotonic() + _AGAIN_S
        self._store.tally.add("cluster_losses")
        self._actors.causes.say(f"cluster: an actor of shard {part.shard} was given up", reason)

    def _missing(self, part: _Part, unheard_s: float) -> str:
        segments = sum(len(other.asked.places) for other in self._parts)
        return (
            f"cluster: shard {part.shard} of {self._actors.shards}, which has {len(part.asked.places)} of {segments} "
            f"segments, did not answer for {unheard_s:.0f} s ({part.reason}); no answer was left out"
        )

    @staticmethod
    def _leave(source: _Source) -> None:
        with contextlib.suppress(Exception):  # it forgets the call by itself
            ray.cancel(source.coming)  # where it has not begun, so that its queries go
            source.actor.leave.remote(source.call_id)

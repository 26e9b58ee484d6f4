"""A cluster of 1 to some thousand nodes, event by event: what queries that come at random meet on their way.

Client → front end → one copy of every shard → front end → client. Queries come as a Poisson process; front ends take
turns, and so do the copies of a shard. Answers flow while shards read, so a transfer is over one message after its
sender is done, or when a pipe with others in it has passed them. Events are a heap of times: the same seed gives the
same figures. (SimPy would make a coroutine of each query and shard, and a process-sharing queue, whose
finishing times move with every arrival, is written by hand there, too.)

Simplified: queries to shards are counted against a front end's interface by themselves, as small messages pass between
large answers there; a node's own interface is never full, as it reads hundreds of bytes for each that it sends.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from he_client.scaling.pipe import Pipe
from he_client.scaling.shard import Shard
from he_client.scaling.simulated import Outcome, Simulated
from he_engine.errors import InvalidInput

MAX_TASKS = 2_000_000  #: queries times shards: about a minute
MAX_EVENTS = 20_000_000


@dataclass(slots=True, eq=False)
class _Query:
    number: int
    came_s: float
    missing: int
    first_s: float = math.inf  #: a shard has begun
    last_s: float = 0.0  #: answers of the last shard are at the front end
    failed: bool = False


@dataclass(slots=True, eq=False)
class _Task:
    """One query at one shard; `at` are the copies that compute it."""

    query: _Query
    shard: int
    began_s: float = 0.0
    at: list[int] = field(default_factory=list)
    works: int = 0  # copies that were ever asked


class _Run:
    def __init__(self, simulated: Simulated, queries: int, seed: int) -> None:
        self._s, self._count = simulated, queries
        self._arrivals, self._work, self._fates = (Random(f"{seed} {name}") for name in ("arrivals", "work", "fates"))
        nodes = simulated.shards * simulated.replicas
        self._nodes = [Shard(simulated.sharing) for _ in range(nodes)]
        self._up = [True] * nodes
        self._version = [0] * nodes  # of a node's next end: an older one in the heap is void
        self._tasks: dict[int, _Task] = {}
        rate = simulated.front_end_bytes_per_s
        self._calls_free_s = [0.0] * simulated.front_ends
        self._to_shards, self._from_shards, self._to_clients = (
            [Pipe(rate, simulated.piece_bytes) for _ in range(simulated.front_ends)] for _ in range(3)
        )
        self._heap: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self._events = self._names = 0
        self._open = queries
        self._hedge_s = None if simulated.hedge is None else simulated.times.quantile(simulated.hedge)
        self._latencies: list[float] = []
        self._failed = self._asked = self._again = 0
        self._warm, self._warm_s, self._end_s = queries // 10, 0.0, 0.0

    def _at(self, time_s: float, action: Callable[[float, int], None], argument: int) -> None:
        self._events += 1
        heapq.heappush(self._heap, (time_s, self._events, action, argument))

    def run(self) -> Outcome:
        self._at(self._arrivals.expovariate(self._s.queries_per_s), self._arrive, 0)
        if self._s.failures:
            for node in range(len(self._nodes)):
                self._at(self._fates.expovariate(1 / self._s.failures.mean_time_between_s), self._fail, node)
        while self._open:
            now_s, number, action, argument = heapq.heappop(self._heap)
            if number > MAX_EVENTS:
                raise InvalidInput(
                    f"simulation: {self._open:,} queries have no answer after {MAX_EVENTS:,} events; do nodes fail "
                    "within a pass?"
                )
            action(now_s, argument)
        return self._outcome()

    # ---- a query ---------------------------------------------------------------------------------------
    def _arrive(self, now_s: float, number: int) -> None:
        if number + 1 < self._count:
            self._at(now_s + self._arrivals.expovariate(self._s.queries_per_s), self._arrive, number + 1)
        if number == self._warm:
            self._warm_s = now_s
        s, front_end = self._s, number % self._s.front_ends
        query = _Query(number, now_s, s.shards)
        free_s = max(self._calls_free_s[front_end], now_s + s.before_s + s.query_bytes / s.link_bytes_per_s)
        for shard in range(s.shards):
            free_s += s.dispatch_s
            sent_s = self._to_shards[front_end].send(free_s, s.query_bytes)
            self._names += 1
            self._tasks[self._names] = _Task(query, shard)
            self._at(sent_s + s.node_call_s, self._ask, self._names)
        self._calls_free_s[front_end] = free_s

    def _ask(self, now_s: float, name: int) -> None:
        """At the next copy of its shard that is up; the query fails where none is."""
        task, s = self._tasks[name], self._s
        first = task.query.number + task.works
        copies = [task.shard * s.replicas + (first + i) % s.replicas for i in range(s.replicas)]
        node = next((n for n in copies if self._up[n] and n not in task.at), None)
        if node is None:
            if not task.at:
                self._give_up(task.query, now_s)
            return
        task.began_s = task.began_s or now_s
        task.query.first_s = min(task.query.first_s, now_s)
        task.at.append(node)
        task.works += 1
        self._asked += 1
        self._again += task.works > 1
        self._nodes[node].join(now_s, name, s.times.draw(self._work))
        self._next(node)
        if self._hedge_s is not None and task.works == 1:
            self._at(now_s + self._hedge_s, self._hedge, name)

    def _hedge(self, now_s: float, name: int) -> None:
        if name in self._tasks:
            self._ask(now_s, name)

    def _give_up(self, query: _Query, now_s: float) -> None:
        if not query.failed:
            query.failed = True
            self._failed += query.number >= self._warm
            self._close(now_s)

    def _close(self, now_s: float) -> None:
        self._open -= 1
        self._end_s = max(self._end_s, now_s)

    # ---- a node ----------------------------------------------------------------------------------------
    def _next(self, node: int) -> None:
        """Its next end goes into the heap, and the one that is there is void."""
        self._version[node] += 1
        if found := self._nodes[node].next():
            self._at(found[0], self._finish, node + len(self._nodes) * self._version[node])

    def _finish(self, now_s: float, what: int) -> None:
        version, node = divmod(what, len(self._nodes))
        if version != self._version[node]:
            return
        found = self._nodes[node].next()
        assert found is not None
        name = found[1]
        task, s = self._tasks.pop(name), self._s
        for copy in task.at:
            self._nodes[copy].leave(now_s, name)
            self._next(copy)
        query, front_end, share = task.query, task.query.number % s.front_ends, s.answer_bytes / s.shards
        sent_s = max(now_s, task.began_s + share / s.node_bytes_per_s)
        query.last_s = max(query.last_s, self._from_shards[front_end].stream(task.began_s, sent_s, share))
        query.missing -= 1
        if not query.missing and not query.failed:
            self._answered(query, front_end)

    def _answered(self, query: _Query, front_end: int) -> None:
        s = self._s
        sent_s = self._to_clients[front_end].stream(query.first_s, query.last_s, s.answer_bytes)
        got_s = max(sent_s, query.first_s + s.answer_bytes / s.link_bytes_per_s) + s.after_s
        end_s = max(got_s, query.first_s + s.recover_s)
        if query.number >= self._warm:
            self._latencies.append(end_s - query.came_s)
        self._close(end_s)

    # ---- failures --------------------------------------------------------------------------------------
    def _fail(self, now_s: float, node: int) -> None:
        assert self._s.failures is not None
        self._up[node] = False
        for name in list(self._nodes[node]):
            self._nodes[node].leave(now_s, name)
            self._tasks[name].at.remove(node)
            self._at(now_s + self._s.failures.noticed_after_s, self._ask_again, name)
        self._next(node)
        self._at(now_s + self._s.failures.repair_s, self._repair, node)

    def _ask_again(self, now_s: float, name: int) -> None:
        if name in self._tasks and not self._tasks[name].at:
            self._ask(now_s, name)

    def _repair(self, now_s: float, node: int) -> None:
        assert self._s.failures is not None
        self._up[node] = True
        self._at(now_s + self._fates.expovariate(1 / self._s.failures.mean_time_between_s), self._fail, node)

    # ---- figures ---------------------------------------------------------------------------------------
    def _outcome(self) -> Outcome:
        taken, span_s = sorted(self._latencies), self._end_s - self._warm_s
        carried = sum(pipe.carried_bytes for pipe in self._to_clients) / self._s.front_ends
        return Outcome(
            queries=len(taken) + self._failed,
            failed=self._failed,
            mean_s=statistics.fmean(taken) if taken else math.nan,
            p50_s=_quantile(taken, 0.50),
            p99_s=_quantile(taken, 0.99),
            throughput_per_s=len(taken) / span_s,
            utilisation=statistics.fmean(node.busy_s for node in self._nodes) / self._end_s,
            riders=statistics.fmean(node.ridden_s for node in self._nodes) / self._end_s,
            front_end_utilisation=carried / self._s.front_end_bytes_per_s / self._end_s,
            hedged=self._again / self._asked if self._asked else 0.0,
        )


def _quantile(ordered: list[float], share: float) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def simulate(simulated: Simulated, queries: int, seed: int) -> Outcome:
    """So many queries, from an empty cluster. Raises InvalidInput for fewer than 10, for more than MAX_TASKS calls to
    shards, and where they do not end."""
    if queries < 10 or queries * simulated.shards > MAX_TASKS:
        raise InvalidInput(
            f"simulation: got {queries:,} queries to {simulated.shards:,} shards, expected at least 10 queries and at "
            f"most {MAX_TASKS:,} calls to shards"
        )
    return _Run(simulated, queries, seed).run()

"""A node of the simulation: queries that share the passes over its index, as he_server.search.scan lets them.

All who are there advance at the same rate, f(b)/b passes of a query alone, as the circle of units serves who has been
served least. So it keeps one clock of work done for each: a query with `work_s` seconds of work of its own is done when
the clock has moved on by so much. Joining, leaving and finishing cost O(log b).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from he_client.scaling.sharing import Sharing


class Shard:
    """Times never decrease from call to call. A query is known by a number; each is there once."""

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._now_s = self._clock_s = 0.0
        self._ends: list[tuple[float, int]] = []  # by the clock; those who left are skipped
        self._there: dict[int, float] = {}
        self.busy_s = 0.0  #: with somebody there
        self.ridden_s = 0.0  #: ∫ b dt

    def __len__(self) -> int:
        return len(self._there)

    def __iter__(self) -> Iterator[int]:
        return iter(self._there)

    def _advance(self, now_s: float) -> None:
        elapsed_s, riders = now_s - self._now_s, len(self._there)
        self._now_s = now_s
        if riders:
            self._clock_s += elapsed_s * self._sharing.gain(riders) / riders
            self.busy_s += elapsed_s
            self.ridden_s += riders * elapsed_s

    def join(self, now_s: float, query: int, work_s: float) -> None:
        self._advance(now_s)
        self._there[query] = self._clock_s + work_s
        heapq.heappush(self._ends, (self._there[query], query))

    def leave(self, now_s: float, query: int) -> None:
        """Nothing where it is not there."""
        self._advance(now_s)
        self._there.pop(query, None)

    def next(self) -> tuple[float, int] | None:
        """When who finishes first, if nobody comes or goes; None where nobody is there."""
        while self._ends and self._there.get(self._ends[0][1]) != self._ends[0][0]:
            heapq.heappop(self._ends)
        if not self._ends:
            return None
        end_s, query = self._ends[0]
        riders = len(self._there)
        return self._now_s + max(0.0, end_s - self._clock_s) * riders / self._sharing.gain(riders), query

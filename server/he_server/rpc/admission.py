"""Who may come in now: places for each kind of call, and a budget of bytes; who finds none is told so at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from he_engine.errors import Overloaded
from he_server.config import ServerConfig

_ANSWERS = frozenset({"Answer"})
_TRANSFERS = frozenset({"WriteSegment", "ReadSegmentPart"})


class Gate:
    """So much of something (`what`) that calls share. Thread-safe.

    At most `waiting` callers wait, for at most `wait_s`, and nobody overtakes them. `waiting` 0: none.
    """

    def __init__(self, what: str, limit: int, *, waiting: int, wait_s: float) -> None:
        self._what, self._limit = what, limit
        self._max_waiting, self._wait_s = waiting, wait_s
        self._changed = threading.Condition(threading.RLock())
        self._waiting = 0
        self._holders: dict[object, tuple[Callable[[], None], Callable[[], bool]]] = {}  # (give back, done with it)
        self.used = 0

    @contextlib.contextmanager
    def taken(self, amount: int = 1, spare: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], None]]:
        """A block that has `amount` of it; what it gets gives that back before the block ends, if called. So does a
        caller who finds nothing left, where `spare()` says that this block can spare it.

        More than there is altogether counts as all of it. Raises Overloaded.
        """
        amount = min(amount, self._limit)
        self._take(amount)
        held, holder = amount, object()

        def give_back() -> None:
            nonlocal held
            with self._changed:
                self.used -= held
                held = 0
                self._holders.pop(holder, None)
                self._changed.notify_all()

        with self._changed:
            self._holders[holder] = (give_back, spare)
        try:
            yield give_back
        finally:
            give_back()

    def _take(self, amount: int) -> None:
        def fits() -> bool:
            return self.used + amount <= self._limit or (self._reclaim() and self.used + amount <= self._limit)

        with self._changed:
            if self._waiting or not fits():
                self._refuse_if_full()
                self._waiting += 1
                try:
                    if not self._changed.wait_for(fits, self._wait_s):
                        raise self._refusal()
                finally:
                    self._waiting -= 1
            self.used += amount

    def refuse_if_full(self) -> None:
        """Raises Overloaded if nothing is free and no more callers may wait."""
        with self._changed:
            if self.used >= self._limit and not self._reclaim():
                self._refuse_if_full()

    def _reclaim(self) -> bool:
        """Whether any holder could spare what it held."""
        can = [give_back for give_back, spare in self._holders.values() if spare()]
        for give_back in can:
            give_back()
        return bool(can)

    def _refuse_if_full(self) -> None:
        if self._waiting >= self._max_waiting:
            raise self._refusal()

    def _refusal(self) -> Overloaded:
        return Overloaded(
            f"{self._what}: this server serves {self._limit} at the same time, and no more now; try again"
        )


class Admission:
    """The gates of one server. `place` is for every method; `inflight_bytes` and `scans` are for the one that
    answers, and more: scans for as long as its queries are computed, however slowly they come; nor does one whose
    client takes its answers too slowly keep it from others (he_server.search.scan.Pace).
    """

    def __init__(self, config: ServerConfig) -> None:
        def places(what: str, limit: int) -> Gate:
            return Gate(what, limit, waiting=config.max_waiting, wait_s=config.wait_s)

        self._answers = places("Answer calls", config.max_answers)
        self._transfers = places("transfers", config.max_transfers)
        self._others = places("calls", config.max_other_calls)
        # Nobody waits for these: a search of a small index takes less time than any wait that would be worth it.
        self.scans = Gate("searches", config.max_scans, waiting=0, wait_s=0)
        self.inflight_bytes = Gate("bytes in flight", config.max_inflight_bytes, waiting=0, wait_s=0)

    def place(self, method: str) -> Gate:
        """Of the kind of call that a method of the .proto is."""
        if method in _ANSWERS:
            return self._answers
        return self._transfers if method in _TRANSFERS else self._others

    @staticmethod
    def most_calls(config: ServerConfig) -> int:
        """That have a place or wait for one."""
        return config.max_answers + config.max_transfers + config.max_other_calls + 3 * config.max_waiting

"""Block secrets kept between queries, within a bound; overwritten when they are evicted and nobody uses them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from he_engine.keys import Secret

U32 = NDArray[np.uint32]


class _Entry:
    __slots__ = ("array", "kept", "users")

    def __init__(self, array: U32) -> None:
        self.array = array
        self.users = 0
        self.kept = True


class SecretCache(Secret):
    """Least recently used first out. Thread-safe."""

    __slots__ = ("_bytes", "_capacity", "_entries", "_lock")

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, name: Hashable, make: Callable[[], U32]) -> Iterator[U32]:
        """The secrets called `name`, made where they are not cached; do not use them after the `with` block."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None:
                self._entries.move_to_end(name)
                entry.users += 1
        if entry is None:
            entry = self._keep(name, _Entry(make()))
        try:
            yield entry.array
        finally:
            with self._lock:
                entry.users -= 1
                _wipe_if_unused(entry)

    def _keep(self, name: Hashable, entry: _Entry) -> _Entry:
        """Cache a new entry, in use by its maker; another thread's entry of the same name stays instead."""
        with self._lock:
            entry.users = 1
            if name in self._entries or entry.array.nbytes > self._capacity:
                entry.kept = False
                return entry
            self._entries[name] = entry
            self._bytes += entry.array.nbytes
            while self._bytes > self._capacity:
                self._drop(next(iter(self._entries)))
        return entry

    def _drop(self, name: Hashable) -> None:
        entry = self._entries.pop(name)
        self._bytes -= entry.array.nbytes
        entry.kept = False
        _wipe_if_unused(entry)

    def close(self) -> None:
        """Forget all; what is in use is overwritten when its user is done."""
        with self._lock:
            for name in list(self._entries):
                self._drop(name)


def _wipe_if_unused(entry: _Entry) -> None:
    if not entry.kept and entry.users == 0:
        entry.array.fill(0)

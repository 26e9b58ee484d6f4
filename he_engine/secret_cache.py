"""Block secrets kept between queries: what fits within a bound stays, the rest is made anew each time.

Every search scans all segments in the same order; evicting for newcomers would then never hit once the bound is passed.
Arrays are overwritten when they are forgotten and nobody uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from he_engine.keys import Secret

U32 = NDArray[np.uint32]


class _Entry:
    __slots__ = ("array", "kept", "users")

    def __init__(self, array: U32) -> None:
        self.array = array
        self.users = 1
        self.kept = False

    def wipe_if_unused(self) -> None:
        if not self.kept and self.users == 0:
            self.array.fill(0)


class SecretCache(Secret):
    """Arrays by (segment seed, first block). Thread-safe."""

    __slots__ = ("_bytes", "_capacity", "_entries", "_lock")

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._entries: dict[bytes, dict[int, _Entry]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, seed: bytes, first: int, make: Callable[[], U32]) -> Iterator[U32]:
        """The secrets of a piece of a segment; do not use them after the `with` block."""
        with self._lock:
            entry = self._entries.get(seed, {}).get(first)
            if entry is not None:
                entry.users += 1
        if entry is None:
            entry = _Entry(make())
            self._keep(seed, first, entry)
        try:
            yield entry.array
        finally:
            with self._lock:
                entry.users -= 1
                entry.wipe_if_unused()

    def _keep(self, seed: bytes, first: int, entry: _Entry) -> None:
        with self._lock:
            pieces = self._entries.setdefault(seed, {})
            if first not in pieces and self._bytes + entry.array.nbytes <= self._capacity:
                pieces[first] = entry
                entry.kept = True
                self._bytes += entry.array.nbytes

    def forget(self, seed: bytes) -> None:
        """All pieces of a segment; what is in use is overwritten when its user is done."""
        with self._lock:
            for entry in self._entries.pop(seed, {}).values():
                self._bytes -= entry.array.nbytes
                entry.kept = False
                entry.wipe_if_unused()

    def close(self) -> None:
        """Forget everything."""
        for seed in list(self._entries):
            self.forget(seed)

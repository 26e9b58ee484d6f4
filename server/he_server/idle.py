"""Calls that wait for their client too long are cancelled, so that nobody keeps their places by doing nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class IdleWatch:
    """Thread-safe. `limit_s`: for each wait by itself; it is exceeded by up to a quarter. `close` ends its thread."""

    def __init__(self, limit_s: float, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._waits: dict[object, tuple[float, Callable[[], None]]] = {}  # (until, cancel)
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="idle", daemon=True).start()

    @contextlib.contextmanager
    def waiting(self, cancel: Callable[[], None]) -> Iterator[None]:
        """A block that waits for the client; `cancel` ends the call, and the block with it."""
        wait = object()
        with self._lock:
            self._waits[wait] = (self._clock_s() + self._limit_s, cancel)
        try:
            yield
        finally:
            with self._lock:
                del self._waits[wait]

    def received(self, requests: Iterator[T], cancel: Callable[[], None]) -> Iterator[T]:
        """`requests`, each waited for."""
        while True:
            with self.waiting(cancel):
                request = next(requests, None)
            if request is None:
                return
            yield request

    def look(self) -> None:
        """Cancels the calls that have waited too long; under the lock, so that none has gone on meanwhile."""
        with self._lock:
            now_s = self._clock_s()
            for until_s, cancel in self._waits.values():
                if now_s >= until_s:
                    cancel()

    def _run(self) -> None:
        while not self._closed.wait(self._limit_s / 4):
            self.look()

    def close(self) -> None:
        self._closed.set()

"""Calls that wait for their client too long, or take too long altogether, are cancelled: nobody keeps a place so."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CallWatch:
    """Thread-safe. `idle_s`: for each wait for the client by itself; `call_s`: for a whole call. Either is exceeded
    by up to a quarter of the smaller one. `close` ends its thread."""

    def __init__(self, idle_s: float, call_s: float, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._call_s = idle_s, call_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._limits: dict[object, tuple[float, Callable[[], None]]] = {}  # (until, cancel)
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def calling(self, cancel: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """A block that is a whole call; `cancel` ends the call, and the block with it."""
        return self._limited(self._call_s, cancel)

    def waiting(self, cancel: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """A block that waits for the client."""
        return self._limited(self._idle_s, cancel)

    @contextlib.contextmanager
    def _limited(self, limit_s: float, cancel: Callable[[], None]) -> Iterator[None]:
        block = object()
        with self._lock:
            self._limits[block] = (self._clock_s() + limit_s, cancel)
        try:
            yield
        finally:
            with self._lock:
                del self._limits[block]

    def received(self, requests: Iterator[T], cancel: Callable[[], None]) -> Iterator[T]:
        """`requests`, each waited for."""
        while True:
            with self.waiting(cancel):
                request = next(requests, None)
            if request is None:
                return
            yield request

    def look(self) -> None:
        """Cancels the calls over their limits; under the lock, so that none has gone on meanwhile."""
        with self._lock:
            now_s = self._clock_s()
            for until_s, cancel in self._limits.values():
                if now_s >= until_s:
                    cancel()

    def _run(self) -> None:
        while not self._closed.wait(min(self._idle_s, self._call_s) / 4):
            try:
                self.look()
            except Exception as error:  # a defect: the other calls must not stay for ever
                _log.error("a call could not be cancelled", exc_info=error)

    def close(self) -> None:
        self._closed.set()

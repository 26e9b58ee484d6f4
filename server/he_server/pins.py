"""Files in use are not removed: who reads one pins it, and a retired file goes when its last reader leaves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from he_server.catalogue import Key
from he_server.segment_file import StoredSegment


class Pins:
    """Thread-safe. `remove` is called under the lock, so that nobody pins what is being removed; what it
    returns is told to `removed` afterwards, without the lock."""

    def __init__(self, remove: Callable[[Key], StoredSegment | None], removed: Callable[[StoredSegment], None]) -> None:
        self._remove = remove
        self._removed = removed
        self._lock = threading.Lock()
        self._readers: Counter[Key] = Counter()
        self._retired: set[Key] = set()

    def pin(self, keys: Iterable[Key]) -> None:
        with self._lock:
            self._readers.update(keys)

    def unpin(self, keys: Iterable[Key]) -> None:
        with self._lock:
            free = []
            for key in keys:
                self._readers[key] -= 1
                if self._readers[key] == 0:
                    del self._readers[key]
                    if key in self._retired:
                        self._retired.discard(key)
                        free.append(key)
            gone = [self._remove(key) for key in free]
        self._tell(gone)

    def retire(self, keys: Iterable[Key]) -> None:
        """Remove these, now or when their last reader has gone."""
        with self._lock:
            free = []
            for key in keys:
                if key in self._readers:
                    self._retired.add(key)
                else:
                    free.append(key)
            gone = [self._remove(key) for key in free]
        self._tell(gone)

    def _tell(self, gone: Iterable[StoredSegment | None]) -> None:
        for segment in gone:
            if segment is not None:
                self._removed(segment)

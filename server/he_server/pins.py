"""Files in use are not removed: who reads one pins it, and a retired file goes when its last reader leaves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from he_server.catalogue_rows import FileId
from he_server.segment_file import StoredSegment


class Pins:
    """Thread-safe. `remove` is called under the lock, so that nobody pins what is being removed; what it
    returns is told to `removed` afterwards, without the lock."""

    def __init__(
        self, remove: Callable[[FileId], StoredSegment | None], removed: Callable[[StoredSegment], None]
    ) -> None:
        self._remove = remove
        self._removed = removed
        self._lock = threading.Lock()
        self._readers: Counter[FileId] = Counter()
        self._retired: set[FileId] = set()

    def ids(self) -> list[FileId]:
        """Those that somebody reads or writes."""
        with self._lock:
            return list(self._readers)

    def pin(self, ids: Iterable[FileId]) -> None:
        with self._lock:
            self._readers.update(ids)

    def unpin(self, ids: Iterable[FileId]) -> None:
        with self._lock:
            free = []
            for file_id in ids:
                self._readers[file_id] -= 1
                if self._readers[file_id] == 0:
                    del self._readers[file_id]
                    if file_id in self._retired:
                        self._retired.discard(file_id)
                        free.append(file_id)
            gone = [self._remove(file_id) for file_id in free]
        self._tell(gone)

    def retire(self, ids: Iterable[FileId]) -> None:
        """Remove these, now or when their last reader has gone."""
        with self._lock:
            free = []
            for file_id in ids:
                if file_id in self._readers:
                    self._retired.add(file_id)
                else:
                    free.append(file_id)
            gone = [self._remove(file_id) for file_id in free]
        self._tell(gone)

    def _tell(self, gone: Iterable[StoredSegment | None]) -> None:
        for segment in gone:
            if segment is not None:
                self._removed(segment)

"""Files in use are not removed: who reads one pins it, and a retired file goes when its last reader leaves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from he_server.storage.catalogue_rows import FileId
from he_server.storage.segment_file import StoredSegment


class Pins:
    """Thread-safe. `remove` is called without the lock, but nobody pins the file that it removes before it has ended;
    what it returns is told to `removed`."""

    def __init__(
        self, remove: Callable[[FileId], StoredSegment | None], removed: Callable[[StoredSegment], None]
    ) -> None:
        self._remove = remove
        self._removed = removed
        self._changed = threading.Condition()
        self._readers: Counter[FileId] = Counter()
        self._retired: set[FileId] = set()
        self._going: set[FileId] = set()  #: being removed

    def ids(self) -> list[FileId]:
        """Those that somebody reads or writes."""
        with self._changed:
            return list(self._readers)

    def pin(self, ids: Iterable[FileId]) -> None:
        """Waits for the removal of one of these, if it is under way, and of no other."""
        wanted = list(ids)
        with self._changed:
            self._changed.wait_for(lambda: self._going.isdisjoint(wanted))
            self._readers.update(wanted)

    def unpin(self, ids: Iterable[FileId]) -> None:
        free = []
        with self._changed:
            for file_id in ids:
                self._readers[file_id] -= 1
                if self._readers[file_id] == 0:
                    del self._readers[file_id]
                    if file_id in self._retired:
                        self._retired.discard(file_id)
                        free.append(file_id)
            self._going.update(free)
        self._take_away(free)

    def retire(self, ids: Iterable[FileId]) -> None:
        """Remove these, now or when their last reader has gone."""
        free = []
        with self._changed:
            for file_id in ids:
                if file_id in self._readers:
                    self._retired.add(file_id)
                elif file_id not in self._going:
                    self._going.add(file_id)
                    free.append(file_id)
        self._take_away(free)

    def _take_away(self, free: Iterable[FileId]) -> None:
        for file_id in free:
            try:
                gone = self._remove(file_id)
                if gone is not None:
                    self._removed(gone)
            finally:
                with self._changed:
                    self._going.discard(file_id)
                    self._changed.notify_all()

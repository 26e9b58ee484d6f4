"""What was sent and then given up, removed when it is old enough that nobody goes on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from he_engine.errors import NotFound
from he_server.storage.catalogue import Catalogue
from he_server.storage.folder import Folder
from he_server.storage.segments import Segments
from he_server.storage.writes import Writes


class Leftovers:
    """Of one store. `age_s`: how old they are to be."""

    def __init__(
        self,
        folder: Folder,
        catalogue: Catalogue,
        segments: Segments,
        writes: Writes,
        age_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._segments = segments
        self._writes = writes
        self._age_s = age_s
        self._clock_s = clock_s
        self._collected_s = clock_s()
        self._strays_s = float("-inf")
        self._imports: dict[bytes, float] = {}  # when collections without a manifest were first seen

    @property
    def every_s(self) -> float:
        return self._age_s / 24

    def collect_if_due(self) -> None:
        """Every `every_s` seconds. Raises ReadOnlyError, Unavailable."""
        with self._writes.writing():
            if abs(self._clock_s() - self._collected_s) >= self.every_s:  # also where the clock was set back
                self.collect()

    def remove_strays_if_due(self) -> None:
        """The same for what lies on object storage, which is listed for that. Raises Unavailable."""
        now_s = self._clock_s()
        if abs(now_s - self._strays_s) >= self.every_s:
            self._strays_s = now_s
            self._segments.remove_strays(self._age_s)

    def collect(self) -> None:
        """Removes the segments that were last sent `age_s` ago and never committed, files without a row that are as
        old, and collections whose import nobody has gone on with for so long."""
        self._collected_s = self._clock_s()
        before_s = self._collected_s - self._age_s
        with self._writes.changing():
            orphans = self._catalogue.collect(before_s)
        self._segments.discard(orphans)
        self._collect_imports(before_s)
        files_of = (segment.file_id for segment in self._catalogue.segments())
        collections = (record.collection_id for record in self._catalogue.collections())
        self._folder.clean(files_of, collections, before_s, self._segments.pins)

    def _collect_imports(self, before_s: float) -> None:
        importing = [s.record.collection_id for s in self._catalogue.states() if not s.has_manifest]
        self._imports = {key: self._imports.get(key, self._collected_s) for key in importing}
        for collection_id, seen_s in self._imports.items():
            if seen_s < before_s and not self._catalogue.segments(collection_id):
                with contextlib.suppress(NotFound):
                    self._segments.drop(collection_id)

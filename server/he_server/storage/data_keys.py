"""The data keys of a store's collections, and files written anew under the newest.

he_server.storage.rekey says in which order that makes a rotation.
"""

from __future__ import annotations

from collections.abc import Callable

from he_engine.errors import TamperedDataError
from he_server.storage import snapshots
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import SegmentRecord
from he_server.storage.files import NewFile
from he_server.storage.segment_file import StoredSegment, read_part
from he_server.storage.segments import Segments
from he_server.storage.uploads import Uploads
from he_server.storage.writes import Writes

_COPY_BYTES = 1 << 20


class DataKeys:
    """Thread-safe."""

    def __init__(
        self, catalogue: Catalogue, segments: Segments, uploads: Uploads, writes: Writes, clock_s: Callable[[], float]
    ) -> None:
        self._catalogue = catalogue
        self._segments = segments
        self._uploads = uploads
        self._writes = writes
        self._clock_s = clock_s

    def add(self, collection_id: bytes) -> None:
        """A new data key for what is written from now on. Raises NotFound."""
        with self._writes.changing():
            self._catalogue.add_data_key(collection_id, self._clock_s())

    def outdated(self, collection_id: bytes) -> list[SegmentRecord]:
        """The segments whose files are not under the newest data key. Raises NotFound."""
        newest = self._catalogue.state(collection_id).newest_key
        return [s for s in self._catalogue.segments(collection_id) if newest and s.generation != newest.generation]

    def reseal(self, record: SegmentRecord) -> bool:
        """Writes the file of a segment anew under the newest data key, durably; the old one goes when nobody reads
        it. False if it is gone by now. Raises TamperedDataError if it is damaged."""
        state = self._catalogue.state(record.collection_id)
        with snapshots.of_segment(self._catalogue, self._segments, state.record, record.segment_id) as snapshot:
            (old,) = snapshot.segments
            if old.file_id != record.file_id:
                return False
            file, new = self._segments.new_file(old.description, state)
            with file:
                try:
                    _copy(old, file)
                except TamperedDataError:
                    self._segments.damaged(old)
                    raise
                return self._segments.move(record, new, file)

    def drop_old(self, collection_id: bytes) -> None:
        """See Catalogue.drop_old_data_keys; those of segments on their way stay."""
        with self._writes.changing():
            self._catalogue.drop_old_data_keys(collection_id, self._uploads.generations(collection_id))


def _copy(old: StoredSegment, file: NewFile) -> None:
    source, length_bytes = old.source, old.description.file_bytes
    for part in [] if old.data_key else old.description.parts:  # its seal would hide the damage
        for _ in read_part(source, part, 0, part.length_bytes):
            pass
    for start in range(0, length_bytes, _COPY_BYTES):
        file.append(source.read(start, min(_COPY_BYTES, length_bytes - start)))

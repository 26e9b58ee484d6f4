"""What readers hold: segments whose files stay until the snapshot is closed, whatever is committed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from he_engine.errors import NotFound
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.pins import Pins
from he_server.storage.segment_file import StoredSegment
from he_server.storage.segments import Segments

_Chosen = tuple[CollectionRecord, list[StoredSegment], int]  # and the edition


class Snapshot:
    """Some segments, pinned until `close`. A context manager."""

    def __init__(self, record: CollectionRecord, segments: Sequence[StoredSegment], pins: Pins, edition: int) -> None:
        self.record = record
        self.segments = tuple(segments)
        self.edition = edition  #: the same segments are in other files where it is another
        self._pins = pins
        self._ids = [segment.file_id for segment in segments]
        pins.pin(self._ids)

    def close(self) -> None:
        ids, self._ids = self._ids, []
        self._pins.unpin(ids)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def of_version(catalogue: Catalogue, segments: Segments, record: CollectionRecord, version: int) -> Snapshot:
    """All live segments of the current version. Raises NotFound, Conflict if that is not `version`, TamperedDataError
    if the file of one is damaged."""
    collection_id = record.collection_id

    def choose() -> _Chosen:
        edition = segments.edition(collection_id)
        current = catalogue.find(record.name, collection_id, record.tenant)
        current.require_version(version)
        live = [(collection_id, segment_id) for segment_id in catalogue.live(collection_id)]
        segments.prepare(live)
        return current, [segments.sound(key) for key in live], edition

    return _pinned(choose, segments.pins)


def of_segment(catalogue: Catalogue, segments: Segments, record: CollectionRecord, segment_id: bytes) -> Snapshot:
    """One segment, live or not. Raises NotFound, TamperedDataError if its file cannot be read at all."""
    key = (record.collection_id, segment_id)

    def choose() -> _Chosen:
        if catalogue.segment(key) is None:
            raise NotFound(f"segment: {segment_id.hex()[:16]}… is not stored here")
        return record, [segments.readable(key)], 0

    return _pinned(choose, segments.pins)


def _pinned(choose: Callable[[], _Chosen], pins: Pins) -> Snapshot:
    """What `choose` gives, pinned, once it gives the same afterwards: a file is retired only when it is no longer
    given. Nobody waits here for a commit and its syncs."""
    chosen = choose()
    while True:
        record, segments, edition = chosen
        snapshot = Snapshot(record, segments, pins, edition)
        try:
            again = choose()
        except BaseException:
            snapshot.close()
            raise
        if again == chosen:
            return snapshot
        snapshot.close()
        chosen = again

"""What readers hold: segments whose files stay until the snapshot is closed, whatever is committed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

from he_engine.errors import NotFound
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import CollectionRecord, Key
from he_server.storage.pins import Pins
from he_server.storage.places import Place
from he_server.storage.segment_file import StoredSegment
from he_server.storage.segments import Segments

S = TypeVar("S", StoredSegment, Place)
_Chosen = tuple[CollectionRecord, list[S], int]  # and the edition


class Snapshot(Generic[S]):
    """Some segments, pinned until `close`. A context manager."""

    def __init__(self, record: CollectionRecord, segments: Sequence[S], pins: Pins, edition: int) -> None:
        self.record = record
        self.segments: tuple[S, ...] = tuple(segments)
        self.edition = edition  #: the same segments are in other files where it is another
        self._pins = pins
        self._ids = [segment.file_id for segment in segments]
        pins.pin(self._ids)

    def close(self) -> None:
        ids, self._ids = self._ids, []
        self._pins.unpin(ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def of_version(
    catalogue: Catalogue, segments: Segments, record: CollectionRecord, version: int
) -> Snapshot[StoredSegment]:
    """All live segments of the current version. Raises NotFound, Conflict if that is not `version`, TamperedDataError
    if the file of one is damaged."""

    def sound(live: Sequence[Key]) -> list[StoredSegment]:
        segments.prepare(live)
        return [segments.sound(key) for key in live]

    return _live(catalogue, segments, record, version, sound)


def places_of_version(
    catalogue: Catalogue, segments: Segments, record: CollectionRecord, version: int
) -> Snapshot[Place]:
    """The same for others to read; what lies on object storage is not fetched, nor kept there."""
    return _live(catalogue, segments, record, version, lambda live: [segments.place(key) for key in live])


def _live(
    catalogue: Catalogue,
    segments: Segments,
    record: CollectionRecord,
    version: int,
    found: Callable[[Sequence[Key]], list[S]],
) -> Snapshot[S]:
    collection_id = record.collection_id

    def choose() -> _Chosen[S]:
        edition = segments.edition(collection_id)
        current = catalogue.find(record.name, collection_id, record.tenant)
        current.require_version(version)
        live = [(collection_id, segment_id) for segment_id in catalogue.live(collection_id)]
        return current, found(live), edition

    return _pinned(choose, segments.pins)


def of_segment(
    catalogue: Catalogue, segments: Segments, record: CollectionRecord, segment_id: bytes
) -> Snapshot[StoredSegment]:
    """One segment, live or not. Raises NotFound, TamperedDataError if its file cannot be read at all."""
    key = (record.collection_id, segment_id)

    def choose() -> _Chosen[StoredSegment]:
        if catalogue.segment(key) is None:
            raise NotFound(f"segment: {segment_id.hex()[:16]}… is not stored here")
        return record, [segments.readable(key)], 0

    return _pinned(choose, segments.pins)


def _pinned(choose: Callable[[], _Chosen[S]], pins: Pins) -> Snapshot[S]:
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

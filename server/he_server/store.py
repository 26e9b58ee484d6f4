"""The store: immutable segments in files, one compare-and-swap manifest a collection in the catalogue.

A segment is uploaded first and named by a manifest later; only a committed manifest makes it live. The order of
writing makes a crash harmless at any point: file synced, then named, then its name synced, then its row in the
catalogue; and for removal, the row first. A file without a row is therefore garbage, and a start removes it.

Readers hold a Snapshot: the live segments of one version, whose files stay until the snapshot is closed, whatever
is committed meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import Conflict, HesearchError, NotFound, TamperedDataError
from he_server import files
from he_server.catalogue import Catalogue, CollectionRecord, Key, SegmentRecord, Totals
from he_server.files import NewFile
from he_server.folder import Folder
from he_server.pins import Pins
from he_server.segment_file import Description, SegmentWriter, StoredSegment, read_description

_log = logging.getLogger(__name__)


class Snapshot:
    """Some segments, pinned until `close`. A context manager."""

    def __init__(self, record: CollectionRecord, segments: Sequence[StoredSegment], pins: Pins, keys: list[Key]):
        self.record = record
        self.segments = tuple(segments)
        self._pins = pins
        self._keys = keys

    def close(self) -> None:
        keys, self._keys = self._keys, []
        self._pins.unpin(keys)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Upload:
    """One segment on its way in. A context manager; nothing of it remains unless `publish` was called."""

    def __init__(self, store: Store, description: Description, file: NewFile) -> None:
        self.description = description
        self._store = store
        self._file = file
        self._writer = SegmentWriter(description, file)

    def write(self, chunk: Buffer) -> None:
        """See SegmentWriter.write."""
        self._writer.write(chunk)

    def finish(self) -> IndexFile:
        """All bytes came, are those described, and are on the disk. The index may now be looked at."""
        self._writer.finish()
        return self.description.index_file(self._file.path)

    def publish(self) -> None:
        """Stores the segment, durably; call `finish` before. Raises NotFound if the collection is gone."""
        self._store._publish(self.description, self._file)

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


class Store:
    """One data folder. Thread-safe.

    `removed` is told of every segment whose file has gone or was replaced, so that nobody keeps it mapped. Raises
    Unavailable if another server has the folder open, FormatVersionError if a newer version made it.
    """

    def __init__(
        self,
        root: Path,
        *,
        orphan_age_s: float = 24 * 3600.0,
        clock_s: Callable[[], float] = time.time,
        removed: Callable[[StoredSegment], None] = lambda _: None,
    ) -> None:
        self._orphan_age_s = orphan_age_s
        self._clock_s = clock_s
        self._collected_s = clock_s()
        self._removed = removed
        with contextlib.ExitStack() as opened:  # closed again if the rest of the start fails
            self._folder = Folder(root)
            opened.callback(self._folder.close)
            self._catalogue = Catalogue(self._folder.catalogue)
            opened.callback(self._catalogue.close)
            self._folder.sync()
            self._lock = threading.Lock()  # between reading what is live and pinning it, nothing is committed
            self._pins = Pins(self._remove, removed)
            self._segments: dict[Key, StoredSegment] = {}
            self._catalogue.collect(self._collected_s - orphan_age_s)
            keys = self._catalogue.keys()
            self._folder.clean(keys)
            for key in keys:
                self._load(key)
            opened.pop_all()

    def _load(self, key: Key) -> None:
        """A damaged file stops nobody but those who need it; sending the segment again repairs it."""
        try:
            path = self._folder.path(key)
            description = read_description(path)
            if (description.collection_id, description.segment_id) != key:
                raise TamperedDataError("segment file: it is another segment's")
            self._segments[key] = StoredSegment(description, path)
        except HesearchError as error:
            _log.error("segment %s of collection %s: %s", key[1].hex(), key[0].hex(), error)

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int) -> None:
        """See Catalogue.create."""
        self._catalogue.create(record, sealed_manifest, limit)

    def find(self, name: str, collection_id: bytes | None = None) -> CollectionRecord:
        """Raises NotFound, also where the name is now another collection's."""
        record = self._catalogue.find(name)
        if collection_id is not None and record.collection_id != collection_id:
            raise NotFound(f"collection: {name!r} is now another collection; the one meant was dropped")
        return record

    def collections(self) -> list[CollectionRecord]:
        return self._catalogue.collections()

    def totals(self, record: CollectionRecord) -> Totals:
        return self._catalogue.totals(record.collection_id)

    def drop(self, record: CollectionRecord) -> None:
        """Raises NotFound. Files go when nobody reads them any more."""
        with self._lock:
            dropped = self._catalogue.drop(record.collection_id)
        self._pins.retire(dropped)

    # ---- segments --------------------------------------------------------------------------------------
    def has(self, key: Key) -> bool:
        """Whether the segment is stored and its file is sound; if so, it counts as sent just now."""
        return key in self._segments and self._catalogue.touch(*key, self._clock_s())

    def upload(self, description: Description) -> Upload:
        """Begins to store a segment; now and then, those that were given up are removed first."""
        if abs(self._clock_s() - self._collected_s) >= self._orphan_age_s / 24:  # also where the clock was set back
            self._collect()
        file = NewFile(self._folder.incoming)
        try:
            return Upload(self, description, file)
        except BaseException:
            file.__exit__()
            raise

    def _collect(self) -> None:
        """Removes the segments that were last sent `orphan_age_s` ago and never committed."""
        self._collected_s = self._clock_s()
        with self._lock:
            orphans = self._catalogue.collect(self._collected_s - self._orphan_age_s)
        self._pins.retire(orphans)

    def _publish(self, description: Description, file: NewFile) -> None:
        key = (description.collection_id, description.segment_id)
        stored = StoredSegment(description, self._folder.path(key))
        self._folder.make_place(key)
        self._pins.pin([key])  # until its row is written, a file looks like garbage
        try:
            replaces = stored.path.exists()  # a damaged file, or a retired one that is still read
            file.publish(stored.path)
            if replaces:
                self._removed(stored)
            self._folder.sync_place(key)
            self._segments[key] = stored
            self._catalogue.add(
                SegmentRecord(*key, description.blocks, description.stored_bytes, description.index_bytes),
                self._clock_s(),
            )
        except BaseException:
            self._pins.retire([key])
            raise
        finally:
            self._pins.unpin([key])

    def damaged(self, segment: StoredSegment) -> None:
        """Its bytes turned out to be wrong: it serves nobody until it is sent again."""
        description = segment.description
        key = (description.collection_id, description.segment_id)
        with self._lock:  # several threads may notice at the same time
            known = self._segments.get(key) is segment  # and it was not sent again meanwhile
            if known:
                self._segments.pop(key, None)
        if known:
            _log.error("segment %s of collection %s: its bytes are not those stored", key[1].hex(), key[0].hex())

    def _remove(self, key: Key) -> StoredSegment | None:
        """Removes the file of a segment that the catalogue does not have (any more, or again)."""
        stored = None
        with contextlib.suppress(HesearchError):  # then the next start removes it
            if not self._catalogue.contains(key):
                stored = self._segments.pop(key, None)
                files.remove(self._folder.path(key))
        return stored

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, name: str) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """See Catalogue.manifest."""
        return self._catalogue.manifest(name)

    def commit(
        self, record: CollectionRecord, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> int:
        """See Catalogue.commit. The segments that were live and are no more go when nobody reads them."""
        with self._lock:
            version, retired = self._catalogue.commit(record.collection_id, expected_version, sealed_manifest, live)
        self._pins.retire(retired)
        return version

    @staticmethod
    def require_version(record: CollectionRecord, version: int) -> None:
        """Raises Conflict if the manifest is at another version."""
        if record.version != version:
            raise Conflict(f"version: got {version}, but the manifest is at version {record.version}")

    def snapshot(self, record: CollectionRecord, version: int) -> Snapshot:
        """All live segments of the current version. Raises Conflict if that is not `version`,
        TamperedDataError if the file of one is damaged."""
        with self._lock:
            current = self.find(record.name, record.collection_id)
            self.require_version(current, version)
            live = self._catalogue.live(record.collection_id)
            return self._pinned(current, [(record.collection_id, segment_id) for segment_id in live])

    def segment(self, record: CollectionRecord, segment_id: bytes) -> Snapshot:
        """One segment, live or not. Raises NotFound, TamperedDataError if its file is damaged."""
        key = (record.collection_id, segment_id)
        with self._lock:
            if not self._catalogue.contains(key):
                raise NotFound(f"segment: {segment_id.hex()[:16]}… is not stored here")
            return self._pinned(record, [key])

    def _pinned(self, record: CollectionRecord, keys: list[Key]) -> Snapshot:
        segments = []
        for key in keys:
            if (segment := self._segments.get(key)) is None:
                raise TamperedDataError(
                    f"segment: the stored file of {key[1].hex()[:16]}… is damaged; sending it again repairs it"
                )
            segments.append(segment)
        self._pins.pin(keys)
        return Snapshot(record, segments, self._pins, keys)

    def close(self) -> None:
        self._catalogue.close()
        self._folder.close()

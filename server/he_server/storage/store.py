"""The store: immutable segments in files, one compare-and-swap manifest a collection in the catalogue.

A segment is uploaded first and named by a manifest later; only a committed manifest makes it live. The order of
writing makes a crash harmless at any point: file synced, then named, then its name synced, then its row in the
catalogue; and for removal, the row first. A file without a row is therefore garbage, and goes when it is old.

A sync that failed is the end of writing: the store raises ReadOnlyError until it is opened again, and goes on reading.

Readers hold a Snapshot: the live segments of one version, whose files stay until the snapshot is closed, whatever
is committed meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import Conflict, HesearchError, LimitExceeded, NotFound, ReadOnlyError, TamperedDataError
from he_server.storage import files
from he_server.storage.catalogue import Catalogue, CollectionRecord, FileId, Key, SegmentRecord, State, Totals
from he_server.storage.catalogue_rows import LOCAL_TENANT
from he_server.storage.files import NewFile
from he_server.storage.folder import Folder
from he_server.storage.indexes import Forget, Indexes
from he_server.storage.kek import KeyProvider
from he_server.storage.pins import Pins
from he_server.storage.sealed_file import NewSealedFile
from he_server.storage.segment_file import (
    Description,
    SegmentWriter,
    StoredSegment,
    open_source,
    read_description,
    read_part,
)

_log = logging.getLogger(__name__)
_Chosen = tuple[CollectionRecord, list[StoredSegment], int]  # and the edition
_COPY_BYTES = 1 << 20


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


class Upload:
    """One segment on its way in. A context manager; nothing of it remains unless `publish` was called."""

    def __init__(self, store: Store, description: Description, state: State, upload_id: object) -> None:
        self._store = store
        self._id = upload_id
        self._published = False
        self._file, self.segment = store._new_file(description, state)
        try:
            self._writer = SegmentWriter(description, self._file)
        except BaseException:
            self._file.__exit__()
            raise

    def write(self, chunk: Buffer) -> None:
        """See SegmentWriter.write."""
        self._writer.write(chunk)

    def finish(self) -> None:
        """All bytes came, are those described, and are on the disk; `segment` may now be looked at."""
        with self._store.writing():
            self._writer.finish()

    def publish(self) -> None:
        """Stores the segment, durably; call `finish` before. Raises NotFound if the collection is gone."""
        self._store._publish(self.segment, self._file)
        self._published = True

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)
        self._store._uploaded(self._id)
        if not self._published:
            self._store.indexes.forget(self.segment)


class Store:
    """One data folder. Thread-safe.

    kek, previous_kek: see Catalogue. index_memory_bytes: what decrypted indexes may take. `forget` is told of every
    index that nobody may keep mapped. Raises Unavailable if another server has the folder open, FormatVersionError if
    a newer version made it, and as Catalogue.
    """

    def __init__(
        self,
        root: Path,
        *,
        kek: KeyProvider | None = None,
        previous_kek: KeyProvider | None = None,
        orphan_age_s: float = 24 * 3600.0,
        index_memory_bytes: int = 1 << 62,
        clock_s: Callable[[], float] = time.time,
        forget: Forget = lambda *_: None,
    ) -> None:
        self._orphan_age_s = orphan_age_s
        self._clock_s = clock_s
        self._collected_s = clock_s()
        self._failed = False
        self.indexes = Indexes(index_memory_bytes, forget)
        with contextlib.ExitStack() as opened:  # closed again if the rest of the start fails
            self._folder = Folder(root)
            opened.callback(self._folder.close)
            self._folder.require_catalogue()
            self._catalogue = Catalogue(self._folder.catalogue, kek, previous_kek)
            opened.callback(self._catalogue.close)
            self._folder.sync()
            self._writes = threading.Lock()  # one change at a time; may be held while the disk works
            self._lock = threading.Lock()  # of what is in memory; never held while the disk works
            self._pins = Pins(self._remove, self.indexes.forget)
            self._uploads: dict[object, tuple[Description, int]] = {}  # and the generation of the data key
            self._segments: dict[Key, StoredSegment] = {}
            self._edition = itertools.count(1)
            self._editions: dict[bytes, int] = {}  # of a collection's files: another for each that was replaced
            self._imports: dict[bytes, float] = {}  # when collections without a manifest were first seen
            self._damaged: dict[Key, StoredSegment] = {}  # a part of each is wrong; the others may be read
            self._folder.clean_incoming()
            self._collect()
            for record in self._catalogue.segments():
                self._load(record)
            opened.pop_all()

    def _load(self, record: SegmentRecord) -> None:
        """A damaged file stops nobody but those who need it; sending the segment again repairs it."""
        try:
            path = self._folder.path(record.file_id)
            data_key = self._catalogue.state(record.collection_id).key(record.generation)
            segment = StoredSegment(read_description(open_source(path, data_key)), path, record.generation, data_key)
            if segment.file_id != record.file_id:
                raise TamperedDataError("segment file: it is another segment's")
            with self._lock:
                if segment.key not in self._damaged:
                    self._segments.setdefault(segment.key, segment)
        except HesearchError as error:
            _log.error("segment %s of collection %s: %s", record.segment_id.hex(), record.collection_id.hex(), error)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around every write. Raises ReadOnlyError after one in which a sync failed."""
        self._require_writable()
        try:
            yield
        except ReadOnlyError as error:
            self._failed = True
            _log.critical("no more writes until a restart: %s", error)
            raise

    def _require_writable(self) -> None:
        if self._failed:
            raise ReadOnlyError("storage: a sync to disk failed; this server takes no writes until it is restarted")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Around a change of the catalogue: no other is made meanwhile, nor this one after a sync that failed."""
        with self.writing(), self._writes:
            self._require_writable()
            yield

    @property
    def read_only(self) -> bool:
        """Since a sync failed."""
        return self._failed or self._catalogue.failed

    @property
    def sealed(self) -> bool:
        return self._catalogue.sealed

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int) -> None:
        """See Catalogue.create."""
        with self._changing():
            self._catalogue.create(record, sealed_manifest, limit, self._clock_s())
            self._replaced(record.collection_id)  # one with its id may have been dropped, and be searched yet

    def find(self, name: str, collection_id: bytes | None = None, tenant: str = LOCAL_TENANT) -> CollectionRecord:
        """Raises NotFound, also where the name is now another collection's."""
        record = self._catalogue.find(name, tenant)
        if collection_id is not None and record.collection_id != collection_id:
            raise NotFound(f"collection: {name!r} is now another collection; the one meant was dropped")
        return record

    def collections(self) -> list[CollectionRecord]:
        return self._catalogue.collections()

    def is_there(self, record: CollectionRecord) -> bool:
        """Whether its name is that collection's already."""
        with contextlib.suppress(NotFound):
            return bool(self.find(record.name, record.collection_id, record.tenant))
        return False

    def counts(self, tenant: str, owner: str) -> tuple[int, int]:
        """Of collections: those that the owner made, and all of the tenant."""
        owners = [record.owner for record in self._catalogue.collections() if record.tenant == tenant]
        return owners.count(owner), len(owners)

    def totals(self, record: CollectionRecord) -> Totals:
        return self._catalogue.totals(record.collection_id)

    def drop(self, record: CollectionRecord) -> None:
        """Raises NotFound. Its data keys go first; its files when nobody reads them any more."""
        with self._changing():
            dropped = self._catalogue.drop(record.collection_id)
        with self._lock:
            self._editions.pop(record.collection_id, None)
        self._pins.retire(dropped)
        self._folder.forget(record.collection_id)

    # ---- segments --------------------------------------------------------------------------------------
    def has(self, key: Key) -> bool:
        """Whether the segment is stored and its file is sound; if so, it counts as sent just now."""
        if key not in self._segments:
            return False
        with self._changing():
            return self._catalogue.touch(*key, self._clock_s())

    def upload(self, description: Description, most_bytes: int = 1 << 62) -> Upload:
        """Begins to store a segment; now and then, those that were given up are removed first. Raises NotFound, and
        LimitExceeded if all that the collection has and is being sent would take more than `most_bytes`."""
        with self.writing():
            self._collect_if_due()
            with self._lock:  # its data key stays from now on
                state = self._catalogue.state(description.collection_id)
                self._require_room(description, most_bytes)
                generation = state.newest_key.generation if state.newest_key else 0
                upload_id = object()
                self._uploads[upload_id] = description, generation
            try:
                return Upload(self, description, state, upload_id)
            except BaseException:
                self._uploaded(upload_id)
                raise

    def _require_room(self, new: Description, most_bytes: int) -> None:
        coming = (d.stored_bytes for d, _ in self._uploads.values() if d.collection_id == new.collection_id)
        stored_bytes = self._catalogue.kept_bytes(new.collection_id) + sum(coming) + new.stored_bytes
        if stored_bytes > most_bytes:
            raise LimitExceeded(f"collection: bytes: got {stored_bytes}, and this server admits at most {most_bytes}")

    def _uploaded(self, upload_id: object) -> None:
        """Or given up."""
        with self._lock:
            del self._uploads[upload_id]

    def _new_file(self, description: Description, state: State) -> tuple[NewFile, StoredSegment]:
        """A file for a segment, under the newest data key, and how it is to be read under its temporary name."""
        key = (description.collection_id, description.segment_id)
        newest = state.newest_key
        if newest is None:
            file = NewFile(self._folder.incoming)
            return file, StoredSegment(description, file.path, 0, None)
        data_key = newest.key
        file = NewSealedFile(self._folder.incoming, data_key, newest.generation, *key, description.file_bytes)
        return file, StoredSegment(description, file.path, newest.generation, data_key)

    def collect_if_due(self) -> None:
        """Removes what was given up, every `collect_every_s` seconds. Raises ReadOnlyError, Unavailable."""
        with self.writing():
            self._collect_if_due()

    @property
    def collect_every_s(self) -> float:
        return self._orphan_age_s / 24

    def _collect_if_due(self) -> None:
        if abs(self._clock_s() - self._collected_s) >= self.collect_every_s:  # also where the clock was set back
            self._collect()

    def _collect(self) -> None:
        """Removes the segments that were last sent `orphan_age_s` ago and never committed, files without a row that are
        as old, and collections whose import nobody has gone on with for so long."""
        self._collected_s = self._clock_s()
        before_s = self._collected_s - self._orphan_age_s
        with self._changing():
            orphans = self._catalogue.collect(before_s)
        self._pins.retire(orphans)
        self._collect_imports(before_s)
        files_of = (segment.file_id for segment in self._catalogue.segments())
        collections = (record.collection_id for record in self._catalogue.collections())
        self._folder.clean(files_of, collections, before_s, self._pins)

    def _collect_imports(self, before_s: float) -> None:
        importing = {s.record.collection_id: s.record for s in self._catalogue.states() if not s.has_manifest}
        self._imports = {key: self._imports.get(key, self._collected_s) for key in importing}
        for collection_id, seen_s in self._imports.items():
            if seen_s < before_s and not self._catalogue.segments(collection_id):
                with contextlib.suppress(NotFound):
                    self.drop(importing[collection_id])

    def _publish(self, segment: StoredSegment, file: NewFile) -> None:
        file_id, key = segment.file_id, segment.key
        description = segment.description
        stored = StoredSegment(description, self._folder.path(file_id), segment.generation, segment.data_key)
        record = SegmentRecord(
            *key, description.blocks, description.stored_bytes, description.index_bytes, segment.generation
        )
        self._pins.pin([file_id])  # until its row is written, a file looks like garbage
        try:
            with self.writing():
                self._folder.make_place(file_id)
                replaces = stored.path.exists()  # a damaged file, or a retired one that is still read
                file.publish(stored.path)
                if replaces and stored.data_key is None:
                    self.indexes.forget(stored)
                self._folder.sync_place(file_id)
                with self._changing():
                    replaced = self._catalogue.add(record, self._clock_s())
                    with self._lock:
                        self._segments[key] = stored
                        self._damaged.pop(key, None)
                    if replaced:
                        self._replaced(key[0])
            if replaced:
                self._pins.retire([replaced])
        except BaseException:
            self._pins.retire([file_id])
            raise
        finally:
            self._pins.unpin([file_id])

    def _replaced(self, collection_id: bytes) -> None:
        """Its segments are in other files now."""
        with self._lock:
            self._editions[collection_id] = next(self._edition)

    @contextlib.contextmanager
    def reading(self, segment: StoredSegment) -> Iterator[IndexFile]:
        """Its index, for an engine to read. Raises TamperedDataError, and then it serves nobody any more."""
        try:
            with files.storage_errors("reading an index"), self.indexes.open(segment) as index:
                yield index
        except TamperedDataError:
            self.damaged(segment)
            raise

    def damaged(self, segment: StoredSegment) -> None:
        """Some of its bytes turned out to be wrong: it is not searched until it is sent again. Its other parts can be
        read, so that what is sound of it can be saved."""
        with self._lock:  # several threads may notice at the same time
            known = self._segments.get(segment.key) is segment  # and it was not sent again meanwhile
            if known:
                self._damaged[segment.key] = self._segments.pop(segment.key)
        if known:
            collection_id, segment_id = segment.key
            _log.error(
                "segment %s of collection %s: its bytes are not those stored", segment_id.hex(), collection_id.hex()
            )

    def _remove(self, file_id: FileId) -> StoredSegment | None:
        """Removes the file of a segment that the catalogue does not have (any more, or again); the segment, if what
        is opened of it may go, too."""
        if self._catalogue.contains(file_id):
            return None
        gone = None
        with self._lock:
            for held in (self._segments, self._damaged):
                known = held.get(file_id[:2])
                if known is not None and known.file_id == file_id:
                    gone = held.pop(file_id[:2])
                elif known is not None and not file_id[2]:  # it has been sealed; what is sealed stays opened
                    gone = StoredSegment(known.description, self._folder.path(file_id))
        files.remove(self._folder.path(file_id))
        return gone

    # ---- data keys -------------------------------------------------------------------------------------
    def states(self) -> list[State]:
        """Of all collections, as they are now."""
        return self._catalogue.states()

    def add_data_key(self, collection_id: bytes) -> None:
        """A new data key for what is written from now on. Raises NotFound."""
        with self._changing():
            self._catalogue.add_data_key(collection_id, self._clock_s())

    def outdated(self, collection_id: bytes) -> list[SegmentRecord]:
        """The segments whose files are not under the newest data key. Raises NotFound."""
        newest = self._catalogue.state(collection_id).newest_key
        return [s for s in self._catalogue.segments(collection_id) if newest and s.generation != newest.generation]

    def reseal(self, record: SegmentRecord) -> bool:
        """Writes the file of a segment anew under the newest data key, durably; the old one goes when nobody reads
        it. False if it is gone by now. Raises TamperedDataError if it is damaged."""
        state = self._catalogue.state(record.collection_id)
        with self.segment(state.record, record.segment_id) as snapshot:
            (old,) = snapshot.segments
            if old.file_id != record.file_id:
                return False
            file, new = self._new_file(old.description, state)
            moved = StoredSegment(old.description, self._folder.path(new.file_id), new.generation, new.data_key)
            with file:
                try:
                    self._copy(old, file)
                except TamperedDataError:
                    self.damaged(old)
                    raise
                self._pins.pin([moved.file_id])
                try:
                    done = self._replace(record, moved, file)
                finally:
                    self._pins.unpin([moved.file_id])
        return done

    @staticmethod
    def _copy(old: StoredSegment, file: NewFile) -> None:
        source, length_bytes = old.source, old.description.file_bytes
        for part in [] if old.data_key else old.description.parts:  # its seal would hide the damage
            for _ in read_part(source, part, 0, part.length_bytes):
                pass
        for start in range(0, length_bytes, _COPY_BYTES):
            file.append(source.read(start, min(_COPY_BYTES, length_bytes - start)))

    def _replace(self, record: SegmentRecord, moved: StoredSegment, file: NewFile) -> bool:
        with self.writing():
            file.sync()
            file.publish(moved.path)
            self._folder.sync_place(moved.file_id)
            with self._changing():
                done = self._catalogue.move(record, moved.generation)
                if done:
                    with self._lock:
                        self._segments[moved.key] = moved
                    self._replaced(record.collection_id)
        self._pins.retire([record.file_id if done else moved.file_id])
        return done

    def drop_old_data_keys(self, collection_id: bytes) -> None:
        """See Catalogue.drop_old_data_keys; those of segments on their way stay."""
        with self._changing():
            with self._lock:
                in_use = [g for description, g in self._uploads.values() if description.collection_id == collection_id]
            self._catalogue.drop_old_data_keys(collection_id, in_use)

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, record: CollectionRecord) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """See Catalogue.manifest."""
        return self._catalogue.manifest(record.collection_id)

    def commit(
        self, record: CollectionRecord, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> int:
        """See Catalogue.commit. The segments that were live and are no more go when nobody reads them."""
        with self._changing():
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

        def choose() -> _Chosen:
            edition = self._editions.get(record.collection_id, 0)
            current = self.find(record.name, record.collection_id, record.tenant)
            self.require_version(current, version)
            live = self._catalogue.live(record.collection_id)
            return current, [self._sound((record.collection_id, segment_id)) for segment_id in live], edition

        return self._pinned(choose)

    def segment(self, record: CollectionRecord, segment_id: bytes) -> Snapshot:
        """One segment, live or not. Raises NotFound, TamperedDataError if its file cannot be read at all."""
        key = (record.collection_id, segment_id)

        def choose() -> _Chosen:
            if self._catalogue.segment(key) is None:
                raise NotFound(f"segment: {segment_id.hex()[:16]}… is not stored here")
            return record, [self._damaged.get(key) or self._sound(key)], 0

        return self._pinned(choose)

    def _sound(self, key: Key) -> StoredSegment:
        if key not in self._segments and key not in self._damaged and (record := self._catalogue.segment(key)):
            self._load(record)  # once more: what stopped it may have passed
        if (segment := self._segments.get(key)) is None:
            raise TamperedDataError(
                f"segment: the stored file of {key[1].hex()[:16]}… is damaged; sending it again repairs it"
            )
        return segment

    def _pinned(self, choose: Callable[[], _Chosen]) -> Snapshot:
        """What `choose` gives, pinned, once it gives the same afterwards: a file is retired only when it is no longer
        given. Nobody waits here for a commit and its syncs."""
        chosen = choose()
        while True:
            record, segments, edition = chosen
            snapshot = Snapshot(record, segments, self._pins, edition)
            try:
                again = choose()
            except BaseException:
                snapshot.close()
                raise
            if again == chosen:
                return snapshot
            snapshot.close()
            chosen = again

    def close(self) -> None:
        self.indexes.close()
        self._catalogue.close()
        self._folder.close()

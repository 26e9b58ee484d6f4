"""The stored segments: the file of each, its row in the catalogue, and what is known in memory of those two.

The order of writing makes a crash harmless at any point: file synced, then named, then its name synced, then its row in
the catalogue; and for removal, the row first. A file without a row is therefore garbage, and goes when it is old.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from he_engine.engine import IndexFile
from he_engine.errors import Conflict, HesearchError, TamperedDataError, Unavailable
from he_engine.keys import RootKey
from he_server.storage import files
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import FileId, Key, SegmentRecord, State
from he_server.storage.files import NewFile
from he_server.storage.folder import Folder
from he_server.storage.indexes import Indexes
from he_server.storage.pins import Pins
from he_server.storage.places import Place
from he_server.storage.sealed_file import NewSealedFile
from he_server.storage.segment_file import Description, Source, StoredSegment, open_source, read_description
from he_server.storage.writes import Writes

if TYPE_CHECKING:
    from he_server.storage.objects import Objects

_log = logging.getLogger(__name__)


class Segments:
    """Thread-safe. `pins`: the files that somebody reads or writes."""

    def __init__(
        self, folder: Folder, catalogue: Catalogue, writes: Writes, indexes: Indexes, clock_s: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._writes = writes
        self._indexes = indexes
        self._clock_s = clock_s
        self.pins = Pins(self._remove, indexes.forget)
        self._lock = threading.Lock()  # of what is in memory; never held while the disk works
        self._sound: dict[Key, StoredSegment] = {}
        self._damaged: dict[Key, StoredSegment] = {}  # a part of each is wrong; the others may be read
        self._places: dict[Key, Place] = {}  # each made once, as there may be thousands in a call
        self._edition = itertools.count(1)
        self._editions: dict[bytes, int] = {}  # of a collection's files: another for each that was replaced
        self._first_edition = 0  # of others; another once one was dropped, which may come again
        catalogue.retired = self._retired

    # ---- reading ---------------------------------------------------------------------------------------
    def load(self) -> None:
        """Reads the header of every one. A damaged file stops nobody but those who need it; sending the segment again
        repairs it."""
        for record in self._catalogue.segments():
            self._load(record)

    def _load(self, record: SegmentRecord) -> None:
        try:
            path = self._folder.path(record.file_id)
            data_key = self._catalogue.state(record.collection_id).key(record.generation)
            segment = self._described(record, open_source(path, data_key), data_key)
            with self._lock:
                if segment.key not in self._damaged:
                    self._sound.setdefault(segment.key, segment)
        except HesearchError as error:
            _log.error("segment %s of collection %s: %s", record.segment_id.hex(), record.collection_id.hex(), error)

    @property
    def cached_bytes(self) -> int:
        """Of files here that are copies of what lies elsewhere."""
        return 0

    def prepare(self, keys: Sequence[Key]) -> None:
        """All of these will be asked for: what has to be fetched, is fetched together. Raises as `sound`."""

    def _described(self, record: SegmentRecord, source: Source, data_key: RootKey | None) -> StoredSegment:
        """As the file in `source` says, which lies or will lie at its place. Raises TamperedDataError where it is
        another segment's, or its header is damaged."""
        path = self._folder.path(record.file_id)
        segment = StoredSegment(read_description(source), path, record.generation, data_key)
        if segment.file_id != record.file_id:
            raise TamperedDataError("segment file: it is another segment's")
        return segment

    def place(self, key: Key) -> Place:
        """Where one that the catalogue has can be read by others. Raises as `sound`."""
        segment = self.sound(key)
        return self._place(self._catalogue.segment(key), str(segment.path))

    def _place(self, record: SegmentRecord | None, path: str) -> Place:
        if record is None:
            raise Conflict("segment: its version is no more; read the manifest again")
        place = self._places.get(record.key)
        if place is None or place.record is not record or place.path != path:
            place = self._places[record.key] = Place.of(record, self._catalogue.state(record.collection_id), path)
            if self._catalogue.segment(record.key) is not record:  # it went meanwhile
                self._places.pop(record.key, None)
        return place

    def place_damaged(self, place: Place) -> None:
        """Who read it there found it damaged or missing. If it is, seen from here, it is not searched until it is sent
        again; if not, raises Unavailable."""
        segment = self._sound.get(place.key)
        if segment is not None and segment.file_id == place.file_id:
            self._require_damaged(place, None)
            self.damaged(segment)

    @staticmethod
    def _require_damaged(place: Place, objects: Objects | None) -> None:
        """One node that cannot read must not take a segment from all others."""
        with contextlib.suppress(TamperedDataError):
            place.verified(objects)
            raise Unavailable("cluster: a node found a segment damaged that is sound here")

    def sound(self, key: Key) -> StoredSegment:
        """One that the catalogue has. Raises TamperedDataError where its file is damaged."""
        if key not in self._sound and key not in self._damaged and (record := self._catalogue.segment(key)):
            self._load(record)  # once more: what stopped it may have passed
        if (segment := self._sound.get(key)) is None:
            raise TamperedDataError(
                f"segment: the stored file of {key[1].hex()[:16]}… is damaged; sending it again repairs it"
            )
        return segment

    def readable(self, key: Key) -> StoredSegment:
        """The same, also where a part of it is damaged. Raises TamperedDataError if its file cannot be read at all."""
        return self._damaged.get(key) or self.sound(key)

    def has(self, key: Key) -> bool:
        """Whether the segment is stored and its file is sound; if so, it counts as sent just now."""
        if key not in self._sound:
            return False
        with self._writes.changing():
            return self._catalogue.touch(*key, self._clock_s())

    @contextlib.contextmanager
    def reading(self, segment: StoredSegment) -> Iterator[IndexFile]:
        """Its index, for an engine to read. Raises TamperedDataError, and then it serves nobody any more."""
        try:
            with files.storage_errors("reading an index"), self._indexes.open(segment) as index:
                yield index
        except TamperedDataError:
            self.damaged(segment)
            raise

    def damaged(self, segment: StoredSegment) -> None:
        """Some of its bytes turned out to be wrong: it is not searched until it is sent again. Its other parts can be
        read, so that what is sound of it can be saved."""
        with self._lock:  # several threads may notice at the same time
            known = self._sound.get(segment.key) is segment  # and it was not sent again meanwhile
            if known:
                self._damaged[segment.key] = self._sound.pop(segment.key)
        if known:
            collection_id, segment_id = segment.key
            _log.error(
                "segment %s of collection %s: its bytes are not those stored", segment_id.hex(), collection_id.hex()
            )

    def edition(self, collection_id: bytes) -> int:
        """Another one once any of its segments is in another file."""
        return self._editions.get(collection_id, self._first_edition)

    def replaced(self, collection_id: bytes) -> None:
        """Its segments are in other files now."""
        with self._lock:
            self._editions[collection_id] = next(self._edition)

    # ---- writing ---------------------------------------------------------------------------------------
    def new_file(self, description: Description, state: State) -> tuple[NewFile, StoredSegment]:
        """A file for a segment, under the newest data key, and how it is to be read under its temporary name."""
        key = (description.collection_id, description.segment_id)
        newest = state.newest_key
        if newest is None:
            file = NewFile(self._folder.incoming)
            return file, StoredSegment(description, file.path, 0, None)
        data_key = newest.key
        file = NewSealedFile(self._folder.incoming, data_key, newest.generation, *key, description.file_bytes)
        return file, StoredSegment(description, file.path, newest.generation, data_key)

    def placed(self, segment: StoredSegment) -> StoredSegment:
        """How that file is to be read under the name that it gets."""
        path = self._folder.path(segment.file_id)
        return StoredSegment(segment.description, path, segment.generation, segment.data_key)

    def _keep_durably(self, record: SegmentRecord, _: NewFile) -> tuple[SegmentRecord, float]:
        """Brings a finished file of the data folder to where it outlasts this server: how its row is to be written, and
        until when (Unix time). Here it has only to be named."""
        return record, float("inf")

    def _require_in_time(self, until_s: float) -> None:
        if self._clock_s() > until_s:
            raise Unavailable("storage: a segment took too long to be stored; send it again")

    def publish(self, segment: StoredSegment, file: NewFile) -> None:
        """Stores it, durably, and in place of the file that it had. Raises NotFound if the collection is gone."""
        stored, file_id, description = self.placed(segment), segment.file_id, segment.description
        record = SegmentRecord(
            *segment.key, description.blocks, description.stored_bytes, description.index_bytes, segment.generation
        )
        self.pins.pin([file_id])  # until its row is written, a file looks like garbage
        try:
            with self._writes.writing():
                record, until_s = self._keep_durably(record, file)
                self._folder.make_place(file_id)
                replaces = stored.path.exists()  # a damaged file, or a retired one that is still read
                file.publish(stored.path)
                if replaces and stored.data_key is None:
                    self._indexes.forget(stored)
                self._folder.sync_place(file_id)
                with self._writes.changing():
                    self._require_in_time(until_s)
                    replaced = self._catalogue.add(record, self._clock_s())
                    with self._lock:
                        self._sound[stored.key] = stored
                        self._damaged.pop(stored.key, None)
                    if replaced:
                        self.replaced(record.collection_id)
            if replaced:
                self.discard([replaced])
        except BaseException:
            self.pins.retire([file_id])
            raise
        finally:
            self.pins.unpin([file_id])

    def move(self, record: SegmentRecord, segment: StoredSegment, file: NewFile) -> bool:
        """Puts a file of another generation, durably, in the place of one with the same content. False: it is gone by
        now."""
        moved = self.placed(segment)
        self.pins.pin([moved.file_id])
        try:
            with self._writes.writing():
                file.sync()
                row, until_s = self._keep_durably(replace(record, generation=moved.generation), file)
                file.publish(moved.path)
                self._folder.sync_place(moved.file_id)
                with self._writes.changing():
                    self._require_in_time(until_s)
                    done = self._catalogue.move(record, row)
                    if done:
                        with self._lock:
                            self._sound[moved.key] = moved
                        self.replaced(record.collection_id)
            self.discard([record if done else row])
        finally:
            self.pins.unpin([moved.file_id])
        return done

    # ---- removing --------------------------------------------------------------------------------------
    def drop(self, collection_id: bytes) -> None:
        """All of a collection. Raises NotFound. Its data keys go first; its files when nobody reads them any more."""
        with self._writes.changing():
            dropped = self._catalogue.drop(collection_id)
        with self._lock:
            self._editions.pop(collection_id, None)
            self._first_edition = next(self._edition)
        self.discard(dropped)
        self._folder.forget(collection_id)

    def discard(self, records: Sequence[SegmentRecord]) -> None:
        """Removes what these, which the catalogue no longer has, leave; files when nobody reads them any more."""
        self._retire(records)

    def _retire(self, records: Sequence[SegmentRecord]) -> None:
        for record in records:
            self._places.pop(record.key, None)
        self.pins.retire([record.file_id for record in records])

    def remove_strays(self, age_s: float) -> None:
        """What lies elsewhere than in the data folder, has no row, and was written so long ago. Raises Unavailable."""

    def _retired(self, records: Sequence[SegmentRecord]) -> None:
        """See Catalogue.retired."""
        for collection_id in {record.collection_id for record in records}:
            self.replaced(collection_id)
        self._retire(records)  # what a server does not know any more is another's to discard, or was restored away

    def _remove(self, file_id: FileId) -> StoredSegment | None:
        """Removes the file of a segment that the catalogue does not have (any more, or again); the segment, if what
        is opened of it may go, too."""
        try:
            self._catalogue.look()  # a commit without an answer may have been made
        except HesearchError:
            return None  # without a row, it goes when it is old
        if self._catalogue.contains(file_id):
            return None
        gone = None
        with self._lock:
            for held in (self._sound, self._damaged):
                known = held.get(file_id[:2])
                if known is not None and known.file_id == file_id:
                    gone = held.pop(file_id[:2])
                elif known is not None and not file_id[2]:  # it has been sealed; what is sealed stays opened
                    gone = StoredSegment(known.description, self._folder.path(file_id))
        files.remove(self._folder.path(file_id))
        return gone

    def close(self) -> None:
        """Nothing is fetched any more."""

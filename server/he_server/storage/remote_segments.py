"""Segments on object storage, read through the data folder: what is there was read once, checked, and stays until room
is needed.

Whoever searches reads files of the data folder alone, so an object may go as soon as no row names it, whoever reads the
segment: each server has its own copy, pinned while it is read. An object that went before this server had it belongs to
a version that is no more, and that is what the caller is told.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from he_engine.errors import Conflict, HesearchError, TamperedDataError
from he_server.storage import files
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import COPY_BYTES, FileId, Key, SegmentRecord
from he_server.storage.files import NewFile
from he_server.storage.folder import Folder
from he_server.storage.indexes import Indexes
from he_server.storage.objects import Objects, name_of
from he_server.storage.places import Place
from he_server.storage.segment_file import Source, StoredSegment, open_source, verify
from he_server.storage.segments import Segments
from he_server.storage.tally import Tally
from he_server.storage.writes import Writes

_log = logging.getLogger(__name__)
_AT_ONCE = 4  #: segments that are fetched at the same time
_LOCKS = 64


class RemoteSegments(Segments):
    """See Segments. `cache_bytes`: of files that nobody reads, the data folder keeps no more than that in all.

    `age_s`: how old objects without a row are when they are removed; a row comes within half of that, or not at all.
    """

    def __init__(
        self,
        folder: Folder,
        catalogue: Catalogue,
        writes: Writes,
        indexes: Indexes,
        clock_s: Callable[[], float],
        objects: Objects,
        cache_bytes: int,
        age_s: float,
        tally: Tally,
    ) -> None:
        super().__init__(folder, catalogue, writes, indexes, clock_s)
        self._objects = objects
        self._cache_bytes = cache_bytes
        self._age_s = age_s
        self._tally = tally
        self._cached: dict[FileId, int] = {}  # bytes of files, the latest used last
        self._evicted: set[FileId] = set()  # to be removed here, though the catalogue has them
        self._lost: set[Key] = set()  # those whose objects are missing or no segments
        self._fetching = [threading.Lock() for _ in range(_LOCKS)]
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
        self._removals = ThreadPoolExecutor(1, thread_name_prefix="remove")  # no commit waits for them

    # ---- reading ---------------------------------------------------------------------------------------
    def load(self) -> None:
        """Of what is in the data folder already. All else is fetched when it is asked for."""
        for record in self._catalogue.segments():
            path = self._folder.path(record.file_id)
            if path.exists():
                self._cached[record.file_id] = path.stat().st_size
                self._load(record)
        self._make_room(0)

    def place(self, key: Key) -> Place:
        """As `Segments.place`; nothing is fetched."""
        if key in self._lost:
            raise TamperedDataError(
                f"segment: the object of {key[1].hex()[:16]}… is damaged; sending it again repairs it"
            )
        return self._place(self._catalogue.segment(key), "")

    def place_damaged(self, place: Place) -> None:
        """As `Segments.place_damaged`. Raises Conflict where it has only been retired meanwhile."""
        self._catalogue.look()
        if self._catalogue.segment(place.key) != place.record:
            raise Conflict("segment: its version is no more; read the manifest again")
        self._require_damaged(place, self._objects)
        self._lost.add(place.key)

    def prepare(self, keys: Sequence[Key]) -> None:
        missing = [key for key in keys if key not in self._sound]
        if len(missing) > 1:
            for _ in self._pool.map(self.sound, missing):
                pass

    def sound(self, key: Key) -> StoredSegment:
        while True:
            with self._lock:
                if (segment := self._sound.get(key)) is not None:
                    if segment.file_id in self._cached:
                        self._cached[segment.file_id] = self._cached.pop(segment.file_id)
                    return segment
            if key in self._damaged:
                return super().sound(key)
            if (record := self._catalogue.segment(key)) is None:
                raise Conflict("segment: its version is no more; read the manifest again")
            try:
                self._fetch(record)
            except TamperedDataError:
                self._catalogue.look()
                if self._catalogue.segment(key) == record:
                    self._lost.add(key)
                    raise

    def readable(self, key: Key) -> StoredSegment:
        if key not in self._damaged:
            try:
                return self.sound(key)
            except TamperedDataError:
                if key not in self._damaged:
                    raise
        return super().readable(key)

    def _fetch(self, record: SegmentRecord) -> None:
        """Into the data folder, checked. Raises Unavailable, LimitExceeded; TamperedDataError where there is no such
        object, or its header is wrong."""
        key, file_id = record.file_id[:2], record.file_id
        with self._fetching[key[1][0] % _LOCKS]:
            self.pins.pin([file_id])  # waits until an earlier copy that makes room has gone
            try:
                if key not in self._sound and key not in self._damaged:
                    self._fetch_alone(record)
            except HesearchError:
                self._tally.add("segment_failed_fetches")
                raise
            finally:
                self.pins.unpin([file_id])
        if self._catalogue.segment(key) != record:  # retired meanwhile, and nobody says so again
            self._evict([file_id])

    def _fetch_alone(self, record: SegmentRecord) -> None:
        key = record.file_id[:2]
        data_key = self._catalogue.state(record.collection_id).key(record.generation)
        path, length_bytes = self._folder.path(record.file_id), self._objects.size_bytes(record)
        self._make_room(length_bytes)
        self._folder.make_place(record.file_id)
        with NewFile(self._folder.incoming) as file:
            for chunk in self._objects.read(record, length_bytes):
                file.append(chunk)
            source = open_source(file.path, data_key)
            segment = self._described(record, source, data_key)
            whole = self._is_whole(key, source)
            file.sync()  # after a loss of power only its first page would be looked at
            replaces = path.exists()
            file.publish(path)
        if replaces:
            self._indexes.forget(segment)
        with self._lock:
            self._cached[record.file_id] = length_bytes
            (self._sound if whole else self._damaged)[key] = segment
        self._tally.add("segment_fetches" if whole else "segment_failed_fetches")
        self._tally.add("segment_fetched_bytes", length_bytes)

    @staticmethod
    def _is_whole(key: Key, source: Source) -> bool:
        try:
            verify(source)
        except TamperedDataError as error:
            _log.error("segment %s of collection %s: %s", key[1].hex(), key[0].hex(), error)
            return False
        return True

    def has(self, key: Key) -> bool:
        if key in self._damaged or key in self._lost or self._catalogue.segment(key) is None:
            return False
        with self._writes.changing():
            return self._catalogue.touch(*key, self._clock_s())

    def damaged(self, segment: StoredSegment) -> None:
        """Its copy here is: the next reader fetches it again, and where that is damaged, too, it stays so."""
        with self._lock:
            known = self._sound.get(segment.key) is segment
            if known:
                del self._sound[segment.key]
        if known:
            collection_id, segment_id = segment.key
            _log.error("segment %s of collection %s: damaged here", segment_id.hex(), collection_id.hex())

    # ---- writing ---------------------------------------------------------------------------------------
    def _keep_durably(self, record: SegmentRecord, file: NewFile) -> tuple[SegmentRecord, float]:
        kept = replace(record, copy=secrets.token_bytes(COPY_BYTES))
        until_s = self._clock_s() + self._age_s / 2
        self._objects.put(kept, file.path)
        length_bytes = file.path.stat().st_size
        self._make_room(length_bytes)
        with self._lock:
            self._lost.discard(kept.file_id[:2])
            self._cached[kept.file_id] = length_bytes
        return kept, until_s

    def discard(self, records: Sequence[SegmentRecord]) -> None:
        super().discard(records)
        if names := [name_of(record) for record in records]:
            self._removals.submit(self._remove_objects, names)

    def _remove_objects(self, names: Sequence[str]) -> None:
        try:
            self._objects.remove(names)
        except HesearchError as error:
            _log.warning("objects that are no longer needed stay until they are old: %s", error)

    def remove_strays(self, age_s: float) -> None:
        """Objects that no row names and that were written so long ago, by the storage's clock: others may have put
        theirs just now, and servers' clocks may be wrong. Raises Unavailable."""
        before_s = self._objects.now_s() - age_s
        found = [one.name for one in self._objects.list() if one.modified_s < before_s]
        self._catalogue.look()  # after that: what was listed may have got its row meanwhile
        named = {name_of(record) for record in self._catalogue.segments()}
        self._objects.remove(name for name in found if name not in named)

    # ---- room ------------------------------------------------------------------------------------------
    @property
    def cached_bytes(self) -> int:
        with self._lock:
            return sum(self._cached.values())

    def _make_room(self, length_bytes: int) -> None:
        """For a file of that length: those that were unused the longest go."""
        used, chosen = set(self.pins.ids()), []
        with self._lock:
            excess = sum(self._cached.values()) + length_bytes - self._cache_bytes
            for file_id, size in self._cached.items():
                if excess <= 0:
                    break
                if file_id not in used:
                    chosen.append(file_id)
                    excess -= size
        self._tally.add("segment_evictions", len(chosen))
        self._evict(chosen)

    def _evict(self, ids: Sequence[FileId]) -> None:
        """Their copies here go when nobody reads them."""
        with self._lock:
            self._evicted.update(ids)
        self.pins.retire(ids)

    def _retired(self, records: Sequence[SegmentRecord]) -> None:
        with self._lock:
            for record in records:  # sent again elsewhere, perhaps
                self._damaged.pop(record.file_id[:2], None)
                self._lost.discard(record.file_id[:2])
            self._evicted.update(record.file_id for record in records)
        super()._retired(records)

    def _remove(self, file_id: FileId) -> StoredSegment | None:
        with self._lock:
            evicted = file_id in self._evicted
            self._evicted.discard(file_id)
            known = self._sound.get(file_id[:2])
            if evicted and known is not None and known.file_id == file_id:
                del self._sound[file_id[:2]]
        if evicted:
            files.remove(self._folder.path(file_id))
        else:
            known = super()._remove(file_id)
        with self._lock:
            if not self._folder.path(file_id).exists():
                self._cached.pop(file_id, None)
        return known

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._removals.shutdown()
        self._objects.close()

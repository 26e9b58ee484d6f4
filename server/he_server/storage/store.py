"""The store: immutable segments in files, one compare-and-swap manifest a collection in the catalogue.

A segment is uploaded first and named by a manifest later; only a committed manifest makes it live
(he_server.storage.uploads). Readers hold a Snapshot: the live segments of one version (he_server.storage.snapshots).
A sync that failed is the end of writing (he_server.storage.writes).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from he_engine.engine import IndexFile
from he_engine.errors import NotFound
from he_server.storage import snapshots
from he_server.storage.catalogue_rows import LOCAL_TENANT, CollectionRecord, Key, State, Totals
from he_server.storage.data_keys import DataKeys
from he_server.storage.folder import Folder
from he_server.storage.indexes import Forget, Indexes
from he_server.storage.kek import KeyProvider
from he_server.storage.leftovers import Leftovers
from he_server.storage.opening import open_catalogue, open_objects, open_segments
from he_server.storage.places import Place
from he_server.storage.segment_file import Description, StoredSegment
from he_server.storage.snapshots import Snapshot
from he_server.storage.tally import Tally
from he_server.storage.uploads import Upload, Uploads
from he_server.storage.writes import Writes


class Store:
    """One data folder. Thread-safe.

    catalogue: URL of the PostgreSQL database that has the rows; empty: a file in the folder. kek, previous_kek: see
    Catalogue. index_memory_bytes: what decrypted indexes may take. `forget` is told of every index that nobody may keep
    mapped. segments: URL of the object storage that has the files; empty: they are in the folder, else `cache_bytes` of
    them. Raises Unavailable if another server has the folder open, FormatVersionError if a newer version made it,
    MissingExtra, InvalidInput where folder, catalogue and segments do not belong together, and as Catalogue.
    """

    def __init__(
        self,
        root: Path,
        *,
        catalogue: str = "",
        segments: str = "",
        cache_bytes: int = 1 << 62,
        kek: KeyProvider | None = None,
        previous_kek: KeyProvider | None = None,
        orphan_age_s: float = 24 * 3600.0,
        index_memory_bytes: int = 1 << 62,
        clock_s: Callable[[], float] = time.time,
        forget: Forget = lambda *_: None,
    ) -> None:
        self._clock_s = clock_s
        self._writes = writes = Writes()
        self.indexes = Indexes(index_memory_bytes, forget)
        self.tally = tally = Tally()  #: of what is done with storage elsewhere
        with contextlib.ExitStack() as opened:  # closed again if the rest of the start fails
            self._folder = folder = Folder(root)
            opened.callback(folder.close)
            objects = open_objects(segments, tally)
            self._catalogue = rows = open_catalogue(folder, catalogue, objects, kek, previous_kek, tally)
            opened.callback(rows.close)
            folder.sync()
            self._segments = open_segments(
                objects, cache_bytes, orphan_age_s, folder, rows, writes, self.indexes, clock_s, tally
            )
            opened.callback(self._segments.close)
            self._uploads = Uploads(rows, self._segments, writes, self.indexes)
            self.leftovers = Leftovers(folder, rows, self._segments, writes, orphan_age_s, clock_s)
            self.data_keys = DataKeys(rows, self._segments, self._uploads, writes, clock_s)
            folder.clean_incoming()
            self.leftovers.collect()
            self._segments.load()
            opened.pop_all()

    @property
    def read_only(self) -> bool:
        """Since a sync failed."""
        return self._writes.failed or self._catalogue.failed

    @property
    def cached_bytes(self) -> int:
        """Of copies of segments that are on object storage."""
        return self._segments.cached_bytes

    @property
    def sealed(self) -> bool:
        return self._catalogue.sealed

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int) -> None:
        """See Catalogue.create."""
        with self._writes.changing():
            self._catalogue.create(record, sealed_manifest, limit, self._clock_s())
            self._segments.replaced(record.collection_id)  # one with its id may have been dropped, and be searched yet

    def find(self, name: str, collection_id: bytes | None = None, tenant: str = LOCAL_TENANT) -> CollectionRecord:
        """Raises NotFound, also where the name is now another collection's."""
        return self._catalogue.find(name, collection_id, tenant)

    def collections(self) -> list[CollectionRecord]:
        """Sorted by tenant, then name."""
        return self._catalogue.collections()

    def states(self) -> list[State]:
        """Of all collections, as they are now."""
        return self._catalogue.states()

    def is_there(self, record: CollectionRecord) -> bool:
        """Whether its name is that collection's already."""
        with contextlib.suppress(NotFound):
            return bool(self.find(record.name, record.collection_id, record.tenant))
        return False

    def counts(self, tenant: str, owner: str) -> tuple[int, int]:
        """Of collections: those that the owner made, and all of the tenant."""
        return self._catalogue.counts(tenant, owner)

    def totals(self, record: CollectionRecord) -> Totals:
        return self._catalogue.totals(record.collection_id)

    def drop(self, record: CollectionRecord) -> None:
        """Raises NotFound. Its data keys go first; its files when nobody reads them any more."""
        self._segments.drop(record.collection_id)

    # ---- segments --------------------------------------------------------------------------------------
    def has(self, key: Key) -> bool:
        """Whether the segment is stored and its file is sound; if so, it counts as sent just now."""
        return self._segments.has(key)

    def upload(self, description: Description, most_bytes: int = 1 << 62) -> Upload:
        """Begins to store a segment; now and then, those that were given up are removed first. Raises NotFound, and
        LimitExceeded if all that the collection has and is being sent would take more than `most_bytes`."""
        self.leftovers.collect_if_due()
        return self._uploads.begin(description, most_bytes)

    def reading(self, segment: StoredSegment) -> contextlib.AbstractContextManager[IndexFile]:
        """Its index, for an engine to read. Raises TamperedDataError, and then it serves nobody any more."""
        return self._segments.reading(segment)

    def damaged(self, segment: StoredSegment) -> None:
        """Some of its bytes turned out to be wrong: see Segments.damaged."""
        self._segments.damaged(segment)

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, record: CollectionRecord) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """See Catalogue.manifest."""
        return self._catalogue.manifest(record.collection_id)

    def commit(
        self, record: CollectionRecord, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> int:
        """See Catalogue.commit. The segments that were live and are no more go when nobody reads them."""
        with self._writes.changing():
            version, retired = self._catalogue.commit(record.collection_id, expected_version, sealed_manifest, live)
        self._segments.discard(retired)
        return version

    def snapshot(self, record: CollectionRecord, version: int) -> Snapshot[StoredSegment]:
        """All live segments of the current version. Raises NotFound, Conflict if that is not `version`,
        TamperedDataError if the file of one is damaged."""
        return snapshots.of_version(self._catalogue, self._segments, record, version)

    def places(self, record: CollectionRecord, version: int) -> Snapshot[Place]:
        """The same for others to read: what lies on object storage is neither fetched nor kept there."""
        return snapshots.places_of_version(self._catalogue, self._segments, record, version)

    def place_damaged(self, place: Place) -> None:
        """Who read it there found it damaged or missing: see Segments.place_damaged."""
        self._segments.place_damaged(place)

    def segment(self, record: CollectionRecord, segment_id: bytes) -> Snapshot[StoredSegment]:
        """One segment, live or not. Raises NotFound, TamperedDataError if its file cannot be read at all."""
        return snapshots.of_segment(self._catalogue, self._segments, record, segment_id)

    def close(self) -> None:
        self.indexes.close()
        self._segments.close()
        self._catalogue.close()
        self._folder.close()

"""The catalogue: which collections and segments there are, and which segments each manifest makes live.

It is small and read all the time, so all but the manifests is kept in memory, and who reads that waits for no disk;
each change is first a transaction in one SQLite file (he_server.storage.database), schema version 3:

    folder       one INTEGER = 1 · wrapped_key BLOB     the folder key under the key-encryption key; empty: not sealed
    collections  collection_id BLOB · state BLOB · manifest BLOB
    segments     collection_id BLOB · segment_id BLOB · cell BLOB

`state`, `manifest` and `cell` are cells (he_server.storage.cells) of what he_server.storage.catalogue_rows describes,
under the folder key; their aad are the ids, and for a manifest its version, too. A collection's data keys lie in its
`state`, so a dropped collection's keys go with its row. Every cell is opened once when the catalogue is.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from he_engine.errors import (
    AlreadyExists,
    Conflict,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_engine.keys import KEY_BYTES, RootKey, length_prefixed
from he_server.storage import catalogue_v1
from he_server.storage.catalogue_rows import (
    CollectionRecord,
    DataKey,
    FileId,
    Key,
    SegmentRecord,
    State,
    Totals,
    segment_from_bytes,
    segment_to_bytes,
)
from he_server.storage.cells import close_cell, open_cell
from he_server.storage.database import Database
from he_server.storage.kek import KeyProvider

__all__ = ["Catalogue", "CollectionRecord", "DataKey", "FileId", "Key", "SegmentRecord", "State", "Totals"]

SCHEMA_VERSION = 3
BEFORE_TENANTS = 2  #: differs in what rows of collections end with, and is stamped anew
FOLDER_KEY_CONTEXT = b"hesearch folder key"  #: of what the key-encryption key wraps
_SCHEMA = (
    "CREATE TABLE folder (one INTEGER PRIMARY KEY CHECK (one = 1), wrapped_key BLOB NOT NULL)",
    "CREATE TABLE collections (collection_id BLOB PRIMARY KEY, state BLOB NOT NULL, manifest BLOB NOT NULL)",
    """CREATE TABLE segments (
        collection_id  BLOB NOT NULL,
        segment_id     BLOB NOT NULL,
        cell           BLOB NOT NULL,
        PRIMARY KEY (collection_id, segment_id)
    ) WITHOUT ROWID""",
    "INSERT INTO folder VALUES (1, x'')",
)


class Catalogue:
    """Thread-safe. `kek`: None for a folder that is not sealed; one that is not, is sealed where it is given.

    Raises TamperedDataError, WrongKeyError, InvalidInput (no kek for a sealed folder), FormatVersionError, and where
    the file fails LimitExceeded, Unavailable or ReadOnlyError.
    """

    def __init__(self, path: Path, kek: KeyProvider | None = None, previous_kek: KeyProvider | None = None) -> None:
        self._db = Database(path)
        self._key: RootKey | None = None
        self._states: dict[bytes, State] = {}  # by collection id
        self._places: dict[tuple[str, str], bytes] = {}
        self._dropped = 0  # the newest generation of all collections dropped since the start
        self._segments: dict[bytes, dict[bytes, tuple[SegmentRecord, float]]] = {}  # and when each was last sent
        self._lock = threading.Lock()  # of what is in memory: never held while the disk works
        try:
            self._open_schema()
            self._key = self._folder_key(kek, previous_kek)
            self._load()
            if kek is not None and self._key is None:
                self._seal(kek)
        except BaseException:
            self._db.close()
            raise

    # ---- opening ---------------------------------------------------------------------------------------
    def _open_schema(self) -> None:
        version = self._db.schema_version
        if version == SCHEMA_VERSION:
            return
        if version == BEFORE_TENANTS:
            with self._db.transaction():
                self._db.stamp(SCHEMA_VERSION)
            return
        if version not in (0, catalogue_v1.SCHEMA_VERSION):
            raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")
        with self._db.transaction() as db:
            old = catalogue_v1.take(db) if version else []
            for statement in _SCHEMA:
                db.execute(statement)
            for state, manifest, segments in old:
                self._write_state(db, state, insert=True)
                self._write_manifest(db, state, manifest)
                for segment, touched_s in segments:
                    self._write_segment(db, segment, touched_s)
            self._db.stamp(SCHEMA_VERSION)

    def _folder_key(self, kek: KeyProvider | None, previous_kek: KeyProvider | None) -> RootKey | None:
        (wrapped,) = self._db.one("SELECT wrapped_key FROM folder")
        if not isinstance(wrapped, bytes):
            raise TamperedDataError("catalogue: the wrapped key is not bytes")
        if not wrapped:
            return None
        if kek is None:
            raise InvalidInput("kek: this data folder is sealed; give the key-encryption key that opens it (--kek)")
        try:
            return RootKey(kek.unwrap(wrapped, FOLDER_KEY_CONTEXT))
        except (WrongKeyError, Unavailable) as error:  # a service may say no to what it did not wrap in its own way
            if previous_kek is None:
                raise
            try:
                secret = previous_kek.unwrap(wrapped, FOLDER_KEY_CONTEXT)
            except HesearchError:
                raise error from None
        with self._db.transaction() as db:
            db.execute("UPDATE folder SET wrapped_key = ?", (_wrapped(kek, secret),))
        return RootKey(secret)

    def _load(self) -> None:
        if any(not isinstance(value, bytes) for row in self._ids() for value in row):
            raise TamperedDataError("catalogue: an id is not bytes")
        for collection_id, cell, manifest in self._db.all("SELECT collection_id, state, manifest FROM collections"):
            state = State.parse(collection_id, open_cell(self._key, "collection", collection_id, cell))
            self._open_manifest(state, manifest)
            self._remember(state)
        for collection_id, segment_id, cell in self._db.all("SELECT collection_id, segment_id, cell FROM segments"):
            raw = open_cell(self._key, "segment", length_prefixed(collection_id, segment_id), cell)
            if collection_id not in self._states:
                raise TamperedDataError("catalogue: a segment belongs to no collection")
            self._segments[collection_id][segment_id] = segment_from_bytes((collection_id, segment_id), raw)
        for collection_id, state in self._states.items():
            if not self._segments[collection_id].keys() >= set(state.live):
                raise TamperedDataError("catalogue: a live segment has no row")

    def _ids(self) -> list[tuple[Any, ...]]:
        segments = self._db.all("SELECT collection_id, segment_id FROM segments")
        return [*self._db.all("SELECT collection_id FROM collections"), *segments]

    def _remember(self, state: State) -> None:
        collection_id = state.record.collection_id
        with self._lock:
            self._states[collection_id] = state
            self._places[state.record.place] = collection_id
            self._segments.setdefault(collection_id, {})

    def _seal(self, kek: KeyProvider) -> None:
        """From now on the folder is sealed; files of segments follow (he_server.storage.rekey)."""
        self._seal_anew(kek, {c: state.with_new_key(time.time()) for c, state in self._states.items()})

    def replace_folder_key(self, kek: KeyProvider) -> None:
        """A new one, under `kek`, for every row; data keys stay. Before anybody else uses this. Raises Unavailable,
        LimitExceeded, ReadOnlyError; then all is as before, and this is to be closed."""
        self._seal_anew(kek, self._states)

    def _seal_anew(self, kek: KeyProvider, states: dict[bytes, State]) -> None:
        secret = secrets.token_bytes(KEY_BYTES)
        wrapped = _wrapped(kek, secret)
        manifests = {collection_id: self._manifest(state) for collection_id, state in self._states.items()}
        previous = self._key
        with self._db.transaction() as db:
            db.execute("UPDATE folder SET wrapped_key = ?", (wrapped,))
            self._key = RootKey(secret)
            try:
                for collection_id, state in states.items():
                    self._states[collection_id] = state
                    self._write_state(db, state)
                    self._write_manifest(db, state, manifests[collection_id])
                    for segment, touched_s in self._segments[collection_id].values():
                        self._write_segment(db, segment, touched_s)
            except BaseException:
                self._key = previous
                raise

    @property
    def sealed(self) -> bool:
        return self._key is not None

    # ---- rows ------------------------------------------------------------------------------------------
    def _write_state(self, db: sqlite3.Connection, state: State, *, insert: bool = False) -> None:
        collection_id = state.record.collection_id
        cell = close_cell(self._key, "collection", collection_id, state.to_bytes())
        if insert:
            db.execute("INSERT INTO collections VALUES (?, ?, x'')", (collection_id, cell))
        else:
            db.execute("UPDATE collections SET state = ? WHERE collection_id = ?", (cell, collection_id))

    def _write_manifest(self, db: sqlite3.Connection, state: State, manifest: bytes) -> None:
        collection_id = state.record.collection_id
        cell = close_cell(self._key, "manifest", length_prefixed(collection_id, state.record.version), manifest)
        db.execute("UPDATE collections SET manifest = ? WHERE collection_id = ?", (cell, collection_id))

    def _write_segment(self, db: sqlite3.Connection, segment: SegmentRecord, touched_s: float) -> None:
        key = segment.file_id[:2]
        cell = close_cell(self._key, "segment", length_prefixed(*key), segment_to_bytes(segment, touched_s))
        db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", (*key, cell))

    def _open_manifest(self, state: State, cell: bytes) -> bytes:
        aad = length_prefixed(state.record.collection_id, state.record.version)
        return open_cell(self._key, "manifest", aad, cell)

    def _manifest(self, state: State) -> bytes:
        (cell,) = self._db.one("SELECT manifest FROM collections WHERE collection_id = ?", state.record.collection_id)
        return self._open_manifest(state, cell)

    def _state(self, collection_id: bytes) -> State:
        if (state := self._states.get(collection_id)) is None:
            raise NotFound("collection: it was dropped meanwhile")
        return state

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int, now_s: float) -> None:
        """A collection at its version; without a manifest where it is imported. The same request again changes
        nothing. Raises AlreadyExists for a name or an id that is taken, LimitExceeded if there are `limit`."""
        with self._db.lock:
            found = self._states.get(self._places.get(record.place, record.collection_id))
            if found:
                same = (
                    found.record == record and (self._manifest(found) if found.has_manifest else b"") == sealed_manifest
                )
                if same:
                    return
                raise AlreadyExists(f"collection: {record.name!r} exists")
            if len(self._states) >= limit:
                raise LimitExceeded(f"collections: got {len(self._states)}, and this server holds at most {limit}")
            state = State(record, bool(sealed_manifest), (), ())
            if self._key is not None:
                state = state.with_new_key(now_s, self._dropped)
            with self._db.transaction() as db:
                self._write_state(db, state, insert=True)
                self._write_manifest(db, state, sealed_manifest)
            self._remember(state)

    def find(self, name: str, tenant: str) -> CollectionRecord:
        """Raises NotFound."""
        with self._lock:
            if (collection_id := self._places.get((tenant, name))) is None:
                raise NotFound(f"collection: there is no {name!r}")
            return self._states[collection_id].record

    def state(self, collection_id: bytes) -> State:
        """Raises NotFound."""
        with self._lock:
            return self._state(collection_id)

    def states(self) -> list[State]:
        with self._lock:
            return list(self._states.values())

    def collections(self) -> list[CollectionRecord]:
        """Sorted by tenant, then name."""
        with self._lock:
            return [self._states[self._places[place]].record for place in sorted(self._places)]

    def totals(self, collection_id: bytes) -> Totals:
        with self._lock:
            state = self._states.get(collection_id)
            known = self._segments.get(collection_id, {})
            live = [known[segment_id][0] for segment_id in (state.live if state else ())]
        return Totals(
            segments=len(live),
            blocks=sum(s.blocks for s in live),
            stored_bytes=sum(s.stored_bytes for s in live),
            index_bytes=sum(s.index_bytes for s in live),
        )

    def kept_bytes(self, collection_id: bytes) -> int:
        """Of all segments of a collection, live or not."""
        with self._lock:
            return sum(segment.stored_bytes for segment, _ in self._segments.get(collection_id, {}).values())

    def drop(self, collection_id: bytes) -> list[FileId]:
        """Forgets a collection, its data keys and its segments, whose files may then be removed. Raises NotFound."""
        with self._db.lock:
            state = self._state(collection_id)
            record = state.record
            with self._db.transaction() as db:
                for table in ("collections", "segments"):
                    db.execute(f"DELETE FROM {table} WHERE collection_id = ?", (collection_id,))
            if state.newest_key is not None:  # segments may be on their way under it, and the id may come back
                self._dropped = max(self._dropped, state.newest_key.generation)
            with self._lock:
                del self._states[collection_id]
                del self._places[record.place]
                return [segment.file_id for segment, _ in self._segments.pop(collection_id).values()]

    # ---- segments --------------------------------------------------------------------------------------
    def touch(self, collection_id: bytes, segment_id: bytes, now_s: float) -> bool:
        """Whether the segment is stored; if so, it counts as sent just now."""
        with self._db.lock:
            known = self._segments.get(collection_id, {})
            if segment_id not in known:
                return False
            segment, _ = known[segment_id]
            self._store_segments([(segment, now_s)])
            return True

    def add(self, segment: SegmentRecord, now_s: float) -> FileId | None:
        """A segment whose file is on the disk; not live, unless it was. The file that it replaces, if another.

        Raises NotFound if its collection is gone, Conflict if its data key is.
        """
        with self._db.lock:
            state = self._state(segment.collection_id)
            if segment.generation and segment.generation not in {k.generation for k in state.keys}:
                raise Conflict("segment: its data key was replaced meanwhile; send it again")
            before = self._segments[segment.collection_id].get(segment.segment_id)
            self._store_segments([(segment, now_s)])
        return before[0].file_id if before and before[0] != segment else None

    def _store_segments(self, rows: Iterable[tuple[SegmentRecord, float]]) -> None:
        rows = list(rows)
        with self._db.transaction() as db:
            for segment, touched_s in rows:
                self._write_segment(db, segment, touched_s)
        with self._lock:
            for segment, touched_s in rows:
                self._segments[segment.collection_id][segment.segment_id] = (segment, touched_s)

    def segment(self, key: Key) -> SegmentRecord | None:
        with self._lock:
            found = self._segments.get(key[0], {}).get(key[1])
        return found[0] if found else None

    def contains(self, file_id: FileId) -> bool:
        """Whether this is the file of a stored segment."""
        segment = self.segment(file_id[:2])
        return segment is not None and segment.file_id == file_id

    def segments(self, collection_id: bytes | None = None) -> list[SegmentRecord]:
        """Every stored segment, of one collection or of all."""
        with self._lock:
            chosen = self._segments.values() if collection_id is None else [self._segments.get(collection_id, {})]
            return [segment for known in chosen for segment, _ in known.values()]

    def collect(self, before_s: float) -> list[FileId]:
        """Forgets the segments that are not live and were last sent before that time."""
        with self._db.lock:
            orphans = [
                segment
                for collection_id, known in self._segments.items()
                for live in [set(self._states[collection_id].live)]
                for segment, touched_s in known.values()
                if touched_s < before_s and segment.segment_id not in live
            ]
            if orphans:
                with self._db.transaction() as db:
                    self._delete(db, orphans)
                self._forget(orphans)
        return [segment.file_id for segment in orphans]

    @staticmethod
    def _delete(db: sqlite3.Connection, segments: Iterable[SegmentRecord]) -> None:
        db.executemany(
            "DELETE FROM segments WHERE collection_id = ? AND segment_id = ?", (s.file_id[:2] for s in segments)
        )

    def _forget(self, segments: Iterable[SegmentRecord]) -> None:
        with self._lock:
            for segment in segments:
                del self._segments[segment.collection_id][segment.segment_id]

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, collection_id: bytes) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """The record, the sealed manifest and the live segments' ids in the order committed: all of one
        version. The manifest is empty while the collection is being imported. Raises NotFound."""
        with self._db.lock:
            state = self._state(collection_id)
            return state.record, self._manifest(state), list(state.live)

    def live(self, collection_id: bytes) -> list[bytes]:
        with self._lock:
            state = self._states.get(collection_id)
            return list(state.live) if state else []

    def commit(
        self, collection_id: bytes, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> tuple[int, list[FileId]]:
        """Compare-and-swap: the new version, and the files of segments that were live and are no more (forgotten
        here; they may be removed). Committing again what is committed changes nothing.

        Raises Conflict if the version is another one, NotFound if a live segment is not stored here.
        """
        with self._db.lock:
            state = self._state(collection_id)
            version, known = state.record.version, self._segments[collection_id]
            if (
                version == expected_version + 1
                and state.live == tuple(live)
                and self._manifest(state) == sealed_manifest
            ):
                return version, []
            if version != expected_version:
                raise Conflict(f"expected_version: got {expected_version}, but the manifest is at version {version}")
            if missing := next((segment_id for segment_id in live if segment_id not in known), None):
                raise NotFound(f"live_segments: segment {missing.hex()[:16]}… is not stored here")
            retired = [known[segment_id][0] for segment_id in sorted(set(state.live) - set(live))]
            record = replace(state.record, version=version + 1)
            following = replace(state, record=record, has_manifest=True, live=tuple(live))
            with self._db.transaction() as db:
                self._delete(db, retired)
                self._write_state(db, following)
                self._write_manifest(db, following, sealed_manifest)
            with self._lock:
                self._states[collection_id] = following
            self._forget(retired)
        return version + 1, [segment.file_id for segment in retired]

    # ---- data keys -------------------------------------------------------------------------------------
    def add_data_key(self, collection_id: bytes, now_s: float) -> None:
        """A new data key, for all that is written from now on. Raises NotFound."""
        with self._db.lock:
            self._replace_state(self._state(collection_id).with_new_key(now_s))

    def drop_old_data_keys(self, collection_id: bytes, in_use: Collection[int] = ()) -> None:
        """Forgets all data keys but the newest; those that still seal a file stay, and those of generations that are
        in use. Raises NotFound."""
        with self._db.lock:
            state = self._state(collection_id)
            used = {segment.generation for segment, _ in self._segments[collection_id].values()}
            used |= set(in_use)
            kept = tuple(k for k in state.keys if k is state.newest_key or k.generation in used)
            if kept != state.keys:
                self._replace_state(replace(state, keys=kept))

    def _replace_state(self, state: State) -> None:
        with self._db.transaction() as db:
            self._write_state(db, state)
        with self._lock:
            self._states[state.record.collection_id] = state

    def move(self, segment: SegmentRecord, generation: int) -> bool:
        """Its file of this generation is on the disk, and is its file from now on. False: it is gone by now."""
        with self._db.lock:
            found = self._segments.get(segment.collection_id, {}).get(segment.segment_id)
            if found is None or found[0] != segment:
                return False
            self._store_segments([(replace(segment, generation=generation), found[1])])
            return True

    @property
    def failed(self) -> bool:
        """The disk failed: nothing is written any more."""
        return self._db.failed

    def close(self) -> None:
        self._db.close()


def _wrapped(kek: KeyProvider, secret: bytes) -> bytes:
    """Nothing is sealed under what does not come back. Raises Unavailable."""
    wrapped = kek.wrap(secret, FOLDER_KEY_CONTEXT)
    if not wrapped or kek.unwrap(wrapped, FOLDER_KEY_CONTEXT) != secret:
        raise Unavailable("kek: what it wrapped does not unwrap to the same key")
    return wrapped

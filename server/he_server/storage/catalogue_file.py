"""The catalogue's tables, in a file of SQLite (he_server.storage.database, schema version 3) or in PostgreSQL
(he_server.storage.postgres, migrations/*.sql).

    folder       one INTEGER = 1 · wrapped_key BLOB     the folder key under the key-encryption key; empty: not sealed
    collections  collection_id BLOB · state BLOB · manifest BLOB
    segments     collection_id BLOB · segment_id BLOB · cell BLOB

`state`, `manifest` and `cell` are cells (he_server.storage.cells) of what he_server.storage.catalogue_rows describes,
under the folder key; their aad are the ids, and for a manifest its version, too. A collection's data keys lie in its
`state`, so a dropped collection's keys go with its row.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from he_engine.errors import (
    FormatVersionError,
    HesearchError,
    InvalidInput,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_engine.keys import KEY_BYTES, RootKey, length_prefixed
from he_server.storage import catalogue_v1
from he_server.storage.backend import Backend, Writer
from he_server.storage.catalogue_rows import SegmentRecord, State, segment_from_bytes, segment_to_bytes
from he_server.storage.cells import close_cell, open_cell
from he_server.storage.database import Database
from he_server.storage.kek import KeyProvider

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


class CatalogueFile:
    """Brought to the newest schema when it is opened. What writes takes the connection of a `transaction`.

    Raises as Catalogue.
    """

    def __init__(self, database: Backend, kek: KeyProvider | None, previous_kek: KeyProvider | None) -> None:
        self._db = database
        self._key: RootKey | None = None
        try:
            if isinstance(database, Database):  # PostgreSQL never had older forms of rows
                self._open_schema(database)
            self._key = self._folder_key(kek, previous_kek)
        except BaseException:
            self._db.close()
            raise

    def _open_schema(self, database: Database) -> None:
        version = database.schema_version
        if version == SCHEMA_VERSION:
            return
        if version == BEFORE_TENANTS:
            with database.transaction():
                database.stamp(SCHEMA_VERSION)
            return
        if version not in (0, catalogue_v1.SCHEMA_VERSION):
            raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")
        with database.transaction() as db:
            old = catalogue_v1.take(db) if version else []
            for statement in _SCHEMA:
                db.execute(statement)
            for state, manifest, segments in old:
                self.add(db, state, manifest)
                for segment, touched_s in segments:
                    self.write_segment(db, segment, touched_s)
            database.stamp(SCHEMA_VERSION)

    # ---- the folder key --------------------------------------------------------------------------------
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

    def seal_anew(
        self, kek: KeyProvider, states: Iterable[State], segments: Iterable[tuple[SegmentRecord, float]]
    ) -> None:
        """A new folder key, under `kek`, for these rows, which are all that there are. Raises Unavailable,
        LimitExceeded, ReadOnlyError; then all is as before, and this is to be closed."""
        secret = secrets.token_bytes(KEY_BYTES)
        wrapped = _wrapped(kek, secret)
        collections = [(state, self.manifest(state)) for state in states]
        previous = self._key
        with self._db.transaction() as db:
            db.execute("UPDATE folder SET wrapped_key = ?", (wrapped,))
            self._key = RootKey(secret)
            try:
                for state, manifest in collections:
                    self.write_state(db, state)
                    self.write_manifest(db, state, manifest)
                for segment, touched_s in segments:
                    self.write_segment(db, segment, touched_s)
            except BaseException:
                self._key = previous
                raise

    @property
    def sealed(self) -> bool:
        return self._key is not None

    # ---- reading ---------------------------------------------------------------------------------------
    def require_ids(self) -> None:
        """Raises TamperedDataError where one is not bytes: SQLite takes anything."""
        segments = self._db.all("SELECT collection_id, segment_id FROM segments")
        ids: list[tuple[Any, ...]] = [*self._db.all("SELECT collection_id FROM collections"), *segments]
        if any(not isinstance(value, bytes) for row in ids for value in row):
            raise TamperedDataError("catalogue: an id is not bytes")

    def states(self) -> Iterator[State]:
        """Of all collections; their manifests are opened, too. Raises TamperedDataError."""
        for collection_id, cell, manifest in self._db.all("SELECT collection_id, state, manifest FROM collections"):
            state = self._state(collection_id, cell)
            self._open_manifest(state, manifest)
            yield state

    def states_since(self, revision: int) -> Iterator[State]:
        """Of those that changed after this revision (see migrations/0001_catalogue.sql). Raises TamperedDataError."""
        changed = "SELECT collection_id FROM changes WHERE revision > ? AND segment_id = ''"
        for row in self._db.all(
            f"SELECT collection_id, state FROM collections WHERE collection_id IN ({changed})", revision
        ):
            yield self._state(*row)

    def _state(self, collection_id: bytes, cell: bytes) -> State:
        return State.parse(collection_id, open_cell(self._key, "collection", collection_id, cell))

    def segments(self) -> Iterator[tuple[SegmentRecord, float]]:
        """And the Unix time at which each was last sent. Raises TamperedDataError."""
        return self._segments("", ())

    def segments_since(self, revision: int) -> Iterator[tuple[SegmentRecord, float]]:
        """Those that changed after this revision. Raises TamperedDataError."""
        changed = "SELECT collection_id, segment_id FROM changes WHERE revision > ?"
        return self._segments(f" WHERE (collection_id, segment_id) IN ({changed})", (revision,))

    def _segments(self, where: str, values: tuple[object, ...]) -> Iterator[tuple[SegmentRecord, float]]:
        rows = self._db.all(f"SELECT collection_id, segment_id, cell FROM segments{where}", *values)
        for collection_id, segment_id, cell in rows:
            raw = open_cell(self._key, "segment", length_prefixed(collection_id, segment_id), cell)
            yield segment_from_bytes((collection_id, segment_id), raw)

    def manifest(self, state: State) -> bytes:
        """Empty while the collection is being imported."""
        (cell,) = self._db.one("SELECT manifest FROM collections WHERE collection_id = ?", state.record.collection_id)
        return self._open_manifest(state, cell)

    def _open_manifest(self, state: State, cell: bytes) -> bytes:
        aad = length_prefixed(state.record.collection_id, state.record.version)
        return open_cell(self._key, "manifest", aad, cell)

    # ---- writing ---------------------------------------------------------------------------------------
    def exclusive(self) -> AbstractContextManager[object]:
        """See Backend. Held while the disk works."""
        return self._db.exclusive()

    def view(self) -> AbstractContextManager[object]:
        """See Backend."""
        return self._db.view()

    def transaction(self) -> AbstractContextManager[Writer]:
        """See Backend."""
        return self._db.transaction()

    def add(self, db: Writer, state: State, manifest: bytes) -> None:
        """A collection."""
        cells = self._state_cell(state), self._manifest_cell(state, manifest)
        db.execute("INSERT INTO collections VALUES (?, ?, ?)", (state.record.collection_id, *cells))

    def write_state(self, db: Writer, state: State) -> None:
        cell, collection_id = self._state_cell(state), state.record.collection_id
        db.execute("UPDATE collections SET state = ? WHERE collection_id = ?", (cell, collection_id))

    def write_manifest(self, db: Writer, state: State, manifest: bytes) -> None:
        """As that of the state's version."""
        cell, collection_id = self._manifest_cell(state, manifest), state.record.collection_id
        db.execute("UPDATE collections SET manifest = ? WHERE collection_id = ?", (cell, collection_id))

    def _state_cell(self, state: State) -> bytes:
        return close_cell(self._key, "collection", state.record.collection_id, state.to_bytes())

    def _manifest_cell(self, state: State, manifest: bytes) -> bytes:
        aad = length_prefixed(state.record.collection_id, state.record.version)
        return close_cell(self._key, "manifest", aad, manifest)

    def write_segment(self, db: Writer, segment: SegmentRecord, touched_s: float) -> None:
        key = segment.file_id[:2]
        cell = close_cell(self._key, "segment", length_prefixed(*key), segment_to_bytes(segment, touched_s))
        db.execute(
            "INSERT INTO segments VALUES (?, ?, ?) "
            "ON CONFLICT (collection_id, segment_id) DO UPDATE SET cell = excluded.cell",
            (*key, cell),
        )

    @staticmethod
    def remove_segments(db: Writer, segments: Iterable[SegmentRecord]) -> None:
        db.executemany(
            "DELETE FROM segments WHERE collection_id = ? AND segment_id = ?", (s.file_id[:2] for s in segments)
        )

    @staticmethod
    def remove(db: Writer, collection_id: bytes) -> None:
        """A collection, its data keys and its segments."""
        for table in ("collections", "segments"):
            db.execute(f"DELETE FROM {table} WHERE collection_id = ?", (collection_id,))

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

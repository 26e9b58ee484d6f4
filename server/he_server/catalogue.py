"""The catalogue: which collections and segments there are, and which segments each manifest makes live.

One SQLite file in WAL mode with synchronous=FULL: a transaction is on the disk when it returns. One connection
behind one lock: a transaction takes well under a millisecond, and answers are not computed here.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from he_engine.errors import (
    AlreadyExists,
    Conflict,
    FormatVersionError,
    LimitExceeded,
    NotFound,
    TamperedDataError,
    Unavailable,
)

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x48455352  # "HESR"
_SCHEMA = (
    """CREATE TABLE collections (
        collection_id     BLOB PRIMARY KEY,
        name              TEXT NOT NULL UNIQUE,
        parameters        BLOB NOT NULL,     -- the Parameters message
        parameter_digest  BLOB NOT NULL,
        version           INTEGER NOT NULL,  -- of the manifest
        sealed_manifest   BLOB NOT NULL
    )""",
    """CREATE TABLE segments (
        collection_id  BLOB NOT NULL REFERENCES collections ON DELETE CASCADE,
        segment_id     BLOB NOT NULL,
        blocks         INTEGER NOT NULL,
        stored_bytes   INTEGER NOT NULL,
        index_bytes    INTEGER NOT NULL,
        touched_s      REAL NOT NULL,        -- Unix time of the last upload
        position       INTEGER,              -- in the manifest's list; NULL: not live
        PRIMARY KEY (collection_id, segment_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX live_segments ON segments (collection_id, position) WHERE position IS NOT NULL",
)

_RECORD = "name, collection_id, parameters, parameter_digest, version"  # in CollectionRecord's order

Key = tuple[bytes, bytes]  #: (collection id, segment id)


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """One collection, without its manifest and totals."""

    name: str
    collection_id: bytes
    parameters: bytes  #: the serialised Parameters message
    parameter_digest: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Over the live segments of one collection."""

    segments: int
    blocks: int
    stored_bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One stored segment."""

    collection_id: bytes
    segment_id: bytes
    blocks: int
    stored_bytes: int
    index_bytes: int


@contextlib.contextmanager
def _sqlite_errors() -> Iterator[None]:
    """Failures of SQLite become errors of ours that say nothing of paths or statements."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "error")
        if name == "SQLITE_FULL":
            raise LimitExceeded("catalogue: no room left; nothing was changed") from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise TamperedDataError("catalogue: the file is damaged") from error
        raise Unavailable(f"catalogue: {name}; nothing was changed") from error


class Catalogue:
    """Thread-safe. Raises LimitExceeded, TamperedDataError or Unavailable where the file fails."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        with _sqlite_errors():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._open_schema()
        except BaseException:
            self._db.close()
            raise

    def _open_schema(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            if version == 0 and application == 0:
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            elif application != _APPLICATION_ID:
                raise FormatVersionError("catalogue: this SQLite file is not one of ours")
            elif version != SCHEMA_VERSION:
                raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _sqlite_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int) -> None:
        """A collection at version 1. The same request again changes nothing. Raises AlreadyExists for a name
        or an id that is taken, LimitExceeded if there are `limit` collections."""
        with self._transaction():
            found = self._db.execute(
                f"SELECT {_RECORD}, sealed_manifest FROM collections WHERE name = ? OR collection_id = ?",
                (record.name, record.collection_id),
            ).fetchone()
            if found:
                if CollectionRecord(*found[:5]) == record and found[5] == sealed_manifest:
                    return
                raise AlreadyExists(f"collection: {record.name!r} exists")
            (count,) = self._db.execute("SELECT COUNT(*) FROM collections").fetchone()
            if count >= limit:
                raise LimitExceeded(f"collections: got {count}, and this server holds at most {limit}")
            self._db.execute(
                f"INSERT INTO collections ({_RECORD}, sealed_manifest) VALUES (?, ?, ?, ?, ?, ?)",
                (*astuple(record), sealed_manifest),
            )

    def find(self, name: str) -> CollectionRecord:
        """Raises NotFound."""
        with self._lock, _sqlite_errors():
            row = self._db.execute(f"SELECT {_RECORD} FROM collections WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"collection: there is no {name!r}")
        return CollectionRecord(*row)

    def collections(self) -> list[CollectionRecord]:
        """Sorted by name."""
        with self._lock, _sqlite_errors():
            rows = self._db.execute(f"SELECT {_RECORD} FROM collections ORDER BY name").fetchall()
        return [CollectionRecord(*row) for row in rows]

    def totals(self, collection_id: bytes) -> Totals:
        with self._lock, _sqlite_errors():
            row = self._db.execute(
                "SELECT COUNT(*), COALESCE(SUM(blocks), 0), COALESCE(SUM(stored_bytes), 0), "
                "COALESCE(SUM(index_bytes), 0) FROM segments WHERE collection_id = ? AND position IS NOT NULL",
                (collection_id,),
            ).fetchone()
        return Totals(*row)

    def drop(self, collection_id: bytes) -> list[Key]:
        """Forgets a collection and its segments, whose files may then be removed. Raises NotFound."""
        with self._transaction():
            keys = self._keys("collection_id = ?", collection_id)
            done = self._db.execute("DELETE FROM collections WHERE collection_id = ?", (collection_id,))
            if done.rowcount == 0:
                raise NotFound("collection: it was dropped meanwhile")
        return keys

    # ---- segments --------------------------------------------------------------------------------------
    def touch(self, collection_id: bytes, segment_id: bytes, now_s: float) -> bool:
        """Whether the segment is stored; if so, it counts as sent just now."""
        with self._transaction():
            done = self._db.execute(
                "UPDATE segments SET touched_s = ? WHERE collection_id = ? AND segment_id = ?",
                (now_s, collection_id, segment_id),
            )
        return done.rowcount > 0

    def add(self, segment: SegmentRecord, now_s: float) -> None:
        """A segment whose file is on the disk; not live. Raises NotFound if its collection is gone."""
        with self._transaction():
            if not self._db.execute(
                "SELECT 1 FROM collections WHERE collection_id = ?", (segment.collection_id,)
            ).fetchone():
                raise NotFound("collection: it was dropped meanwhile")
            self._db.execute(
                "INSERT OR IGNORE INTO segments (collection_id, segment_id, blocks, stored_bytes, index_bytes, "
                "touched_s) VALUES (?, ?, ?, ?, ?, ?)",
                (*astuple(segment), now_s),
            )

    def contains(self, key: Key) -> bool:
        with self._lock, _sqlite_errors():
            return bool(self._keys("collection_id = ? AND segment_id = ?", *key))

    def keys(self) -> list[Key]:
        """Every stored segment."""
        with self._lock, _sqlite_errors():
            return self._keys("TRUE")

    def collect(self, before_s: float) -> list[Key]:
        """Forgets the segments that are not live and were last sent before that time."""
        condition = "position IS NULL AND touched_s < ?"
        with self._transaction():
            keys = self._keys(condition, before_s)
            self._db.execute(f"DELETE FROM segments WHERE {condition}", (before_s,))
        return keys

    def _keys(self, condition: str, *values: object) -> list[Key]:
        rows = self._db.execute(f"SELECT collection_id, segment_id FROM segments WHERE {condition}", values)
        return [(collection_id, segment_id) for collection_id, segment_id in rows]

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, name: str) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """The record, the sealed manifest and the live segments' ids in the order committed: all of one
        version. Raises NotFound."""
        with self._lock, _sqlite_errors():
            record = self.find(name)
            (sealed,) = self._db.execute(
                "SELECT sealed_manifest FROM collections WHERE collection_id = ?", (record.collection_id,)
            ).fetchone()
            return record, sealed, self.live(record.collection_id)

    def live(self, collection_id: bytes) -> list[bytes]:
        with self._lock, _sqlite_errors():
            rows = self._db.execute(
                "SELECT segment_id FROM segments WHERE collection_id = ? AND position IS NOT NULL ORDER BY position",
                (collection_id,),
            ).fetchall()
        return [segment_id for (segment_id,) in rows]

    def commit(
        self, collection_id: bytes, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> tuple[int, list[Key]]:
        """Compare-and-swap: the new version, and the segments that were live and are no more (forgotten here;
        their files may be removed). Committing again what is committed changes nothing.

        Raises Conflict if the version is another one, NotFound if a live segment is not stored here.
        """
        with self._transaction():
            row = self._db.execute(
                "SELECT version, sealed_manifest FROM collections WHERE collection_id = ?", (collection_id,)
            ).fetchone()
            if row is None:
                raise NotFound("collection: it was dropped meanwhile")
            version, sealed = row
            before = self.live(collection_id)
            if (version, sealed, before) == (expected_version + 1, sealed_manifest, list(live)):
                return version, []
            if version != expected_version:
                raise Conflict(f"expected_version: got {expected_version}, but the manifest is at version {version}")
            self._db.execute(
                "UPDATE segments SET position = NULL WHERE collection_id = ? AND position IS NOT NULL",
                (collection_id,),
            )
            for position, segment_id in enumerate(live):
                done = self._db.execute(
                    "UPDATE segments SET position = ? WHERE collection_id = ? AND segment_id = ?",
                    (position, collection_id, segment_id),
                )
                if done.rowcount == 0:
                    raise NotFound(f"live_segments: segment {segment_id.hex()[:16]}… is not stored here")
            retired = sorted(set(before) - set(live))
            self._db.executemany(
                "DELETE FROM segments WHERE collection_id = ? AND segment_id = ?",
                ((collection_id, segment_id) for segment_id in retired),
            )
            self._db.execute(
                "UPDATE collections SET version = ?, sealed_manifest = ? WHERE collection_id = ?",
                (version + 1, sealed_manifest, collection_id),
            )
        return version + 1, [(collection_id, segment_id) for segment_id in retired]

    def close(self) -> None:
        with self._lock:
            self._db.close()

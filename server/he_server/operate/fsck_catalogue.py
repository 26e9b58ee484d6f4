"""What can be read of a catalogue, damaged or not, and a new one made of it.

It is read from a copy (with the log of a server that was killed), so the file itself stays as it is; a copy of schema
version 1 is first brought to the newest. Rows are taken one by one, from both ends of each table where a page between
is damaged; a row counts if its cells open (he_server.operate.fsck_rows).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from he_engine.errors import FormatVersionError, TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_server.operate.fsck_rows import Rows, folder_key
from he_server.storage import catalogue_v1
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_file import BEFORE_TENANTS, SCHEMA_VERSION
from he_server.storage.catalogue_rows import SegmentRecord, segment_to_bytes
from he_server.storage.cells import close_cell
from he_server.storage.database import APPLICATION_ID, Database
from he_server.storage.files import storage_errors
from he_server.storage.kek import KeyProvider

DAMAGE = (sqlite3.Error, UnicodeDecodeError)  #: the latter: a message of SQLite that quotes damaged text


def read(catalogue: Path, kek: KeyProvider | None) -> Rows:
    """Raises FormatVersionError for another program's file or a newer version's; InvalidInput or WrongKeyError where
    `kek` is not what opens it; Unavailable."""

    return _read_copy(catalogue, lambda wrapped: folder_key(wrapped, kek))


def read_without_key(catalogue: Path) -> Rows:
    """All of one that is not sealed; of a sealed one its structure alone. Raises FormatVersionError, Unavailable."""
    return _read_copy(catalogue, lambda _: None)


def _read_copy(catalogue: Path, key_of: Callable[[bytes], RootKey | None]) -> Rows:
    if not catalogue.exists() or not catalogue.stat().st_size:
        return Rows()
    with tempfile.TemporaryDirectory(prefix="hesearch-fsck-") as folder:
        copy = Path(folder) / catalogue.name
        for suffix in ("", "-wal"):
            with storage_errors("reading the catalogue"), contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{catalogue}{suffix}", f"{copy}{suffix}")
        rows = Rows()
        try:
            with contextlib.closing(sqlite3.connect(copy)) as db:
                version = _version(db)
            if version == catalogue_v1.SCHEMA_VERSION:
                Catalogue(copy).close()
            with contextlib.closing(sqlite3.connect(copy)) as db:
                _read(db, key_of, rows)
        except (*DAMAGE, TamperedDataError) as error:
            rows.problems.append(f"catalogue: the file is damaged ({error})")
        return rows


def _version(db: sqlite3.Connection) -> int:
    application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
    objects = db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (application or objects):
        raise FormatVersionError("catalogue: this SQLite file is not one of ours")
    if objects and version not in (catalogue_v1.SCHEMA_VERSION, BEFORE_TENANTS, SCHEMA_VERSION):
        raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")
    return int(version)


def _read(db: sqlite3.Connection, key_of: Callable[[bytes], RootKey | None], rows: Rows) -> None:
    if not db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]:
        return  # its making was interrupted
    try:
        found = [text for (text,) in db.execute("PRAGMA integrity_check(10)")]
    except DAMAGE as error:
        found = [str(error)]
    if found != ["ok"]:
        rows.problems += [f"catalogue: {text}" for text in found]
    (rows.wrapped_key,) = db.execute("SELECT wrapped_key FROM folder WHERE one = 1").fetchone() or (b"",)
    if not isinstance(rows.wrapped_key, bytes):
        raise TamperedDataError("the wrapped key is not bytes")
    if rows.wrapped_key:
        rows.key = key_of(rows.wrapped_key)
        if rows.key is None:
            return
    for collection_id, cell, manifest in _readable(
        db, "collections", "collection_id, state, manifest", ["rowid"], rows
    ):
        if rows.take_collection(collection_id, cell, manifest):
            rows.cells[collection_id] = cell, manifest
    for row in _readable(db, "segments", "collection_id, segment_id, cell", ["collection_id", "segment_id"], rows):
        rows.take_segment(*row)
    rows.finish()


def _readable(
    db: sqlite3.Connection, table: str, columns: str, order: list[str], rows: Rows
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Rows of three byte strings, each once."""
    seen: set[tuple[bytes, bytes, bytes]] = set()
    for direction in ("ASC", "DESC"):
        order_by = ", ".join(f"{column} {direction}" for column in order)
        try:
            for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY {order_by}"):
                if all(isinstance(value, bytes) for value in row):
                    seen.add(row)
                else:
                    rows.problems.append(f"catalogue: a row of {table} has another form than expected")
        except DAMAGE as error:
            rows.problems.append(f"catalogue: {table}: not every row can be read ({error})")
    yield from sorted(seen)


def rebuild(target: Path, rows: Rows, found: Iterable[tuple[SegmentRecord, float]]) -> None:
    """A new catalogue, durably and all in the one file, of all that is sound, and of segments whose rows were not.
    Raises as Database."""
    Catalogue(target).close()
    database = Database(target)
    try:
        with database.transaction() as db:
            db.execute("UPDATE folder SET wrapped_key = ?", (rows.wrapped_key,))
            db.executemany(
                "INSERT INTO collections VALUES (?, ?, ?)",
                ((collection_id, *cells) for collection_id, cells in rows.cells.items()),
            )
            for record, touched_s in (*rows.segments.values(), *found):
                key = record.file_id[:2]
                cell = close_cell(rows.key, "segment", length_prefixed(*key), segment_to_bytes(record, touched_s))
                db.execute("INSERT INTO segments VALUES (?, ?, ?)", (*key, cell))
        database.settle()
    finally:
        database.close()


def wrapped_key(catalogue: Path) -> bytes:
    """The folder key as it is wrapped; empty: the folder is not sealed. Raises as Database."""
    database = Database(catalogue)
    try:
        if database.schema_version in (BEFORE_TENANTS, SCHEMA_VERSION):
            return bytes(database.one("SELECT wrapped_key FROM folder")[0])
        return b""
    finally:
        database.close()

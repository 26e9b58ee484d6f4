"""A catalogue's rows in PostgreSQL, for who only reads them while servers use them: nothing is made, locked or written.

Rows come in pages, as they are: whether a cell is sound is the reader's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from he_engine.errors import FormatVersionError, NotFound, TamperedDataError
from he_server.storage.catalogue_rows import Key
from he_server.storage.postgres import SCHEMA_VERSION, Postgres, postgres_row

_COLLECTIONS, _SEGMENTS = 16, 1000  #: rows of a page: a manifest may be long


class PostgresReader(Postgres):
    """See Postgres; all its transactions are read-only. Raises NotFound where there is no catalogue, and
    FormatVersionError for another version's."""

    def _connect(self) -> psycopg.Connection[Any]:
        db = super()._connect()
        db.execute("SET default_transaction_read_only = on")
        return db

    def _migrate(self, db: psycopg.Connection[Any]) -> None:
        if postgres_row(db, b"SELECT to_regclass('folder')") == (None,):
            raise NotFound("catalogue: this database has none")
        (version,) = postgres_row(db, b"SELECT schema_version FROM folder")
        if version != SCHEMA_VERSION:
            raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")

    def folder(self) -> tuple[bytes, bytes]:
        """The wrapped folder key (empty: not sealed), and the id of the place where segments lie."""
        row = self.one("SELECT wrapped_key, store_id FROM folder")
        if row is None:
            raise TamperedDataError("catalogue: the row of the folder is missing")
        return row[0], row[1]

    def collections(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Id, state and manifest of each. Within a view."""
        rows = self.all("SELECT collection_id, state, manifest FROM collections ORDER BY 1 LIMIT ?", _COLLECTIONS)
        while rows:
            yield from rows
            rows = self.all(
                "SELECT collection_id, state, manifest FROM collections WHERE collection_id > ? ORDER BY 1 LIMIT ?",
                rows[-1][0],
                _COLLECTIONS,
            )

    def segments(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Both ids and the cell of each. Within a view."""
        rows = self.all("SELECT collection_id, segment_id, cell FROM segments ORDER BY 1, 2 LIMIT ?", _SEGMENTS)
        while rows:
            yield from rows
            rows = self.all(
                "SELECT collection_id, segment_id, cell FROM segments WHERE (collection_id, segment_id) > (?, ?) "
                "ORDER BY 1, 2 LIMIT ?",
                *rows[-1][:2],
                _SEGMENTS,
            )

    def newest_row(self, key: Key) -> tuple[bytes, bytes] | None:
        """The state's and the segment's cell as they are now; None where one of them is no more."""
        with self.view():
            found = self.one(
                "SELECT state, cell FROM collections JOIN segments USING (collection_id) "
                "WHERE collection_id = ? AND segment_id = ?",
                *key,
            )
        return None if found is None else (found[0], found[1])

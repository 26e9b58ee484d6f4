"""One SQLite file, opened so that a transaction is on the disk when it returns, and nothing deleted stays in the file.

WAL mode with synchronous=FULL: a commit is synced to the log. After each one the log is brought into the file and cut
to nothing (a log that is damaged later would take commits back silently; rows in the file have checksums), and
secure_delete overwrites what was deleted. A failure of the disk in a commit is final: see he_server.storage.files.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from he_engine.errors import FormatVersionError, LimitExceeded, ReadOnlyError, TamperedDataError, Unavailable
from he_server.rpc.calls import step
from he_server.storage.files import storage_errors

APPLICATION_ID = 0x48455352  # "HESR"
_WRITER_MS = 5000  #: to wait for another connection that holds the write lock: a backup, for some milliseconds
_READER_MS = 250  #: and for one that reads, while calls wait for this one


@contextlib.contextmanager
def sqlite_errors() -> Iterator[None]:
    """Failures of SQLite become errors of ours that say nothing of paths or statements."""
    try:
        yield
    except UnicodeDecodeError as error:  # a message of SQLite that quotes damaged text
        raise TamperedDataError("catalogue: the file is damaged; `hesearch fsck` says more") from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "error")
        if name == "SQLITE_FULL":
            raise LimitExceeded("catalogue: no room left; nothing was changed") from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "decode to UTF-8" in str(error):
            raise TamperedDataError("catalogue: the file is damaged; `hesearch fsck` says more") from error
        if name.startswith("SQLITE_IOERR"):
            raise ReadOnlyError(f"catalogue: {name}; this server takes no writes until it is restarted") from error
        raise Unavailable(f"catalogue: {name}; nothing was changed") from error


class Database:
    """One connection behind one lock (reentrant). Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises FormatVersionError for a SQLite file that is not ours, TamperedDataError for a damaged one."""
        self.lock = threading.RLock()
        self.failed = False  #: the disk failed: no more transactions
        with storage_errors("making the catalogue"):
            if not path.exists():  # (closing a descriptor of one in use would drop SQLite's locks)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its log will have the same mode
        with sqlite_errors():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with sqlite_errors():
                self._prepare()
                self._require_ours()
                self._require_writable()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        for pragma in ("secure_delete = ON", "journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 0"):
            self.all(f"PRAGMA {pragma}")  # all rows: an error may come after the first
        if self.one("PRAGMA journal_mode") != ("wal",):
            raise Unavailable("catalogue: its log cannot be written")

    def _require_ours(self) -> None:
        if self.all("PRAGMA integrity_check(1)") != [("ok",)]:
            raise TamperedDataError("catalogue: the file is damaged; `hesearch fsck` says more")
        (application,) = self.one("PRAGMA application_id")
        (objects,) = self.one("SELECT COUNT(*) FROM sqlite_schema")
        if application != APPLICATION_ID and (application or objects):
            raise FormatVersionError("catalogue: this SQLite file is not one of ours")

    def _require_writable(self) -> None:
        """Where SQLite could not open the file to write, it opens it to read, and only a write tells."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("PRAGMA user_version = 0")
        finally:
            self._db.execute("ROLLBACK")

    @property
    def schema_version(self) -> int:
        """0: a new file."""
        with self.lock, sqlite_errors():
            version: int = self.one("PRAGMA user_version")[0]
            return version

    def stamp(self, schema_version: int) -> None:
        """Within a transaction."""
        self._db.execute(f"PRAGMA user_version = {schema_version}")
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def exclusive(self) -> contextlib.AbstractContextManager[object]:
        """See Backend: the folder has one server, so its lock is enough."""
        return self.lock

    view = exclusive

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing; durable when the block has ended. Holds the lock."""
        with self.lock:
            if self.failed:
                raise ReadOnlyError("catalogue: the disk failed; this server takes no writes until it is restarted")
            with sqlite_errors():
                self._db.execute(f"PRAGMA busy_timeout = {_WRITER_MS}")
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    with step("commit"):
                        self._db.execute("COMMIT")
                except BaseException as error:
                    self._notice(error)
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            self._empty_log()

    def _empty_log(self) -> None:
        """What it cannot do now (somebody reads the file, the disk is full) the next transaction does, unless the disk
        failed: what was committed is in the log, but there must be no next one."""
        try:
            self._db.execute(f"PRAGMA busy_timeout = {_READER_MS}")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            self._notice(error)

    def settle(self) -> None:
        """Brings all of the log into the file, so that it is whole without it. Raises as a transaction does where it
        cannot be done now: the disk is full or fails, or somebody reads."""
        with self.lock, sqlite_errors():
            if self.one("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
                raise Unavailable("catalogue: its log cannot be emptied while somebody reads it")

    def _notice(self, error: BaseException) -> None:
        """Before anybody else has the lock: who waits for it must not commit after a disk that failed."""
        self.failed = self.failed or getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR")

    def one(self, statement: str, *values: object) -> Any:
        with self.lock, sqlite_errors():
            return self._db.execute(statement, values).fetchone()

    def all(self, statement: str, *values: object) -> list[Any]:
        with self.lock, sqlite_errors():
            return self._db.execute(statement, values).fetchall()

    def close(self) -> None:
        with self.lock:
            self._db.close()

"""A catalogue's rows in PostgreSQL, where several servers may use them.

Writers take turns: each locks the one row of `folder` first, so that what it checked still holds when it writes, and
raises its revision, which is how others notice. A transaction is on the server's disk when it returns, and on its
synchronous standbys where it has some.

A connection that breaks while COMMIT is under way says nothing of its outcome. So it is looked up, on a new connection
that first waits for the lock of the old one: every transaction leaves a random token. Only where nobody can be asked
the caller gets an error that says so, and asks again: every change of a catalogue can be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from he_engine.errors import (
    FormatVersionError,
    InvalidInput,
    LimitExceeded,
    MissingExtra,
    TamperedDataError,
    Unavailable,
)
from he_server.rpc.calls import step
from he_server.storage.causes import Causes

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
except ImportError as error:
    raise MissingExtra("psycopg is not installed: pip install '.[cluster]'") from error

_log = logging.getLogger(__name__)
_CAUSES = Causes()
_MIGRATIONS = sorted((Path(__file__).parent / "migrations").glob("*.sql"))
SCHEMA_VERSION = len(_MIGRATIONS)
_SCHEMA = "hesearch"  #: a schema of the database, which is made where it is missing
_KEPT = 10_000  #: transactions; a server that was away for more of them reads everything
_RESOLVE_S = 15.0  #: how long the outcome of a COMMIT is looked for
_PAUSE_S = 0.1  #: between two tries
_DEFAULTS = {  # a server that is gone is noticed in half a minute
    "application_name": "hesearch", "connect_timeout": "5", "target_session_attrs": "read-write",
    "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000",
}  # fmt: skip
_SETTINGS = f"""
    SET search_path = {_SCHEMA};
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '30s';
"""  # the last for a server that was stopped within a transaction: the others wait for it
_HEAD = b"SELECT revision, token, schema_version, wrapped_key <> '' FROM folder"

Mark = tuple[int, bytes]  #: revision and token of a transaction: a state that a catalogue had


@contextlib.contextmanager
def postgres_errors() -> Iterator[None]:
    """Failures of PostgreSQL become errors of ours that say nothing of statements, hosts or users; the log has why."""
    try:
        yield
    except psycopg.Error as error:
        code = error.sqlstate or "no connection"
        _CAUSES.say(f"catalogue: PostgreSQL: {code}", error.diag.message_primary or str(error))
        if code == "53100":
            raise LimitExceeded("catalogue: PostgreSQL has no room left; nothing was changed") from error
        if code.startswith("XX"):
            raise TamperedDataError(f"catalogue: PostgreSQL says that it is damaged ({code})") from error
        raise Unavailable(f"catalogue: PostgreSQL: {code}; nothing was changed") from error


def postgres_row(db: psycopg.Connection[Any], statement: bytes, *values: object) -> tuple[Any, ...]:
    row = db.execute(statement, values or None).fetchone()
    if row is None:  # of `folder` there is always one
        raise TamperedDataError("catalogue: the row of the folder is missing")
    return tuple(row)


def _translated(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


class _Writer:
    """See he_server.storage.backend.Writer."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db

    def execute(self, statement: str, values: tuple[object, ...] = (), /) -> Any:
        return self._db.execute(_translated(statement), values)

    def executemany(self, statement: str, values: Iterable[tuple[object, ...]], /) -> None:
        with self._db.cursor() as cursor:
            cursor.executemany(_translated(statement), list(values))


class Postgres:
    """See he_server.storage.backend.Backend. A connection that broke is made anew by the next call."""

    failed = False  #: its disk is PostgreSQL's own matter: it stops, and recovers what it acknowledged

    def __init__(self, url: str) -> None:
        """url: as libpq takes it. Raises InvalidInput, FormatVersionError, Unavailable."""
        try:
            self._conninfo = make_conninfo("", **(_DEFAULTS | conninfo_to_dict(url)))
        except psycopg.ProgrammingError:
            raise InvalidInput("catalogue: it is no connection string of PostgreSQL") from None
        self._lock = threading.RLock()
        self._watching = threading.Lock()
        self._db: psycopg.Connection[Any] | None = None
        self._watch: psycopg.Connection[Any] | None = None  # for who reads, while another writes
        self._closed = False
        self._inside = False  # an exclusive or a view
        self.mark: Mark = (0, b"")  #: of the state that the latest exclusive, view or transaction was about
        self.sealed = False  #: in that state
        try:
            with postgres_errors():
                self._migrate(self._connected())
        except BaseException:
            self.close()
            raise

    # ---- connections -----------------------------------------------------------------------------------
    def _connect(self) -> psycopg.Connection[Any]:
        if self._closed:
            raise Unavailable("catalogue: it is closed")
        db = psycopg.connect(self._conninfo, autocommit=True)
        try:
            db.execute(_SETTINGS)
            fsync, waits = postgres_row(db, b"SELECT current_setting('fsync'), current_setting('synchronous_commit')")
            if fsync != "on":
                raise InvalidInput("catalogue: PostgreSQL runs with fsync off: what it acknowledges may be lost")
            if waits in ("off", "local"):
                db.execute("SET synchronous_commit = on")
        except BaseException:
            db.close()
            raise
        return db

    def _connected(self) -> psycopg.Connection[Any]:
        """The lock is held."""
        if self._db is None or self._db.closed:
            self._db = self._connect()
        return self._db

    def _current(self) -> psycopg.Connection[Any]:
        """The same, and within a transaction the one that has it. Raises Unavailable where it broke."""
        if self._inside and (self._db is None or self._db.closed):
            raise Unavailable("catalogue: the connection to PostgreSQL broke; nothing was changed")
        return self._connected()

    def _migrate(self, db: psycopg.Connection[Any]) -> None:
        """Migrations that this database lacks, under a lock: servers may start at the same time."""
        db.execute("BEGIN")
        try:
            db.execute("SELECT pg_advisory_xact_lock(hashtext('hesearch migrations'))")
            if postgres_row(db, b"SELECT to_regnamespace(%s)", _SCHEMA) == (None,):
                db.execute(f"CREATE SCHEMA {_SCHEMA}".encode())
            made = postgres_row(db, b"SELECT to_regclass('folder')") != (None,)
            version = postgres_row(db, b"SELECT schema_version FROM folder")[0] if made else 0
            if version > SCHEMA_VERSION:
                raise FormatVersionError(f"catalogue: got schema version {version}, expected {SCHEMA_VERSION}")
            for path in _MIGRATIONS[version:]:
                db.execute(path.read_bytes())
            if not made:
                db.execute("INSERT INTO folder VALUES (1, '', '', 0, '', 0)")
            if version < SCHEMA_VERSION:
                db.execute("UPDATE folder SET schema_version = %s", (SCHEMA_VERSION,))
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise

    # ---- transactions ----------------------------------------------------------------------------------
    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """See Backend."""
        return self._transaction(b"BEGIN", _HEAD + b" FOR UPDATE")

    def view(self) -> contextlib.AbstractContextManager[None]:
        """See Backend."""
        return self._transaction(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", _HEAD)

    @contextlib.contextmanager
    def _transaction(self, begin: bytes, head: bytes) -> Iterator[None]:
        with self._lock:
            if self._inside:
                yield
                return
            with postgres_errors():
                self._begin(begin, head)
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self._roll_back()

    def _begin(self, begin: bytes, head: bytes) -> None:
        for last in (False, True):
            db = self._connected()
            try:
                db.execute(begin)
                *mark, version, self.sealed = postgres_row(db, head)
                break
            except psycopg.OperationalError:
                if last or not db.broken:
                    self._roll_back()
                    raise  # else it broke since it was used last
        if version != SCHEMA_VERSION:
            self._roll_back()
            raise Unavailable("catalogue: another version of hesearch has changed its tables; start this one anew")
        self.mark = (mark[0], mark[1])

    def _roll_back(self) -> None:
        """What was not committed."""
        db = self._db
        if db is not None and db.info.transaction_status != TransactionStatus.IDLE:
            try:
                db.execute("ROLLBACK")
            except psycopg.Error:
                db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Writer]:
        """See Backend."""
        with self.exclusive(), postgres_errors():
            db = self._current()
            if db.info.transaction_status != TransactionStatus.INTRANS:
                raise AssertionError("catalogue: got a second transaction within one exclusive, expected one")
            mark = self.mark[0] + 1, secrets.token_bytes(16)
            db.execute("UPDATE folder SET revision = %s, token = %s", mark)
            db.execute("INSERT INTO commits VALUES (%s, %s)", mark)
            db.execute("DELETE FROM commits WHERE revision <= %s", (mark[0] - _KEPT,))
            yield _Writer(db)
            with step("commit"):
                self._commit(db, mark)

    def _commit(self, db: psycopg.Connection[Any], mark: Mark) -> None:
        try:
            if db.execute("COMMIT").statusmessage != "COMMIT":
                raise Unavailable("catalogue: PostgreSQL took the transaction back; nothing was changed")
        except psycopg.Error as error:
            db.close()
            happened = self._happened(mark)
            _log.warning("catalogue: PostgreSQL went away during a commit: %s", "made" if happened else "not made")
            if not happened:
                raise Unavailable("catalogue: PostgreSQL: the commit was not made; nothing was changed") from error
        self.mark = mark

    def _happened(self, mark: Mark) -> bool:
        """Whether a transaction was made whose COMMIT gave no answer. Raises Unavailable where nobody can say."""
        deadline_s = time.monotonic() + _RESOLVE_S
        while True:
            try:
                db = self._connected()
                db.execute("BEGIN")
                db.execute(_HEAD + b" FOR UPDATE")  # so the other one has ended
                found = db.execute("SELECT 1 FROM commits WHERE token = %s", (mark[1],)).fetchone()
                db.execute("UPDATE folder SET one = one")  # a commit waits until standbys have all before it
                db.execute("COMMIT")
                return found is not None
            except psycopg.Error as error:
                self._roll_back()
                if time.monotonic() > deadline_s:
                    raise Unavailable(
                        "catalogue: PostgreSQL went away during a commit, and whether it was made is not known yet"
                    ) from error
                time.sleep(_PAUSE_S)

    # ---- reading ---------------------------------------------------------------------------------------
    def newest(self) -> Mark:
        """Of the newest transaction, without waiting for one that is being made. Raises Unavailable."""
        with self._watching, postgres_errors():
            for last in (False, True):
                if self._watch is None or self._watch.closed:
                    self._watch = self._connect()
                try:
                    revision, token, *_ = postgres_row(self._watch, _HEAD)
                    return revision, token
                except psycopg.OperationalError:
                    if last or not self._watch.broken:
                        raise
        raise AssertionError("unreachable")

    def changed_since(self, mark: Mark) -> list[tuple[bytes, bytes]] | None:
        """The ids of collections and segments (b"": the collection itself) that changed since a state; None where that
        is not known (any more), or there was no such state."""
        if mark[0] and self.all("SELECT token FROM commits WHERE revision = ?", mark[0]) != [(mark[1],)]:
            return None
        return self.all("SELECT DISTINCT collection_id, segment_id FROM changes WHERE revision > ?", mark[0])

    def one(self, statement: str, *values: object) -> Any:
        rows = self.all(statement, *values)
        return rows[0] if rows else None

    def all(self, statement: str, *values: object) -> list[Any]:
        with self._lock, postgres_errors():
            return self._current().execute(_translated(statement), values).fetchall()

    def close(self) -> None:
        self._closed = True
        with self._lock, self._watching:
            for db in (self._db, self._watch):
                if db is not None:
                    db.close()

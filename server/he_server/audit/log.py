"""A server's audit log. An entry is on the disk when `append` returns; one sync serves all who wait. docs/audit.md.

A failure of the disk ends the log until it is opened again: no entry, so no call, succeeds meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from he_engine.errors import DamagedDataError, ReadOnlyError, TamperedDataError, Unavailable
from he_engine.keys import RootKey
from he_server.audit.entry import FORMAT, MAX_LINE_BYTES, START, AuditEntry, Line, now, sealed_entry, to_json
from he_server.audit.heads import HEAD, Head, read_head, replace_file
from he_server.audit.keys import open_keys
from he_server.audit.reading import LOG, Reader
from he_server.storage import files
from he_server.storage.kek import KeyProvider

FOLDER = "audit"  #: in the data folder
OPERATORS = "audit/operators"  #: of commands on the server's machine, a log of its own, never sealed
HEAD_ENTRIES = 1000  #: after so many a head is signed,
HEAD_S = 60.0  #: or so long after the first that none covers

_log = logging.getLogger(__name__)


class AuditLog:
    """The log in a folder of its own, which is made if it is missing. Thread-safe; one process has it open.

    signer: of the log's heads, always the same. key: seals entries; None: it does not. Raises Unavailable (another
    process has it open, or the disk fails), TamperedDataError (another key signed it), DamagedDataError (lines that
    were on the disk are not as they were), LimitExceeded, ReadOnlyError.
    """

    def __init__(self, path: Path, signer: Ed25519PrivateKey, key: RootKey | None = None) -> None:
        self._folder, self._signer, self._key = path, signer, key
        self._log_id = signer.public_key().public_bytes_raw()
        self._state = threading.Condition()  # of the next three
        self._waiting: list[tuple[str, Future[int]]] = []
        self._failure = ""
        self._closing = False
        self._chain = threading.Lock()  # of the next four; held while lines are written and synced
        self._sequence, self._hash, self._end_bytes = -1, START, 0
        self._covered = -1  # the last line that a head covers
        with files.storage_errors("opening the audit log"):
            files.make_folder(path, 0o700)
            self._file = os.open(path / LOG, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._open()
        except BaseException:
            os.close(self._file)
            raise
        self._writer = threading.Thread(target=self._run, name="audit log", daemon=True)
        self._writer.start()

    # ---- entries -----------------------------------------------------------------------------------------------
    def append(self, entry: AuditEntry) -> None:
        """On the disk when it returns. Raises ReadOnlyError where the disk failed, now or before; Unavailable when the
        log is closed; InvalidInput for an entry that is too long."""
        self.submit(entry).result()

    def submit(self, entry: AuditEntry) -> Future[int]:
        """Its sequence number, when it is on the disk: a call may work meanwhile, and not answer. Raises as `append`,
        now or in the result."""
        written: Future[int] = Future()
        written.set_running_or_notify_cancel()  # nobody can cancel it
        with self._state:
            self.require_writable()
            self._waiting.append((entry.json(), written))
            self._state.notify()
        return written

    def require_writable(self) -> None:
        """Raises ReadOnlyError, Unavailable where no decision can be logged."""
        if self._failure:
            raise ReadOnlyError(self._failure)
        if self._closing:
            raise Unavailable("audit log: it is closed, as this server is shutting down")

    def head(self) -> Head:
        """A new one, of the last line that is on the disk. Raises ReadOnlyError, Unavailable."""
        with self._chain:
            self.require_writable()
            try:
                return self._sign()
            except BaseException as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Writes what waits, and signs a last head, unless the disk failed. Once is enough."""
        with self._state:
            self._closing = True
            self._state.notify()
        self._writer.join()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the thread that writes --------------------------------------------------------------------------------
    def _run(self) -> None:
        due_s, closing = float("inf"), False  # when a head is to be signed
        while not closing and not self._failure:
            with self._state:
                wait_s = None if due_s == float("inf") else max(0.0, due_s - time.monotonic())
                self._state.wait_for(lambda: self._waiting or self._closing, wait_s)
                waiting, self._waiting = self._waiting, []
                closing = self._closing
            with self._chain:
                try:
                    self._commit(waiting)
                    if self._sequence == self._covered:
                        due_s = float("inf")
                        continue
                    due_s = min(due_s, time.monotonic() + HEAD_S)
                    if closing or self._sequence - self._covered >= HEAD_ENTRIES or time.monotonic() >= due_s:
                        self._sign()
                        due_s = float("inf")
                except BaseException as error:
                    self._failed(error, waiting)

    def _commit(self, waiting: Sequence[tuple[str, Future[int]]]) -> None:
        first = self._sequence + 1
        self._write([("entry", content) for content, _ in waiting])
        for sequence, (_, written) in enumerate(waiting, first):
            written.set_result(sequence)

    def _failed(self, error: BaseException, waiting: Sequence[tuple[str, Future[int]]] = ()) -> ReadOnlyError:
        """No entry from now on; all that wait get the error."""
        _log.critical("audit log: it cannot be written; no call is answered until a restart", exc_info=error)
        failure = ReadOnlyError("audit log: it cannot be written; no call is answered until the server is restarted")
        with self._state:
            self._failure = str(failure)
            waiting, self._waiting = [*waiting, *self._waiting], []
        for _, written in waiting:
            if not written.done():
                written.set_exception(failure)
        return failure

    # ---- lines and heads ---------------------------------------------------------------------------------------
    def _write(self, contents: Sequence[tuple[str, str]]) -> None:
        """Kinds and contents of lines, synced together."""
        first, sequence, previous, raw = self._sequence + 1, self._sequence, self._hash, b""
        for kind, content in contents:
            sequence += 1
            if kind == "entry" and self._key is not None:
                kind, content = "sealed", sealed_entry(self._key, self._log_id, sequence, previous, content)
            line = Line.make(previous, sequence, first, kind, content)
            raw, previous = raw + line.raw, line.hash
        if raw:
            self._put(raw, self._end_bytes)
            self._sequence, self._hash, self._end_bytes = sequence, previous, self._end_bytes + len(raw)

    def _put(self, data: bytes, offset_bytes: int) -> None:
        """Synced."""
        with files.storage_errors("writing the audit log"):
            while data:
                written = os.pwrite(self._file, data, offset_bytes)
                data, offset_bytes = data[written:], offset_bytes + written
        files.sync(self._file)

    def _sign(self) -> Head:
        head = Head.sign(self._signer, self._sequence, self._end_bytes, self._hash)
        replace_file(self._folder / HEAD, head.json())
        self._covered = self._sequence
        return head

    # ---- opening -----------------------------------------------------------------------------------------------
    def _open(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable("audit log: another process has it open") from None
        for path in self._folder.glob("*" + files.TEMPORARY_SUFFIX):
            files.remove(path)
        head = read_head(self._folder / HEAD) if (self._folder / HEAD).exists() else None
        self._continue(self._signed(head), head.end_bytes if head else 0)
        if self._sequence < 0:
            self._write([("begin", to_json(format=FORMAT, log=self._log_id.hex(), time=now()))])
        with files.storage_errors("opening the audit log"):
            files.sync_folder(self._folder)
        self._sign()

    def _signed(self, head: Head | None) -> Line | None:
        """The line that the head covers. Raises TamperedDataError, DamagedDataError."""
        if head is None:
            return None
        if head.log_id != self._log_id:
            raise TamperedDataError("audit log: another key than this log's signed its head")
        start_bytes = max(0, head.end_bytes - MAX_LINE_BYTES)
        with files.storage_errors("reading the audit log"):
            raw = os.pread(self._file, head.end_bytes - start_bytes, start_bytes)
        try:
            line = Line.parse(raw[raw.rfind(b"\n", 0, -1) + 1 :])
            if start_bytes + len(raw) == head.end_bytes and (line.sequence, line.hash) == (head.sequence, head.hash):
                return line
        except TamperedDataError:
            pass
        raise DamagedDataError(
            f"audit log: line {head.sequence} is not where it was signed; `hesearch audit verify` says more"
        )

    def _continue(self, last: Line | None, from_bytes: int) -> None:
        """After the last sound line: what follows it is cut off if a crash may have left it, and a line says so."""
        reader = Reader(self._folder / LOG, last, from_bytes)
        for line in reader:
            if last is None and line.sequence:
                raise DamagedDataError("audit log: its head is missing; move the folder aside, and a new log is begun")
        if reader.problem and not reader.torn():
            raise DamagedDataError(f"audit log: {reader.problem}; `hesearch audit verify` says more")
        if reader.last:
            self._sequence, self._hash, self._end_bytes = reader.last.sequence, reader.last.hash, reader.end_bytes
        with files.storage_errors("cutting the audit log"):
            left = os.pread(self._file, os.fstat(self._file).st_size - self._end_bytes, self._end_bytes)
            os.ftruncate(self._file, self._end_bytes)
            # Anew, since what a failed sync left in memory alone would never reach the disk.
            self._put(os.pread(self._file, self._end_bytes - from_bytes, from_bytes), from_bytes)
        if left:
            digest = hashlib.sha256(left).hexdigest()
            self._write([("cut", to_json(bytes=len(left), sha256=digest, time=now()))])


def open_audit_log(data: Path, kek: KeyProvider | None = None, previous_kek: KeyProvider | None = None) -> AuditLog:
    """That of a data folder, which this process has locked; the operators' log gets its key. Raises as AuditLog, and
    InvalidInput (sealed, and no kek), WrongKeyError."""
    return AuditLog(data / FOLDER, *open_keys(data / FOLDER, kek, previous_kek, data / OPERATORS))

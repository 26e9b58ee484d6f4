"""The lines of an audit log, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from he_engine.errors import FormatVersionError, TamperedDataError
from he_engine.keys import RootKey
from he_server.audit.entry import FORMAT, MAX_LINE_BYTES, START, Line
from he_server.storage.files import storage_errors

LOG = "log"


class Reader:
    """An iterator over lines, as far as each continues the one before. Where it ends, `problem` says why line `next` is
    none; it is empty at the end of a sound log."""

    def __init__(self, path: Path, last: Line | None = None, end_bytes: int = 0) -> None:
        """From the start, or after the line `last`, which ends there."""
        self._path = path
        self.last = last
        self.end_bytes = end_bytes  #: of the lines so far
        self.problem = ""

    @property
    def next(self) -> int:
        return self.last.sequence + 1 if self.last else 0

    def __iter__(self) -> Iterator[Line]:
        for raw in self._rest():
            try:
                line = self._checked(raw)
            except TamperedDataError as error:
                self.problem = f"line {self.next}: {error}"
                return
            self.last, self.end_bytes = line, self.end_bytes + len(raw)
            yield line

    def _checked(self, raw: bytes) -> Line:
        line = Line.parse(raw)
        if line.sequence != self.next:
            raise TamperedDataError(f"in its place is line {line.sequence}")
        if line.previous != (self.last.hash if self.last else START):
            raise TamperedDataError("it does not continue the line before: one of the two was changed")
        return line

    def _rest(self) -> Iterator[bytes]:
        """Pieces of a line that is too long come as lines without an end."""
        with storage_errors("reading the audit log"), self._path.open("rb") as file:
            file.seek(self.end_bytes)
            while raw := file.readline(MAX_LINE_BYTES):
                yield raw

    def torn(self) -> bool:
        """What is no line may be what a crash left, or is being written: nothing after it says that it was synced."""
        for raw in self._rest():
            try:
                if Line.parse(raw).batch > self.next:
                    return False
            except TamperedDataError:
                continue
        return True


def log_id_of(first: Line) -> bytes:
    """Of line 0. Raises TamperedDataError, FormatVersionError."""
    fields = first.fields(b"", None) if first.kind == "begin" else {}
    if (version := fields.get("format", FORMAT)) != FORMAT:
        raise FormatVersionError(f"audit log: got format version {version!r}, expected {FORMAT}")
    try:
        return bytes.fromhex(fields["log"])
    except (KeyError, TypeError, ValueError):
        raise TamperedDataError("line 0: it begins no audit log") from None


def log_id(folder: Path) -> bytes:
    """Of the log in a folder; of one that does not begin as it should, empty."""
    try:
        for line in Reader(folder / LOG):
            return log_id_of(line)
    except TamperedDataError:
        pass
    return b""


def entries(folder: Path, key: RootKey | None) -> Iterator[dict[str, Any]]:
    """What each line says, with its `sequence` and `kind`. Raises InvalidInput (sealed, and no key), TamperedDataError
    where the chain is broken."""
    reader, log_id = Reader(folder / LOG), b""
    for line in reader:
        log_id = log_id or log_id_of(line)
        kind = "entry" if line.kind == "sealed" else line.kind
        yield {"sequence": line.sequence, "kind": kind, **line.fields(log_id, key)}
    if reader.problem and not reader.torn():
        raise TamperedDataError(f"audit log: {reader.problem}")

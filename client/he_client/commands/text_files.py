"""Files of texts, row by row: lines of text, .csv with a header, .jsonl. Cells that nobody changes stay as they are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from he_client.durable import file_errors, new_file
from he_client.files import MAX_CELL
from he_client.progress import progress_bar
from he_engine.errors import AlreadyExists, InvalidInput

Row = dict[str, Any]
TEXT = "text"  #: the one column of a file of lines


class _Format(Protocol):
    def read(self, lines: Iterator[str]) -> Iterator[Row]:
        """Raises ValueError for what is no such file."""

    def header(self) -> str: ...

    def row(self, row: Row) -> str: ...


class _Lines:
    def read(self, lines: Iterator[str]) -> Iterator[Row]:
        for line in lines:
            yield {TEXT: line.removesuffix("\n")}

    def header(self) -> str:
        return ""

    def row(self, row: Row) -> str:
        return f"{row[TEXT]}\n"


class _Csv:
    def __init__(self) -> None:
        self._columns: list[str] = []

    def read(self, lines: Iterator[str]) -> Iterator[Row]:
        csv.field_size_limit(MAX_CELL)
        reader = csv.reader(lines, strict=True)
        try:
            self._columns = next(reader, [])
            if not self._columns or len(set(self._columns)) != len(self._columns):
                raise ValueError("expected a header with every column once")
            for row in filter(None, reader):
                if len(row) != len(self._columns):
                    raise ValueError(f"got {len(row)} cells, expected {len(self._columns)}")
                yield dict(zip(self._columns, row, strict=True))
        except csv.Error:
            raise ValueError("not CSV") from None

    def header(self) -> str:
        return _cells(self._columns)

    def row(self, row: Row) -> str:
        return _cells(list(row.values()))


class _JsonLines:
    def read(self, lines: Iterator[str]) -> Iterator[Row]:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError("not JSON") from None
            if type(row) is not dict:
                raise ValueError("expected a JSON object")
            yield row

    def header(self) -> str:
        return ""

    def row(self, row: Row) -> str:
        return json.dumps(row) + "\n"  # in ASCII: other columns may have what is no Unicode


def _check(row: Row, column: str) -> None:
    if column not in row:
        raise ValueError(f"no column {column!r}")
    if row[column] is not None and type(row[column]) is not str:
        raise ValueError(f"column {column!r}: got {type(row[column]).__name__}, expected a text")
    (row[column] or "").encode()


def _cells(row: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(row)
    return out.getvalue()


FORMATS: dict[str, Callable[[], _Format]] = {".csv": _Csv, ".jsonl": _JsonLines}


class TextFile:
    """An open file of texts, and the new one that is made of it."""

    def __init__(self, source: Path, read: BinaryIO, write: BinaryIO, advance: Callable[[int], None]) -> None:
        self._format: _Format = FORMATS.get(source.suffix.lower(), _Lines)()
        self._source, self._read, self._write, self._advance = source, read, write, advance
        self._line = 0
        self._begun = False

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Each has these columns, which hold texts, or None (null, in .jsonl). Raises InvalidInput, naming the line."""
        rows = self._format.read(self._lines())
        while True:
            try:
                row = next(rows)
                for column in columns:
                    _check(row, column)
            except StopIteration:
                return
            except UnicodeError:
                raise InvalidInput(f"{self._source}: line {self._line}: not UTF-8 text") from None
            except ValueError as error:
                raise InvalidInput(f"{self._source}: line {self._line}: {error}") from None
            yield row

    def write(self, rows: Sequence[Row]) -> None:
        begin = "" if self._begun else self._format.header()
        self._write.write((begin + "".join(map(self._format.row, rows))).encode())
        self._begun = True

    def _lines(self) -> Iterator[str]:
        for raw in self._read:
            self._line += 1
            yield raw.decode()
            self._advance(len(raw))


def has_columns(source: Path) -> bool:
    return source.suffix.lower() in FORMATS


@contextmanager
def text_file(source: Path, target: Path, what: str) -> Iterator[TextFile]:
    """`target` is there when the block ends well, whole. Raises NotFound, AlreadyExists."""
    if target.exists():
        raise AlreadyExists(f"{target}: exists; it is never overwritten")
    with file_errors(source, "texts"):
        read = source.open("rb")
    with (
        read,
        new_file(target, "texts", replace=False) as write,
        progress_bar(None, source.stat().st_size, what, "B") as advance,
    ):
        yield TextFile(source, read, write, advance)

"""What lies where segments do and has no row: of servers that died, of uploads that a server is just making.

Nothing of it is damage. Servers remove it when it is old, so here it is only counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from he_engine.errors import HesearchError
from he_server.operate.fsck_rows import Rows, open_segment
from he_server.storage.catalogue_rows import Key, SegmentRecord
from he_server.storage.files import Listed, storage_errors
from he_server.storage.postgres_reader import PostgresReader


@dataclass(frozen=True, slots=True)
class Strays:
    """How many, and by this machine's clock how long the oldest has been there."""

    number: int
    total_bytes: int
    oldest_s: float


def count_strays(
    listed: Iterable[Listed],
    name_of: Callable[[SegmentRecord], str],
    rows: Rows,
    database: PostgresReader,
    now_s: float,
) -> Strays:
    """`listed` after the rows were read; what they do not name is looked up again, as it may have come since."""
    unnamed = []
    for one in listed:
        key = _key(one.name)
        record = rows.segments[key][0] if key in rows.segments else None
        if record is None or name_of(record) != one.name:
            unnamed.append(one)
    strays = [one for one in unnamed if _name_now(_key(one.name), name_of, rows, database) != one.name]
    oldest_s = max((now_s - one.modified_s for one in strays), default=0.0)
    return Strays(len(strays), sum(one.size_bytes for one in strays), max(oldest_s, 0.0))


def listed_files(segments: Path) -> Iterator[Listed]:
    """The files of a data folder, named as their places below its `segments`. Raises Unavailable."""
    for path in (path for folder in _within(segments) for path in _within(folder)):
        with storage_errors("looking at the data folder"):
            try:
                status = path.stat()
            except FileNotFoundError:  # it went meanwhile
                continue
        yield Listed(str(path.relative_to(segments)), status.st_mtime, status.st_size)


def _within(folder: Path) -> list[Path]:
    """Nothing where it went meanwhile, or is a file."""
    with storage_errors("looking at the data folder"):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def _key(name: str) -> Key:
    """Of COLLECTION_ID/SEGMENT_ID and more; one that no segment has, where it is no such name."""
    try:
        return bytes.fromhex(name[:32]), bytes.fromhex(name[33:97])
    except ValueError:
        return b"", b""


def _name_now(key: Key, name_of: Callable[[SegmentRecord], str], rows: Rows, database: PostgresReader) -> str:
    """What its newest row names; empty where it has none, or it is damaged."""
    if (cells := database.newest_row(key)) is None:
        return ""
    try:
        return name_of(open_segment(rows.key, key, cells[1])[0])
    except HesearchError:
        return ""

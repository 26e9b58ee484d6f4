"""Files of a backup, each read once: its digest is taken, all is checked that needs no key, and perhaps it is copied.

    a segment file that is not sealed    every byte: its header, its parts' digests, zeros between them
    one that is sealed                   its first page, and its length; what is sealed in it shows nothing

Damage stops no copy: it is as good as what it was made of, and evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from he_engine.engine import Buffer
from he_engine.errors import FormatVersionError, TamperedDataError
from he_server.operate.backup_list import CATALOGUE, Entry
from he_server.operate.fsck_catalogue import read_without_key
from he_server.operate.fsck_rows import Rows
from he_server.storage.files import PAGE_BYTES, NewFile, PlainFile
from he_server.storage.folder import place as place_of
from he_server.storage.sealed_file import Envelope
from he_server.storage.segment_file import verify

COPY_BYTES = 1 << 20
REPLACEMENT = ".new"  #: of the name, until the list that names the file is in its place

Progress = Callable[[int, int], None]  #: bytes done, of bytes in all


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reading of a file found."""

    entry: Entry
    damage: str  #: what is wrong with its content; empty: nothing that can be seen without a key


def seen(path: Path, place: str) -> Seen:
    """A file as it is; `place`: what it is in a data folder. Raises TamperedDataError where it cannot be read."""
    return _passed(path, place, lambda _: None)


def copied(source: Path, target: Path, incoming: Path, place: str) -> Seen:
    """A copy, synced, under its name; the name is durable when its folder is synced. Raises as `seen` and NewFile."""
    with NewFile(incoming) as new:
        found = _passed(source, place, new.append)
        new.sync()
        new.publish(target)
    return found


class _Passing:
    """A Source that is read from its start to its end, and hands on each byte once."""

    def __init__(self, path: Path, sink: Callable[[Buffer], None]) -> None:
        self._file = PlainFile(path)
        self._sink = sink
        self._digest = hashlib.sha256()
        self._passed_bytes = 0

    def size_bytes(self) -> int:
        return self._file.size_bytes()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = self._file.read(offset_bytes, length_bytes)
        new = memoryview(data)[max(0, self._passed_bytes - offset_bytes) :]
        self._digest.update(new)
        self._sink(new)
        self._passed_bytes += len(new)
        return data

    def rest(self) -> Entry:
        """Of the whole file."""
        while (left := self.size_bytes() - self._passed_bytes) > 0:
            self.read(self._passed_bytes, min(COPY_BYTES, left))
        return Entry(self._passed_bytes, self._digest.hexdigest())


def _passed(path: Path, place: str, sink: Callable[[Buffer], None]) -> Seen:
    file, damage = _Passing(path, sink), ""
    try:
        if place.startswith("segments/"):
            _check(file, place)
    except (TamperedDataError, FormatVersionError) as error:
        damage = f"{place}: {error}"
    return Seen(file.rest(), damage)


def _check(file: _Passing, place: str) -> None:
    """Raises TamperedDataError, FormatVersionError."""
    if PurePosixPath(place).suffix:
        envelope = Envelope.parse(file.read(0, PAGE_BYTES))
        file_id = envelope.file_id
        if (size := file.size_bytes()) != envelope.file_bytes:
            raise TamperedDataError(f"segment file: got {size} bytes, expected {envelope.file_bytes}")
    else:
        description = verify(file)
        file_id = (description.collection_id, description.segment_id, 0)
    if place_of(Path("segments"), file_id) != Path(place):
        raise TamperedDataError("segment file: it is another segment's")


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a backup or a restore."""

    files: int
    total_bytes: int
    copied_files: int
    copied_bytes: int
    sealed: bool  #: then only the first pages of segment files and SQLite's structure were checked
    damage: list[str]  #: what is wrong with what was copied, as far as it was checked


def summary(folder: Path, all_seen: Mapping[str, Seen], new: Iterable[Entry], unread: Iterable[str] = ()) -> Summary:
    """Of what is in `folder` now."""
    damage = [*unread, *(found.damage for found in all_seen.values() if found.damage)]
    try:
        rows = read_without_key(folder / CATALOGUE)
    except FormatVersionError as error:
        rows = Rows(problems=[f"{error}; it was not checked"])
    places = [str(place_of(Path("segments"), file_id)) for file_id in rows.file_ids]
    damage += [*rows.problems, *(f"{place}: it is missing" for place in places if place not in all_seen)]
    sealed = bool(rows.wrapped_key) or any(PurePosixPath(place).suffix for place in all_seen if place != CATALOGUE)
    all_sizes, new_sizes = [found.entry.length_bytes for found in all_seen.values()], [e.length_bytes for e in new]
    return Summary(len(all_sizes), sum(all_sizes), len(new_sizes), sum(new_sizes), sealed, damage)

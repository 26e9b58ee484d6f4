"""Copies of a data folder, made while a server uses it and without any key, and what brings one back.

    backup.lock             held while a backup is made; a folder with it is one for backups
    backup.json             what belongs to the backup; written last
    catalogue.sqlite        of one moment
    segments/…              every segment file of that moment, as in a data folder (he_server.folder)

A backup is a data folder of its own: `hesearch fsck` checks it, `hesearch serve` could serve it.

**One moment.** Which files the catalogue names cannot be read without the key, so all are taken. A server writes a file
before its row and removes it after its row, so while no row changes, every row's file is there. First all files are
linked into a folder of links, which costs nobody anything. Then the backup holds SQLite's write lock: no row changes.
Under it, it links what has come since, copies the catalogue, and lets go; a server's write waits that long, a few
milliseconds as a rule, and searches do not. The links stay whatever the server removes afterwards, and are copied in
peace.

**Incremental.** A name stands for a content that never changes. A file that the target has, of the same size and with
the same first page (which holds the digests or the salt of all the rest), is not copied again.

Before `backup.json` (he_server.backup_list) is in its place, nothing restores; it is the last thing renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from he_engine.errors import AlreadyExists, HesearchError, InvalidInput, NotFound, TamperedDataError, Unavailable
from he_server import files
from he_server.backup_list import CATALOGUE, Entry, copied, entry_of, read_list, write_list
from he_server.database import sqlite_errors
from he_server.files import PAGE_BYTES, PlainFile
from he_server.fsck import locked
from he_server.links import Links, linking

_LOCK = "backup.lock"
_WAIT_S = 60.0  #: for a server's write

Progress = Callable[[int, int], None]  #: bytes done, of bytes in all


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a backup or a restore."""

    files: int
    total_bytes: int
    copied_files: int
    copied_bytes: int


def backup(data: Path, target: Path, progress: Progress = lambda *_: None) -> Summary:
    """All of `data`, as it is at one moment, in `target`: an empty folder, a new one, or one with an earlier backup.

    Raises NotFound (no data folder), InvalidInput (`target` is something else, or the two lie in each other),
    Unavailable, LimitExceeded, ReadOnlyError; TamperedDataError where the catalogue cannot be read.
    """
    if not (data / CATALOGUE).is_file():
        raise NotFound("data folder: there is none, or it has no catalogue")
    inner, outer = target.resolve(), data.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InvalidInput("backup: the data folder and the target lie in each other")
    with _target(target), linking(data) as links:
        incoming = target / "incoming"
        with files.storage_errors("making a folder"):
            for folder in (incoming, target / "segments"):
                files.make_folder(folder, 0o700)
            for path in incoming.iterdir():
                files.remove(path)
        places = _one_moment(data, links, incoming / CATALOGUE)
        return _Copying(target, progress).of(links.folder, places)


# ---- one moment ----------------------------------------------------------------------------------------------
def _one_moment(data: Path, links: Links, copy: Path) -> list[str]:
    """Links all segment files and copies the catalogue; the links' places."""
    links.update()
    uri = f"{(data / CATALOGUE).absolute().as_uri()}?mode=rw"
    with (
        sqlite_errors(),
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)) as held,
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        held.execute("BEGIN IMMEDIATE")
        places = links.update()
        source.backup(target)
        held.execute("ROLLBACK")
    copy.chmod(0o600)
    return places


@contextlib.contextmanager
def _target(target: Path) -> Iterator[None]:
    """Made if it is missing, and locked: one backup at a time."""
    if target.exists() and not target.is_dir():
        raise InvalidInput("backup: the target is not a folder")
    with files.storage_errors("making the target"):
        files.make_folder(target, 0o700)
        if any(target.iterdir()) and not (target / _LOCK).exists():
            raise InvalidInput("backup: the target is neither empty nor an earlier backup")
        descriptor = os.open(target / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable("backup: another one is being made there") from None
        with locked(target, make=False):
            yield
    finally:
        os.close(descriptor)


# ---- copies --------------------------------------------------------------------------------------------------
class _Copying:
    """Into a target whose `incoming` holds the catalogue."""

    def __init__(self, target: Path, progress: Progress) -> None:
        self._target = target
        self._incoming = target / "incoming"
        self._progress = progress
        try:
            self._before = read_list(target)
        except HesearchError:  # a first one, or one that was interrupted
            self._before = {}

    def of(self, links: Path, places: list[str]) -> Summary:
        """Segment files first; the catalogue and the list get their names when all else is on the disk."""
        sources = {place: links / place.removeprefix("segments/") for place in places}
        with files.storage_errors("looking at segment files"):
            all_bytes = sum(path.stat().st_size for path in sources.values())
        entries: dict[str, Entry] = {}
        new: list[Entry] = []
        done_bytes = 0
        for place, source in sources.items():
            if (entry := self._kept(place, source)) is None:
                files.make_folder((self._target / place).parent, 0o700)
                new.append(entry := copied(source, self._target / place, self._incoming))
            entries[place] = entry
            self._progress(done_bytes := done_bytes + entry.length_bytes, all_bytes)
        with files.storage_errors("syncing"):
            for folder in (self._target / "segments").iterdir():
                files.sync_folder(folder)
        for suffix in ("-wal", "-shm"):  # of a server that had the backup as its data folder
            files.remove(self._target / (CATALOGUE + suffix))
        new.append(copied(self._incoming / CATALOGUE, self._target / CATALOGUE, self._incoming))
        entries[CATALOGUE] = new[-1]
        files.sync_folder(self._target)
        write_list(self._target, entries, time.time())
        self._clean(entries)
        return _summary(entries.values(), new)

    def _kept(self, place: str, source: Path) -> Entry | None:
        """Of a file that the target has."""
        there, wanted = PlainFile(self._target / place), PlainFile(source)
        if not there.path.exists() or (size := there.size_bytes()) != wanted.size_bytes():
            return None
        if there.read(0, min(PAGE_BYTES, size)) != wanted.read(0, min(PAGE_BYTES, size)):
            return None
        before = self._before.get(place)
        return before if before and before.length_bytes == size else entry_of(there.path)

    def _clean(self, entries: Mapping[str, Entry]) -> None:
        """What no longer belongs to it."""
        with contextlib.suppress(OSError):
            for path in self._incoming.iterdir():
                files.remove(path)
            for folder in (self._target / "segments").iterdir():
                for path in folder.iterdir():
                    if str(path.relative_to(self._target)) not in entries:
                        files.remove(path)
                if not any(folder.iterdir()):
                    folder.rmdir()


def _summary(entries: Iterable[Entry], new: Iterable[Entry]) -> Summary:
    sizes, new_sizes = ([entry.length_bytes for entry in some] for some in (entries, new))
    return Summary(len(sizes), sum(sizes), len(new_sizes), sum(new_sizes))


# ---- restoring -----------------------------------------------------------------------------------------------
def restore(source: Path, data: Path, progress: Progress = lambda *_: None) -> Summary:
    """A data folder as it was when the backup `source` was made, every byte checked; `data` is new or empty, and stays
    empty where that fails.

    Raises NotFound (no backup, or one that was never completed), AlreadyExists (`data` is not empty),
    TamperedDataError, FormatVersionError, LimitExceeded, Unavailable, ReadOnlyError.
    """
    entries = read_list(source)
    with files.storage_errors("making the data folder"):
        files.make_folder(data, 0o700)
        if any(data.iterdir()):
            raise AlreadyExists("restore: the data folder is not empty; restore into a new one")
    with locked(data, make=True):
        try:
            _restore(source, data, entries, progress)
        except BaseException:
            for name in ("segments", "incoming"):
                shutil.rmtree(data / name, ignore_errors=True)
            for name in (CATALOGUE, "lock"):
                files.remove(data / name)
            raise
    return _summary(entries.values(), entries.values())


def _restore(source: Path, data: Path, entries: Mapping[str, Entry], progress: Progress) -> None:
    """The catalogue last: a server starts with no folder that has segments and lacks it."""
    incoming, done_bytes = data / "incoming", 0
    for folder in (incoming, data / "segments"):
        files.make_folder(folder, 0o700)
    all_bytes = sum(entry.length_bytes for entry in entries.values())
    for place in sorted(entries, key=lambda place: (place == CATALOGUE, place)):
        target = data / place
        if place == CATALOGUE:
            with files.storage_errors("syncing"):
                for folder in (data / "segments").iterdir():
                    files.sync_folder(folder)
        else:
            files.make_folder(target.parent, 0o700)
        if copied(source / place, target, incoming) != entries[place]:
            raise TamperedDataError(f"backup: {place} does not match its digest")
        progress(done_bytes := done_bytes + entries[place].length_bytes, all_bytes)
    files.sync_folder(data)

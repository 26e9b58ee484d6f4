"""Copies of a data folder, made while a server uses it and without any key, and what brings one back.

    backup.lock             held while a backup is made; a folder with it is one for backups
    backup.json             what belongs to the backup
    catalogue.sqlite        of one moment
    segments/…              every segment file of that moment, as in a data folder (he_server.storage.folder)
    audit/…                 the audit logs, a little longer than at that moment

`hesearch fsck` checks a backup as it checks a data folder; nothing else may open it, so that it stays what it was.

**One moment.** Which files the catalogue names cannot be read without the key, so all are taken. A server writes a file
before its row and removes it after its row, so while no row changes, every row's file is there. First all files are
linked into a folder of links, which costs nobody anything. Then the backup holds SQLite's write lock: no row changes.
Under it, it links what has come since, copies the catalogue, and lets go; a server's write waits that long, a few
milliseconds as a rule, and searches do not. The links stay whatever the server removes afterwards, and are copied in
peace.

**Incremental.** A name stands for a content that never changes. A file that the target has, of the same size and with
the same first page (which holds the digests or the salt of all the rest), is read, and is not copied again where it is
still what was copied: its own digests say so, or its earlier entry in the list, or else the data folder's file.

**Damage** that can be seen without the key (he_server.operate.backup_files) is copied, and told. What only the key
shows, `hesearch fsck` finds in the backup.

Before `backup.json` (he_server.operate.backup_list) is in its place, nothing restores, or the earlier backup does. What
it replaces waits as NAME.new until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from he_engine.errors import HesearchError, InvalidInput, NotFound, TamperedDataError, Unavailable
from he_server.operate.backup_files import REPLACEMENT, Progress, Seen, Summary, copied, seen, summary
from he_server.operate.backup_list import AUDIT, CATALOGUE, LOCK, Entry, audit_folders, read_list, write_list
from he_server.operate.fsck import locked
from he_server.storage import files
from he_server.storage.database import sqlite_errors
from he_server.storage.files import PAGE_BYTES, PlainFile
from he_server.storage.folder import require_own_catalogue
from he_server.storage.links import Links, linking

_WAIT_S = 60.0  #: for a server's write


def backup(data: Path, target: Path, progress: Progress = lambda *_: None) -> Summary:
    """All of `data`, as it is at one moment, in `target`: an empty folder, a new one, or one with an earlier backup.

    Raises NotFound (no data folder), InvalidInput (its catalogue is in PostgreSQL, `target` is something else, or the
    two lie in each other), Unavailable, LimitExceeded, ReadOnlyError; TamperedDataError where the catalogue cannot be
    read.
    """
    require_own_catalogue(data)
    if not (data / CATALOGUE).is_file():
        raise NotFound("data folder: there is none, or it has no catalogue")
    inner, outer = target.resolve(), data.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InvalidInput("backup: the data folder and the target lie in each other")
    with files.storage_errors("copying"), _target(target), linking(data) as links:
        incoming = target / "incoming"
        with files.storage_errors("making a folder"):
            for folder in (incoming, target / "segments"):
                files.make_folder(folder, 0o700)
            for path in incoming.iterdir():
                files.remove(path)
        places = _one_moment(data, links, incoming / CATALOGUE)
        return _Copying(target, progress).of(links.folder, places, data)


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
        if any(target.iterdir()) and not (target / LOCK).exists():
            raise InvalidInput("backup: the target is neither empty nor an earlier backup")
        descriptor = os.open(target / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        files.sync_folder(target)  # what has anything else in it and lacks this is refused
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable("backup: another one is being made there") from None
        with locked(target, "backup: a server has the target open; stop it, or choose another target", make=False):
            yield
    finally:
        os.close(descriptor)


# ---- copies --------------------------------------------------------------------------------------------------
class _Copying:
    """Into a target whose `incoming` holds the catalogue.

    What replaces a file that the target has waits beside it as NAME.new until the list that names it is in its place.
    """

    def __init__(self, target: Path, progress: Progress) -> None:
        self._target = target
        self._incoming = target / "incoming"
        self._progress = progress
        try:
            self._before = read_list(target)
        except HesearchError:  # a first one, or one that was interrupted
            self._before = {}
        self._settle(self._before)
        self._new: list[Entry] = []
        self._unread: list[str] = []

    def of(self, links: Path, places: list[str], data: Path) -> Summary:
        """Segment files first; the list gets its name when all else is on the disk."""
        sources = {place: links / place.removeprefix("segments/") for place in places}
        with files.storage_errors("looking at segment files"):
            all_bytes = sum(path.stat().st_size for path in sources.values())
        all_seen: dict[str, Seen] = {}
        done_bytes = 0
        for place, source in sources.items():
            if found := self._taken(place, source):
                all_seen[place] = found
                self._progress(done_bytes := done_bytes + found.entry.length_bytes, all_bytes)
        for place in AUDIT:
            if (data / place).exists():
                all_seen[place] = self._copied(place, data / place)
        all_seen[CATALOGUE] = self._copied(CATALOGUE, self._incoming / CATALOGUE)
        self._sync()
        entries = {place: found.entry for place, found in all_seen.items()}
        write_list(self._target, entries, time.time())
        self._settle(entries)
        self._clean(entries)
        return summary(self._target, all_seen, self._new, self._unread)

    def _taken(self, place: str, source: Path) -> Seen | None:
        """None: it cannot be read, and the target does not have it."""
        there = self._there(place)
        try:
            if there and self._same(place, there, source):
                return there
            return self._copied(place, source)
        except TamperedDataError as error:
            self._unread.append(f"{place}: {error}; {'the earlier copy was kept' if there else 'it was left out'}")
            return there

    def _there(self, place: str) -> Seen | None:
        """A file that the target has, and that is what was copied, as far as that can be seen."""
        if not (path := self._target / place).exists():
            return None
        try:
            found = seen(path, place)
        except TamperedDataError:
            return None
        return None if found.damage or self._before.get(place) not in (None, found.entry) else found

    def _same(self, place: str, there: Seen, source: Path) -> bool:
        """Raises TamperedDataError where the source cannot be read."""
        head_bytes = min(PAGE_BYTES, there.entry.length_bytes)
        if PlainFile(source).size_bytes() != there.entry.length_bytes:
            return False
        if PlainFile(source).read(0, head_bytes) != PlainFile(self._target / place).read(0, head_bytes):
            return False
        known = place in self._before or not PurePosixPath(place).suffix  # its own digests are sealed in it
        return known or seen(source, place).entry == there.entry

    def _copied(self, place: str, source: Path) -> Seen:
        path = self._target / place
        files.make_folder(path.parent, 0o700)
        target = path.with_name(path.name + REPLACEMENT) if path.exists() else path
        found = copied(source, target, self._incoming, place)
        self._new.append(found.entry)
        return found

    def _settle(self, entries: Mapping[str, Entry]) -> None:
        """What the list names gets its name; other replacements are of a backup that was interrupted, and go."""
        for path in [
            found
            for depth in ("*", "audit/*", "audit/operators/*", "segments/*/*")
            for found in self._target.glob(depth + REPLACEMENT)
        ]:
            named = path.with_name(path.name.removesuffix(REPLACEMENT))
            place = str(named.relative_to(self._target))
            with files.storage_errors("naming a file"):
                if place in entries and seen(path, place).entry == entries[place]:
                    path.rename(named)
                else:
                    path.unlink()
        for suffix in ("-wal", "-shm"):  # of a server that had the backup as its data folder
            files.remove(self._target / (CATALOGUE + suffix))
        self._sync()

    def _sync(self) -> None:
        with files.storage_errors("syncing"):
            for folder in (*(self._target / "segments").iterdir(), *audit_folders(self._target), self._target):
                files.sync_folder(folder)

    def _clean(self, entries: Mapping[str, Entry]) -> None:
        """What no longer belongs to it."""
        with contextlib.suppress(OSError):
            for pattern in ("incoming/*", "audit/*", "audit/operators/*", "segments/*/*"):
                for path in self._target.glob(pattern):
                    if str(path.relative_to(self._target)) not in entries:
                        files.remove(path)
            for folder in (self._target / "segments").iterdir():
                if not any(folder.iterdir()):
                    folder.rmdir()

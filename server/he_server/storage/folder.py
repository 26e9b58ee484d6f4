"""The data folder: who owns it, where files are in it, and what a crash may have left there.

    lock                                 held by the one server that uses the folder
    catalogue.sqlite (-wal, -shm)        he_server.storage.catalogue_file
    catalogue.id                         what the catalogue in PostgreSQL that it has instead knows, too
    objects.id                           the same, where segments are copies of those on object storage
    incoming/*.part                      segments on their way; removed at every start
    segments/COLLECTION_ID/SEGMENT_ID    he_server.storage.segment_file; both ids in hexadecimal
    segments/COLLECTION_ID/SEGMENT_ID.G  he_server.storage.sealed_file, under the data key of generation G
    audit/log, head, keys                he_server.audit.log; those of operators' commands in audit/operators/
    operators.json                       he_server.access.operators
    catalogue.sqlite.new                 of he_server.operate.fsck_repair; removed at every start; so are its -wal, -shm
    backing-up-*                         he_server.storage.links; those of backups that died are removed at every start

No name in it comes from a client, and all of it is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from he_engine.errors import InvalidInput, TamperedDataError, Unavailable
from he_server.operate.backup_list import LIST, LOCK
from he_server.storage import files
from he_server.storage.catalogue_rows import FileId
from he_server.storage.links import leftover_links
from he_server.storage.pins import Pins

CATALOGUE_ID, OBJECTS_ID = "catalogue.id", "objects.id"


def place(segments: Path, file_id: FileId) -> Path:
    """Where the file of a segment is."""
    collection_id, segment_id, generation = file_id
    return segments / collection_id.hex() / (segment_id.hex() + (f".{generation}" if generation else ""))


def require_no_backup(root: Path) -> None:
    """Raises InvalidInput for a backup: what changes one makes it useless."""
    if (root / LIST).exists() or (root / LOCK).exists():
        raise InvalidInput("data folder: this is a backup; `hesearch restore` makes a data folder of it")


def require_own_catalogue(root: Path, hint: str = "") -> None:
    """Raises InvalidInput where the catalogue is in PostgreSQL: what knows only files must not judge the segments.
    hint: what to do instead."""
    if (root / CATALOGUE_ID).exists() or (root / OBJECTS_ID).exists():
        raise InvalidInput(
            f"catalogue: that of this data folder is in PostgreSQL, where --catalogue of the server says{hint}"
        )


def known_id(root: Path, name: str) -> bytes:
    """What CATALOGUE_ID or OBJECTS_ID of a folder has; empty where it has none. Raises InvalidInput where it has what
    belongs to the other kinds of folder, TamperedDataError."""
    for other in {CATALOGUE_ID, OBJECTS_ID, "catalogue.sqlite"} - {name}:
        if (root / other).exists():
            raise InvalidInput(f"data folder: it has {other}: catalogue or segments are elsewhere than said here")
    path = root / name
    if not path.exists():
        return b""
    with files.storage_errors("looking at the data folder"):
        content = path.read_text(errors="replace")
    if not re.fullmatch("[0-9a-f]{32}", content):
        raise TamperedDataError(f"data folder: {name} is damaged: expected 32 hexadecimal digits")
    return bytes.fromhex(content)


def unfinished_catalogues(root: Path) -> list[Path]:
    """What a repair that was killed left of a new one."""
    return sorted(root.glob("catalogue.sqlite.new*"))


class Folder:
    """Locked while it is open. Raises Unavailable if another server has it open, or it cannot be made; InvalidInput if
    it is a backup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.segments = root / "segments"
        self.catalogue = root / "catalogue.sqlite"
        require_no_backup(root)
        with files.storage_errors("making the data folder"):
            for path in (root, self.incoming, self.segments):
                files.make_folder(path, 0o700)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise Unavailable(
                f"data folder: another server (process {owner}) has it open; one folder serves one server"
            ) from None
        try:
            with files.storage_errors("making the data folder"):
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(self._lock)
            raise
        self._durable: set[Path] = set()  # folders of collections; they stay until this closes
        self._making = threading.Lock()

    def require_catalogue(self) -> None:
        """Raises TamperedDataError where it is gone: with a new one, all segments would soon be taken for garbage.
        InvalidInput where it is in PostgreSQL."""
        require_own_catalogue(self.root)
        with files.storage_errors("looking at the data folder"):
            made = self.catalogue.exists() and self.catalogue.stat().st_size
            if not made and self.has_segments:
                raise TamperedDataError("data folder: it has segments and no catalogue; restore a backup")

    def catalogue_id(self) -> bytes:
        """16 random bytes that a catalogue in PostgreSQL must know, made at the first start with one. Raises
        InvalidInput where the folder has a catalogue of its own, or is one of object storage."""
        return self._id(CATALOGUE_ID, secrets.token_bytes(16))

    def require_objects(self, place_id: bytes) -> None:
        """Raises InvalidInput where this folder has segments that are not those of that object storage."""
        if self._id(OBJECTS_ID, place_id) != place_id:
            raise InvalidInput("segments: this data folder belongs to other object storage")

    def _id(self, name: str, new: bytes) -> bytes:
        """What the file of that name has, made where it is missing."""
        if known := known_id(self.root, name):
            return known
        with files.NewFile(self.incoming) as file:
            file.append(new.hex().encode())
            file.sync()
            file.publish(self.root / name)
        self.sync()
        return new

    @property
    def has_segments(self) -> bool:
        with files.storage_errors("looking at the data folder"):
            return any(self.segments.glob("*/*"))

    def path(self, file_id: FileId) -> Path:
        return place(self.segments, file_id)

    def make_place(self, file_id: FileId) -> None:
        """The collection's folder, durably: one that is there may have been made by a call that has yet to sync."""
        folder = self.path(file_id).parent
        with self._making, files.storage_errors("making a folder"):
            if folder not in self._durable:
                folder.mkdir(mode=0o700, exist_ok=True)
                files.sync_folder(self.segments)
                self._durable.add(folder)

    def sync_place(self, file_id: FileId) -> None:
        """Makes the name of a segment file durable."""
        with files.storage_errors("syncing"):
            files.sync_folder(self.path(file_id).parent)

    def sync(self) -> None:
        with files.storage_errors("syncing"):
            files.sync_folder(self.root)

    def clean_incoming(self) -> None:
        """Removes what was on its way when a server, a repair or a backup died."""
        with files.storage_errors("cleaning the data folder"):
            for path in (*self.incoming.iterdir(), *unfinished_catalogues(self.root)):
                files.remove(path)
            for links in leftover_links(self.root):
                shutil.rmtree(links, ignore_errors=True)

    def forget(self, collection_id: bytes) -> None:
        """The collection was dropped: its folder goes, now if it is empty."""
        folder = self.segments / collection_id.hex()
        with self._making, contextlib.suppress(OSError):
            self._durable.discard(folder)
            folder.rmdir()

    def strays(self, wanted: Iterable[FileId]) -> list[Path]:
        """All below `segments` that is not the file of one of these segments."""
        paths = {self.path(file_id) for file_id in wanted}
        with files.storage_errors("looking at the data folder"):
            return [path for path in self.segments.glob("*/*") if path not in paths]

    def clean(self, wanted: Iterable[FileId], collections: Iterable[bytes], before_s: float, in_use: Pins) -> None:
        """Removes strays that were last written before that time (their rows were removed, or never written), but
        those whose reader removes them; and the empty folders of collections that are not among these."""
        used = {self.path(file_id) for file_id in in_use.ids()}
        for path in self.strays(wanted):
            with contextlib.suppress(OSError):
                if path not in used and path.stat().st_mtime < before_s:
                    path.unlink()
        kept = {collection_id.hex() for collection_id in collections}
        with self._making, files.storage_errors("cleaning the data folder"):
            for folder in self.segments.iterdir():
                if folder.name not in kept and folder not in self._durable:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # where it is empty

    def close(self) -> None:
        """Once is enough: a second close of the number would be that of another file."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)

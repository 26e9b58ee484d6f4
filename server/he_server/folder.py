"""The data folder: who owns it, where files are in it, and what a crash may have left there.

    lock                                 held by the one server that uses the folder
    catalogue.sqlite (-wal, -shm)        he_server.catalogue
    incoming/*.part                      segments on their way; removed at every start
    segments/COLLECTION_ID/SEGMENT_ID    he_server.segment_file; both ids in hexadecimal

No name in it comes from a client, and all of it is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from he_engine.errors import Unavailable
from he_server import files
from he_server.catalogue import Key


class Folder:
    """Locked while it is open. Raises Unavailable if another server has it open, or it cannot be made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.segments = root / "segments"
        self.catalogue = root / "catalogue.sqlite"
        with files.storage_errors("making the data folder"):
            for path in (self.incoming, self.segments):
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
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._durable: set[Path] = set()  # folders of collections

    def path(self, key: Key) -> Path:
        collection_id, segment_id = key
        return self.segments / collection_id.hex() / segment_id.hex()

    def make_place(self, key: Key) -> None:
        """The collection's folder, durably: one that is there may have been made by a call that has yet to sync."""
        folder = self.path(key).parent
        if folder in self._durable:
            return
        with files.storage_errors("making a folder"):
            folder.mkdir(mode=0o700, exist_ok=True)
            files.sync_folder(self.segments)
        self._durable.add(folder)

    def sync_place(self, key: Key) -> None:
        """Makes the name of a segment file durable."""
        with files.storage_errors("syncing"):
            files.sync_folder(self.path(key).parent)

    def sync(self) -> None:
        with files.storage_errors("syncing"):
            files.sync_folder(self.root)

    def clean(self, keys: Iterable[Key]) -> None:
        """Removes all that is not the file of one of these segments: what was under way when a server died."""
        wanted = {self.path(key) for key in keys}
        with files.storage_errors("cleaning the data folder"):
            for path in self.incoming.iterdir():
                files.remove(path)
            for folder in filter(Path.is_dir, self.segments.iterdir()):
                for path in folder.iterdir():
                    if path not in wanted:
                        files.remove(path)
                with contextlib.suppress(OSError):
                    folder.rmdir()  # where it is empty

    def close(self) -> None:
        """Once is enough: a second close of the number would be that of another file."""
        descriptor, self._lock = self._lock, -1
        if descriptor >= 0:
            os.close(descriptor)

"""Segment files of a data folder under a second name, so that they stay while a server removes them.

The links lie in a folder of their own in the data folder (a link cannot leave its file system), locked by the backup
that made it; one that nobody has locked is left over from a backup that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from he_server.operate.backup_list import PLACE
from he_server.storage import files

_PREFIX = "backing-up-"


class Links:
    """In one folder. Used by one thread."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder = folder
        self._segments = data / "segments"
        self._inodes: dict[str, int] = {}  # by place

    def update(self) -> list[str]:
        """Links what is not linked yet, or has been replaced; the places of what is there now, sorted."""
        found = []
        with files.storage_errors("linking segment files"):
            for folder in self._segments.iterdir():
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                    found += [place for entry in entries if self._linked(entry, place := f"{folder.name}/{entry.name}")]
        return sorted(f"segments/{place}" for place in found)

    def _linked(self, entry: os.DirEntry[str], place: str) -> bool:
        """False where it is no segment file, or the server removed it just now."""
        if self._inodes.get(place) == entry.inode():
            return True
        if not PLACE.fullmatch(f"segments/{place}"):
            return False
        link = self.folder / place
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            os.link(entry.path, link)
        except FileNotFoundError:
            return False
        self._inodes[place] = link.stat().st_ino
        return True


@contextlib.contextmanager
def linking(data: Path) -> Iterator[Links]:
    """A folder for links, locked, so that nobody takes it for a leftover."""
    for left in leftover_links(data):
        shutil.rmtree(left, ignore_errors=True)
    with files.storage_errors("making a folder"):
        while True:
            links = data / (_PREFIX + secrets.token_hex(8))
            links.mkdir(0o700)
            with _lock(links, fcntl.LOCK_EX):
                if not links.exists():  # another backup was faster, and took it for a leftover
                    continue
                try:
                    yield Links(data, links)
                finally:
                    shutil.rmtree(links, ignore_errors=True)
                return


def leftover_links(data: Path) -> Iterator[Path]:
    """Folders of links whose backup has died; each locked until the next is asked for."""
    for links in sorted(data.glob(_PREFIX + "*")):
        with contextlib.suppress(OSError), _lock(links, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield links


@contextlib.contextmanager
def _lock(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)

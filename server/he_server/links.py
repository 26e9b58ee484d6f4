"""Segment files of a data folder under a second name, so that they stay while a server removes them.

The links lie in a folder of their own in the data folder (a link cannot leave its file system), locked by the backup that
made it; one that nobody has locked is left over from a backup that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from he_server import files
from he_server.backup_list import PLACE

_PREFIX = "backing-up-"


def link_segments(data: Path, links: Path) -> list[str]:
    """Links what is not linked yet, or has been replaced; the places of what is there now."""
    found = []
    with files.storage_errors("linking segment files"):
        for folder in (data / "segments").iterdir():
            if not folder.is_dir():
                continue
            (links / folder.name).mkdir(exist_ok=True)
            with os.scandir(folder) as entries:
                for entry in entries:
                    place, link = f"segments/{folder.name}/{entry.name}", links / folder.name / entry.name
                    if not PLACE.fullmatch(place):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed just now
                        if link.exists() and link.stat().st_ino != entry.inode():
                            link.unlink()
                        if not link.exists():
                            os.link(entry.path, link)
                        found.append(place)
    return sorted(found)


@contextlib.contextmanager
def linking(data: Path) -> Iterator[Path]:
    """A folder for links, locked, so that nobody takes it for a leftover."""
    _remove_leftovers(data)
    links = data / (_PREFIX + secrets.token_hex(8))
    with files.storage_errors("making a folder"):
        links.mkdir(0o700)
        descriptor = os.open(links, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)
        os.close(descriptor)


def leftover_links(data: Path) -> list[Path]:
    """Folders of links whose backup has died."""
    found = []
    for links in data.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(links, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(links)
            finally:
                os.close(descriptor)
    return found


def _remove_leftovers(data: Path) -> None:
    for links in leftover_links(data):
        shutil.rmtree(links, ignore_errors=True)

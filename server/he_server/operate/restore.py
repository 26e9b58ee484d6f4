"""A data folder made of a backup (he_server.operate.backup)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from he_engine.errors import AlreadyExists, TamperedDataError
from he_server.operate.backup_files import REPLACEMENT, Progress, Seen, Summary, copied, summary
from he_server.operate.backup_list import CATALOGUE, Entry, audit_folders, read_list
from he_server.operate.fsck import locked
from he_server.storage import files


def restore(source: Path, data: Path, progress: Progress = lambda *_: None) -> Summary:
    """A data folder as it was when the backup `source` was made: every byte is the one that was copied then. What was
    damaged before is told (see Summary). `data` is new or empty, and stays empty where that fails.

    Raises NotFound (no backup, or one that was never completed), AlreadyExists (`data` is not empty),
    TamperedDataError, FormatVersionError, LimitExceeded, Unavailable, ReadOnlyError.
    """
    entries = read_list(source)
    with files.storage_errors("making the data folder"):
        files.make_folder(data, 0o700)
        if any(data.iterdir()):
            raise AlreadyExists("restore: the data folder is not empty; restore into a new one")
    busy = "restore: a server has the data folder open; stop it"
    with files.storage_errors("restoring"), locked(data, busy, make=True):
        try:
            all_seen = _restore(source, data, entries, progress)
            return summary(data, all_seen, entries.values())
        except BaseException:
            for name in ("segments", "incoming", "audit"):
                shutil.rmtree(data / name, ignore_errors=True)
            for name in (CATALOGUE, "lock"):
                files.remove(data / name)
            raise


def _restore(source: Path, data: Path, entries: Mapping[str, Entry], progress: Progress) -> dict[str, Seen]:
    """The catalogue last: a server starts with no folder that has segments and lacks it."""
    incoming, done_bytes = data / "incoming", 0
    all_seen: dict[str, Seen] = {}
    for folder in (incoming, data / "segments"):
        files.make_folder(folder, 0o700)
    all_bytes = sum(entry.length_bytes for entry in entries.values())
    for place in sorted(entries, key=lambda place: (place == CATALOGUE, place)):
        target = data / place
        if place == CATALOGUE:
            with files.storage_errors("syncing"):
                for folder in (*(data / "segments").iterdir(), *audit_folders(data)):
                    files.sync_folder(folder)
        else:
            files.make_folder(target.parent, 0o700)
        found = copied(source / place, target, incoming, place)
        if found.entry != entries[place] and (replacement := source / (place + REPLACEMENT)).exists():
            found = copied(replacement, target, incoming, place)
        if found.entry != entries[place]:
            raise TamperedDataError(f"backup: {place} does not match its digest")
        all_seen[place] = found
        progress(done_bytes := done_bytes + entries[place].length_bytes, all_bytes)
    files.sync_folder(data)
    return all_seen

"""The list of what belongs to a backup, `backup.json`, and files copied with their digests.

    {"files": {place: {"bytes": n, "sha256": hex}}, "format": 1, "made_s": Unix time, "sha256": hex}

The last is of all the rest as JSON with sorted keys and no spaces. A place is `catalogue.sqlite` or that of a segment
file in a data folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_engine.errors import FormatVersionError, NotFound, TamperedDataError
from he_server import files
from he_server.files import NewFile, PlainFile

FORMAT = 1
CATALOGUE, LIST = "catalogue.sqlite", "backup.json"
PLACE = re.compile(r"catalogue\.sqlite|segments/[0-9a-f]{32}/[0-9a-f]{64}(\.[1-9][0-9]{0,9})?")
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    length_bytes: int
    sha256: str  #: hexadecimal


def write_list(target: Path, entries: Mapping[str, Entry], made_s: float) -> None:
    """Durably, in place of an earlier one."""
    listed = {place: {"bytes": entry.length_bytes, "sha256": entry.sha256} for place, entry in entries.items()}
    content: dict[str, Any] = {"format": FORMAT, "made_s": made_s, "files": listed}
    with NewFile(target / "incoming") as file:
        file.append(json.dumps(content | {"sha256": digest(content)}, sort_keys=True, indent=1).encode())
        file.sync()
        file.publish(target / LIST)
    files.sync_folder(target)


def read_list(backup: Path) -> dict[str, Entry]:
    """Raises NotFound where there is none, TamperedDataError, FormatVersionError."""
    path = backup / LIST
    if not path.is_file():
        raise NotFound("backup: it has no backup.json, so it is none, or was never completed")
    try:
        with files.storage_errors("reading the backup's list"):
            content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
            raise TamperedDataError("backup: backup.json does not match its digest")
        if content["format"] != FORMAT:
            raise FormatVersionError(f"backup: got format version {content['format']!r}, expected {FORMAT}")
        entries = {place: Entry(int(of["bytes"]), str(of["sha256"])) for place, of in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TamperedDataError("backup: backup.json has another form than expected") from None
    if CATALOGUE not in entries or not all(PLACE.fullmatch(place) for place in entries):
        raise TamperedDataError("backup: backup.json has another form than expected")
    return entries


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def copied(source: Path, target: Path, incoming: Path) -> Entry:
    """A copy, synced, under its name; the name is durable when its folder is synced."""
    digest, file = hashlib.sha256(), PlainFile(source)
    length_bytes = file.size_bytes()
    with NewFile(incoming) as new, file.opened() as read_into:
        buffer = memoryview(bytearray(COPY_BYTES))
        for start in range(0, length_bytes, COPY_BYTES):
            chunk = buffer[: min(COPY_BYTES, length_bytes - start)]
            read_into(start, chunk)
            digest.update(chunk)
            new.append(chunk)
        new.sync()
        new.publish(target)
    return Entry(length_bytes, digest.hexdigest())


def entry_of(path: Path) -> Entry:
    """Of a file as it is."""
    digest, file = hashlib.sha256(), PlainFile(path)
    length_bytes = file.size_bytes()
    for start in range(0, length_bytes, COPY_BYTES):
        digest.update(file.read(start, min(COPY_BYTES, length_bytes - start)))
    return Entry(length_bytes, digest.hexdigest())

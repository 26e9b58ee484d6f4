"""The list of what belongs to a backup, `backup.json`.

    {"files": {place: {"bytes": n, "sha256": hex}}, "format": 1, "made_s": Unix time, "sha256": hex}

The last is of all the rest as JSON with sorted keys and no spaces. A place is `catalogue.sqlite` or that of a segment
file, or of a file of the audit log, in a data folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from he_engine.errors import FormatVersionError, NotFound, TamperedDataError
from he_server.storage import files
from he_server.storage.files import NewFile

FORMAT = 1
CATALOGUE, LIST, LOCK = "catalogue.sqlite", "backup.json", "backup.lock"
#: In this order: a log, which grows, is not behind its head then. Without audit/operators/keys, which nobody wraps: a
#: server's start makes it again.
AUDIT = ("audit/head", "audit/log", "audit/keys", "audit/operators/head", "audit/operators/log")
PLACE = re.compile(
    r"catalogue\.sqlite|audit/(operators/)?(head|log|keys)|segments/[0-9a-f]{32}/[0-9a-f]{64}(\.[1-9][0-9]{0,9})?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    length_bytes: int
    sha256: str  #: hexadecimal


def audit_folders(root: Path) -> list[Path]:
    """Those of a data folder's or a backup's audit logs that are there."""
    return [*root.glob("audit"), *root.glob("audit/operators")]


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
        if type(content["format"]) is not int or content["format"] != FORMAT:
            raise FormatVersionError(f"backup: got format version {content['format']!r}, expected {FORMAT}")
        entries = {place: _entry(of) for place, of in content["files"].items()}
        made_s = content["made_s"]
        right = type(made_s) in (int, float) and -math.inf < made_s < math.inf
        right = right and content.keys() == {"files", "format", "made_s"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _other_form() from None
    if not right or CATALOGUE not in entries or not all(PLACE.fullmatch(place) for place in entries):
        raise _other_form()
    return entries


def _entry(of: Mapping[str, Any]) -> Entry:
    """Raises ValueError, KeyError, TypeError, AttributeError."""
    length_bytes, sha256 = of["bytes"], of["sha256"]
    if of.keys() != {"bytes", "sha256"} or type(length_bytes) is not int or not 0 <= length_bytes < 1 << 63:
        raise ValueError
    if not _SHA256.fullmatch(sha256):
        raise ValueError
    return Entry(length_bytes, sha256)


def _other_form() -> TamperedDataError:
    return TamperedDataError("backup: backup.json has another form than expected")


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

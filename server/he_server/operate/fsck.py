"""A data folder checked byte by byte, and repaired as far as that is possible. Where the catalogue is in PostgreSQL,
he_server.operate.fsck_remote checks it.

`check` reads every row and every segment file in full and changes nothing. What a crash may leave (files on their way,
files without a row) is no damage; the next server removes it. With `repair`:

    leftovers                 removed; where the catalogue is damaged, files without a row are put aside instead
    a damaged segment file    fetched from `source`; where that has none, a live one stays, so that a client's `hesearch
                              repair` reads what is sound of it, and one that no manifest names is put aside
    a damaged catalogue       put aside, and made anew of all rows that can be read; a segment's row also of its file

Aside is `damaged/TIME/` in the data folder: nothing that was ever acknowledged is deleted. What only a client or a
backup can make whole stays a problem, and its message says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from he_engine.errors import HesearchError, NotFound, Unavailable
from he_server.audit.heads import HEAD
from he_server.audit.keys import KEYS
from he_server.audit.log import FOLDER as AUDIT
from he_server.audit.log import OPERATORS
from he_server.audit.reading import LOG
from he_server.audit.verify import verify as verify_audit
from he_server.operate import fsck_catalogue
from he_server.operate.fsck_rows import Findings, Rows, require_described
from he_server.storage import files
from he_server.storage.catalogue_rows import SegmentRecord
from he_server.storage.folder import place, require_no_backup, require_own_catalogue, unfinished_catalogues
from he_server.storage.kek import KeyProvider
from he_server.storage.links import leftover_links
from he_server.storage.segment_file import open_source, verify

_ADVICE = (
    "`hesearch fsck --repair --from BACKUP` fetches it; without a backup, a client's `hesearch repair` keeps what "
    "can be read of it"
)
Progress = Callable[[int], None]  #: given the bytes read since the last time


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found. All texts are for the operator."""

    problems: list[str]  #: what is wrong now
    repaired: list[str]  #: what was done
    leftovers: list[str]  #: harmless remains of a crash, by their places in the folder
    collections: int
    segments: int
    checked_bytes: int  #: of segment files
    sealed: bool

    @property
    def clean(self) -> bool:
        return not self.problems


def check(
    root: Path,
    kek: KeyProvider | None = None,
    *,
    repair: bool = False,
    source: Path | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """`root`: a data folder that no server has open, or a backup. `kek`: of a sealed one. `source`: a backup or another
    data folder (under the same kek, or unsealed), to take segments from.

    Raises NotFound, Unavailable (a server has it open), InvalidInput (no kek; a catalogue in PostgreSQL),
    WrongKeyError, FormatVersionError; with `repair` LimitExceeded, ReadOnlyError, too, and InvalidInput for a backup.
    """
    require_own_catalogue(root, "; give it, and --segments of the server, too")
    if not (root / "catalogue.sqlite").exists() and not any((root / "segments").glob("*/*")):
        raise NotFound("data folder: there is none, or it has no catalogue")
    if source is not None and not (source / "catalogue.sqlite").exists():
        raise NotFound("source: there is no such folder, or it has no catalogue")
    if repair:
        require_no_backup(root)
    busy = "data folder: a server has it open; stop it, or check a backup"
    with files.storage_errors("repairing" if repair else "checking"), locked(root, busy, make=repair):
        found, repaired = look(root, kek, progress), []
        if repair and (found.problems or found.strays or found.unfinished):
            from he_server.operate.fsck_repair import Repair

            repairing, lost = Repair(root, kek, source), found.rows.lost
            if found.rows.problems and repairing.mend_catalogue(found.rows):
                found = look(root, kek, progress)
            repairing.mend_files(found)
            found, repaired = look(root, kek, progress), repairing.done
            found.problems += [text for text in lost if text not in found.problems]
    harmless = [*found.unfinished, *([] if found.rows.problems else found.strays)]
    leftovers = [str(path.relative_to(root)) for path in harmless]
    counts = (len(found.rows.collections), len(found.rows.segments), found.checked_bytes)
    return Report(found.problems, repaired, leftovers, *counts, bool(found.rows.wrapped_key))


@contextlib.contextmanager
def locked(root: Path, busy: str, *, make: bool) -> Iterator[None]:
    """As a server does it, but nothing is written. A folder without the file was never served; `make` makes it.
    Raises Unavailable with the text `busy` where a server has it."""
    try:
        descriptor = os.open(root / "lock", os.O_CREAT | os.O_RDWR if make else os.O_RDONLY, 0o600)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(busy) from None
        yield
    finally:
        os.close(descriptor)


def look(root: Path, kek: KeyProvider | None, progress: Progress) -> Findings:
    """Everything read, nothing changed."""
    segments, catalogue = root / "segments", root / "catalogue.sqlite"
    rows = fsck_catalogue.read(catalogue, kek)
    with files.storage_errors("looking at the data folder"):
        wanted = {place(segments, file_id) for file_id in rows.file_ids}
        strays = sorted(path for path in segments.rglob("*") if path not in wanted and not path.is_dir())
        unfinished = sorted([*(root / "incoming").glob("*"), *unfinished_catalogues(root), *leftover_links(root)])
        if strays and not (catalogue.exists() and catalogue.stat().st_size):
            rows.problems.append("catalogue: it is missing, and there are segments; restore a backup")
    found = Findings(rows, list(rows.problems), strays, unfinished)
    found.problems += audit_problems(root)
    live = rows.live
    for key, (record, _) in rows.segments.items():
        try:
            found.checked_bytes += _check_segment(segments, rows, record, progress)
        except HesearchError as error:
            found.damaged.append(record)
            state = "live" if key in live else "not live"
            found.problems.append(f"{rows.label_of(key)} ({state}): {error}; {_ADVICE}")
    return found


def audit_problems(root: Path) -> list[str]:
    """Of its two logs; a server may be writing them."""
    logs = {"audit log": (AUDIT, LOG, HEAD, KEYS), "operators' audit log": (OPERATORS, LOG, HEAD)}  # has keys before
    return [
        f"{what}: {problem}; `hesearch audit verify` and docs/audit.md say more"
        for what, (folder, *names) in logs.items()
        if any((root / folder / name).exists() for name in names) and (problem := _audit_problem(root / folder))
    ]


def _audit_problem(folder: Path) -> str:
    try:
        return verify_audit(folder).problem
    except NotFound:
        return "it is missing, and its head or its keys are there"


def _check_segment(segments: Path, rows: Rows, record: SegmentRecord, progress: Progress) -> int:
    """The bytes read. Raises HesearchErrors."""
    state = rows.collections[record.collection_id]
    description = verify(open_source(place(segments, record.file_id), state.key(record.generation)), progress)
    require_described(description, record, state)
    return description.file_bytes

"""What `hesearch fsck` does where the catalogue is in PostgreSQL: every row and every segment, while servers run.

Nothing is written, locked or repaired: servers that use the same tables and objects decide what is removed, and what is
damaged comes back from versions, copies or clients. The rows are read in one snapshot, so they fit together; what was
stored after it is not looked at. Messages name collections by their ids: names are sealed in the rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from he_engine.errors import HesearchError, InvalidInput, NotFound, TamperedDataError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.operate.fsck import Report, audit_problems
from he_server.operate.fsck_rows import Rows, folder_key
from he_server.operate.fsck_segments import SegmentCheck
from he_server.operate.fsck_strays import Strays, count_strays, listed_files
from he_server.storage.catalogue_rows import CollectionRecord, SegmentRecord
from he_server.storage.folder import CATALOGUE_ID, OBJECTS_ID, known_id, place
from he_server.storage.kek import KeyProvider
from he_server.storage.opening import open_objects
from he_server.storage.postgres_reader import PostgresReader

if TYPE_CHECKING:
    from he_server.storage.objects import Objects


@dataclass(frozen=True, slots=True)
class RemoteReport(Report):
    """And what is no damage. `segments`: named by the rows when they were read."""

    retired: int  #: segments that went while they were looked at
    strays: int  #: objects, or files, that no sound row names
    stray_bytes: int
    oldest_stray_s: float  #: its age, by this machine's clock


def check_remote(
    root: Path,
    catalogue: str,
    segments: str = "",
    kek: KeyProvider | None = None,
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> RemoteReport:
    """`root`: a server's data folder; where `segments` are on object storage, one that no server has used will do.
    `catalogue`, `segments`, `kek`: see Store. `progress`: given bytes that were looked at, and those of all.

    Raises InvalidInput (they do not belong together; no kek), WrongKeyError, NotFound, FormatVersionError,
    MissingExtra; Unavailable where catalogue or storage are away, unless damage was found before: then the last problem
    says what was not checked.
    """
    with contextlib.ExitStack() as opened:
        if (objects := open_objects(segments)) is not None:
            opened.callback(objects.close)
        database = opened.enter_context(contextlib.closing(PostgresReader(catalogue)))
        wrapped, place_id = database.folder()
        if place_id != _here(root, _place_id(objects) if objects else None):
            raise InvalidInput("catalogue: it belongs to other segments than those that are here")
        rows = Rows(named=False, wrapped_key=wrapped, key=folder_key(wrapped, kek) if wrapped else None)
        _read(database, rows)
        if objects is None:
            folder = root / "segments"
            strays = count_strays(listed_files(folder), _file_name, rows, database, time.time())
        else:
            from he_server.storage.objects import name_of

            strays = count_strays(objects.list(), name_of, rows, database, time.time())
        found = SegmentCheck(rows, database, objects, root / "segments").run(progress)
    problems = [*rows.problems, *audit_problems(root), *found.problems]
    if found.away is not None:
        if not problems:
            raise found.away
        problems.append(f"{found.unchecked} segments were not checked: {found.away}")
    counts = len(rows.collections), len(rows.segments), found.checked_bytes
    left = strays.number, strays.total_bytes, strays.oldest_s
    return RemoteReport(
        problems, [], _told(strays, "objects" if objects else "files"), *counts, bool(wrapped), found.retired, *left
    )


def _place_id(objects: Objects) -> bytes:
    """Raises NotFound where no server has used it, Unavailable."""
    try:
        return objects.known_place_id()
    except NotFound:
        raise NotFound("storage: no catalogue.id there; another bucket or prefix, or no server has used it") from None


def _here(root: Path, objects_id: bytes | None) -> bytes:
    """The id of the place where the segments are; objects_id: of the object storage, if they are there. Raises
    InvalidInput where the folder belongs to something else, NotFound where it has files and was never served."""
    if objects_id is None:
        if known := known_id(root, CATALOGUE_ID):
            return known
        raise NotFound("data folder: there is none, or no server with a catalogue in PostgreSQL has used it")
    if known_id(root, OBJECTS_ID) not in (b"", objects_id):
        raise InvalidInput("segments: this data folder belongs to other object storage")
    return objects_id


def _read(database: PostgresReader, rows: Rows) -> None:
    try:
        with database.view():
            for row in database.collections():
                rows.take_collection(*row)
            for row in database.segments():
                rows.take_segment(*row)
    except TamperedDataError as error:  # PostgreSQL's own damage: what it could read of the tables is looked at
        rows.problems.append(f"{error}; not every row was read")
        return
    rows.finish()
    for collection_id, state in rows.collections.items():
        if problem := _parameters_problem(state.record):
            rows.problems.append(f"{rows.label(collection_id)}: its parameters: {problem}")


def _parameters_problem(record: CollectionRecord) -> str:
    try:
        parameters = wire.parameters_from_wire(pb.Parameters.FromString(record.parameters))
    except DecodeError:
        return "they are no message of that kind"
    except HesearchError as error:  # whose text would quote the row
        return f"{type(error).__name__}: this version knows none like them"
    return "" if parameters.digest == record.parameter_digest else "their digest is another than the row's"


def _file_name(record: SegmentRecord) -> str:
    return str(place(Path(), record.file_id))


def _told(strays: Strays, what: str) -> list[str]:
    if not strays.number:
        return []
    return [
        f"{strays.number} {what} that no sound row names, {strays.total_bytes / 1e6:.1f} MB, "
        f"the oldest {strays.oldest_s / 3600:.1f} hours old"
    ]

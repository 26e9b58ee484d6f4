"""A collection to a file and from a file, as ciphertexts: no key is needed for either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from he_client.described import describe_collection, described_parameters
from he_client.durable import file_errors, new_file
from he_client.progress import progress_bar
from he_client.results import ArchiveReport
from he_client.stored import describe_segment, read_part, send_segment
from he_client.transport import Remote
from he_client.upkeep.archive_format import ArchivedCollection, ArchiveWriter, read_archive
from he_engine.engine import Advance
from he_engine.errors import AlreadyExists, Conflict, DamagedDataError, NotFound, TamperedDataError
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES
from he_proto.v1 import hesearch_pb2 as pb

WHAT = "archive"
MAX_EXPORTS = 8  #: beginnings of one export: it begins anew where a segment was retired meanwhile


class _Retired(Exception):
    """A segment has gone since the manifest was read."""


# ---- export --------------------------------------------------------------------------------------------------
def export_collection(
    remote: Remote, name: str, path: str | os.PathLike[str], *, progress: bool | None = None
) -> ArchiveReport:
    """Write one version of a collection to `path`, still encrypted and bound to its name.

    The file is whole and on the disk when this returns, and not there otherwise. Raises AlreadyExists where it
    exists, NotFound, TamperedDataError where the server's bytes fail their digests (nothing that needs a key is
    checked), Conflict where segments are retired faster than they can be read, Unavailable.
    """
    target = Path(path)
    if target.exists():
        raise AlreadyExists(f"archive {target}: exists; archives are never overwritten")
    for _ in range(MAX_EXPORTS):
        source = describe_collection(remote, name)
        remote = remote.of(source.context)
        collection = _current(remote, source)
        with (
            contextlib.suppress(_Retired),
            new_file(target, WHAT) as file,
            progress_bar(progress, source.stored_bytes, "export", "B") as advance,
        ):
            return _write(remote, collection, file, advance)
        if _current(remote, source) == collection:
            raise TamperedDataError(f"collection {name!r}: the server no longer has a segment of its manifest")
    raise Conflict(f"collection {name!r}: changes faster than it can be exported; try again")


def _current(remote: Remote, source: pb.Collection) -> ArchivedCollection:
    manifest = remote.call("ReadManifest", pb.ReadManifestRequest(context=remote.context))
    if manifest.collection_id != source.collection_id:
        raise NotFound(f"collection {remote.context.collection!r}: another has its name now")
    return ArchivedCollection(
        name=remote.context.collection,
        collection_id=manifest.collection_id,
        parameters=described_parameters(source),
        version=manifest.version,
        sealed_manifest=manifest.sealed_manifest,
        live_segments=tuple(manifest.live_segments),
    )


def _write(remote: Remote, collection: ArchivedCollection, file: BinaryIO, advance: Advance) -> ArchiveReport:
    writer = ArchiveWriter(file)
    writer.collection(collection)
    try:
        for segment_id in collection.live_segments:
            header = describe_segment(remote, collection.collection_id, segment_id)
            writer.segment(header)
            for part in header.parts:
                for piece in read_part(remote, header, part):
                    writer.write(piece)
                    advance(len(piece))
    except NotFound:
        raise _Retired from None
    writer.end()
    return _report(collection, file)


def _report(collection: ArchivedCollection, file: BinaryIO, existed: int = 0) -> ArchiveReport:
    return ArchiveReport(
        name=collection.name,
        version=collection.version,
        segments=len(collection.live_segments),
        archive_bytes=file.seek(0, os.SEEK_END),
        existed=existed,
    )


# ---- import --------------------------------------------------------------------------------------------------
def import_collection(remote: Remote, path: str | os.PathLike[str], *, progress: bool | None = None) -> ArchiveReport:
    """Make the collection of an archive: same name, id, version and key.

    Every byte is checked before anything is sent; nothing can be opened or searched before all of it is stored.
    After an interruption, import again: what is there is not sent again, unless the server knows it to be damaged.
    Raises NotFound (the file), FormatVersionError, DamagedDataError (of the file), AlreadyExists where the server has
    another collection or another version of it, LimitExceeded, Unavailable.
    """
    with file_errors(Path(path), WHAT), Path(path).open("rb") as file:
        collection, segments = _checked(file, progress)
        remote = remote.of(collection.context)
        if _is_imported(remote, collection):
            return _report(collection, file, existed=_send_all(remote, segments, file, progress))
        create = pb.CreateCollectionRequest(
            context=remote.context,
            collection_id=collection.collection_id,
            parameters=wire.parameters_to_wire(collection.parameters),
            import_version=collection.version,
        )
        remote.call("CreateCollection", create)
        existed = _send_all(remote, segments, file, progress)
        commit = pb.CommitManifestRequest(
            context=remote.context,
            collection_id=collection.collection_id,
            expected_version=collection.version - 1,
            sealed_manifest=collection.sealed_manifest,
            live_segments=collection.live_segments,
        )
        try:
            remote.call("CommitManifest", commit)
        except NotFound:  # sent so long ago that the server has given one up
            _send_all(remote, segments, file, progress)
            remote.call("CommitManifest", commit)
        return _report(collection, file, existed)


_Placed = tuple[pb.SegmentHeader, int]  #: where in the file its parts' bytes are


def _checked(file: BinaryIO, progress: bool | None) -> tuple[ArchivedCollection, list[_Placed]]:
    """Reads all of the archive. Raises DamagedDataError, FormatVersionError."""
    try:
        with progress_bar(progress, file.seek(0, os.SEEK_END), "check", "B") as advance:
            file.seek(0)
            reader = read_archive(file)
            segments = []
            for segment in reader.segments():
                segments.append((segment.header, file.tell()))
                for chunk in segment.chunks():
                    advance(len(chunk))
    except TamperedDataError as error:
        raise DamagedDataError(f"{error}; the file is damaged: copy or export it again") from None
    return reader.collection, segments


def _is_imported(remote: Remote, collection: ArchivedCollection) -> bool:
    """Raises AlreadyExists where an import could not end well."""
    try:
        found = describe_collection(remote, collection.name)
    except NotFound:
        return False
    if found.collection_id != collection.collection_id:
        raise AlreadyExists(f"collection: {collection.name!r} exists, and is not the one in the archive")
    if found.version < collection.version:
        return False
    manifest = remote.call("ReadManifest", pb.ReadManifestRequest(context=remote.context))
    if (manifest.version, manifest.sealed_manifest) != (collection.version, collection.sealed_manifest):
        raise AlreadyExists(
            f"collection: {collection.name!r} exists at version {manifest.version}; the archive has version "
            f"{collection.version}"
        )
    return True


def _send_all(remote: Remote, segments: list[_Placed], file: BinaryIO, progress: bool | None) -> int:
    """How many were there before."""
    existed = 0
    total = sum(_part_bytes(header) for header, _ in segments)
    with progress_bar(progress, total, "import", "B") as advance:
        for header, offset in segments:

            def parts(header: pb.SegmentHeader = header, offset: int = offset) -> Iterator[bytes]:
                return _range(file.fileno(), offset, _part_bytes(header))

            existed += send_segment(remote, header, parts)
            advance(_part_bytes(header))
    return existed


def _range(descriptor: int, start: int, length_bytes: int) -> Iterator[bytes]:
    """Without a position that callers would share: gRPC may still read from one call when the next begins."""
    for offset in range(start, start + length_bytes, CHUNK_BYTES):
        yield os.pread(descriptor, min(CHUNK_BYTES, start + length_bytes - offset), offset)


def _part_bytes(header: pb.SegmentHeader) -> int:
    return sum(part.length_bytes for part in header.parts)

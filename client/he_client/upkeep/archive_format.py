"""The archive file, format version 1: one collection as ciphertexts, written and read from first byte to last.

All numbers are little-endian. A record is

    offset  bytes  what
    0       4      kind: 1 collection, 2 segment, 3 end
    4       8      length of the body, n
    12      n      body
    12 + n  32     SHA-256 of all bytes of the record before

and the file

    0       8      magic, "HESARCHV"
    8       4      format version, 1
    12      …      one collection record; for each live segment, in the order in which the collection record names
                   them, a segment record and then its parts' bytes end to end; one end record. Nothing follows.

Body of the collection record, at most 20 MiB + 4096:

    0       16     collection id
    16      32     parameter digest
    48      8      version of the manifest, 1 to 2^48 − 1
    56      4      engine (Engine of the protocol)
    60      4      vector dimension
    64      4      stride
    68      16     profile, zeros after it
    84      4      length of the name, n, 1 to 128
    88      4      length of the sealed manifest, m, 1 to 16 MiB
    92      4      number of live segments, s
    96      n      name
    96 + n  m      sealed manifest; it opens under the collection's name, id, version and key only
    …       32·s   ids of the live segments, each once

Body of a segment record:

    0       32     segment id (he_proto.wire.segment_id of the two ids and all that is described here)
    32      8      blocks, at least 1
    40      4      number of parts, p, 1 to 5
    44      44·p   for each part, kinds ascending, INDEX first:
                     4   kind (PartKind)    8   length in bytes, below 2^48    32  SHA-256 of the part

Body of the end record: 32 bytes, SHA-256 of all bytes of the file before the end record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from he_engine.engine import Buffer
from he_engine.errors import FormatVersionError, InvalidInput, TamperedDataError
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES
from he_proto.v1 import hesearch_pb2 as pb

MAGIC = b"HESARCHV"
ARCHIVE_FORMAT_VERSION = 1
COLLECTION, SEGMENT, END = 1, 2, 3
MAX_BODY_BYTES = wire.MAX_MESSAGE_BYTES + 4096
MAX_VERSION = 1 << 48  #: as servers count
MAX_PART_BYTES = 1 << 48  #: more than a file can have

_START = struct.Struct("<8sI")
_RECORD = struct.Struct("<IQ")
_COLLECTION = struct.Struct("<16s32sQiII16sIII")
_SEGMENT = struct.Struct("<32sQI")
_PART = struct.Struct("<iQ32s")
_MAX_PARTS = 5


@dataclass(frozen=True, slots=True)
class ArchivedCollection:
    """What the collection record says."""

    name: str
    collection_id: bytes
    parameters: wire.PublicParameters
    version: int
    sealed_manifest: bytes
    live_segments: tuple[bytes, ...]

    @property
    def context(self) -> pb.Context:
        return wire.context(self.name, self.parameters.digest)


class ArchiveWriter:
    """Writes to a stream: `collection`, then for each segment `segment` and its bytes by `write`, then `end`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.write(_START.pack(MAGIC, ARCHIVE_FORMAT_VERSION))

    def write(self, content: Buffer) -> None:
        """The next bytes of the parts of the last segment."""
        self._digest.update(content)
        self._stream.write(content)

    def _record(self, kind: int, body: bytes) -> None:
        record = _RECORD.pack(kind, len(body)) + body
        self.write(record + hashlib.sha256(record).digest())

    def collection(self, collection: ArchivedCollection) -> None:
        parameters = wire.parameters_to_wire(collection.parameters)
        fixed = _COLLECTION.pack(
            collection.collection_id,
            collection.parameters.digest,
            collection.version,
            parameters.engine,
            parameters.dim,
            parameters.stride,
            parameters.profile.encode(),
            len(collection.name),
            len(collection.sealed_manifest),
            len(collection.live_segments),
        )
        ids = b"".join(collection.live_segments)
        self._record(COLLECTION, fixed + collection.name.encode() + collection.sealed_manifest + ids)

    def segment(self, header: pb.SegmentHeader) -> None:
        body = _SEGMENT.pack(header.segment_id, header.blocks, len(header.parts))
        parts = (_PART.pack(part.kind, part.length_bytes, part.sha256) for part in header.parts)
        self._record(SEGMENT, body + b"".join(parts))

    def end(self) -> None:
        self._record(END, self._digest.digest())


class ArchivedSegment:
    """One segment of an archive: its header, and its bytes once."""

    def __init__(self, header: pb.SegmentHeader, source: _Source) -> None:
        self.header = header
        self._parts = self._read(source)

    def chunks(self) -> Iterator[bytes]:
        """What is left of the parts' bytes, end to end, at most 1 MiB each. Raises TamperedDataError after the last
        chunk of a part that does not match its digest."""
        return self._parts

    def _read(self, source: _Source) -> Iterator[bytes]:
        for part in self.header.parts:
            digest = hashlib.sha256()
            for chunk in source.pieces(part.length_bytes):
                digest.update(chunk)
                yield chunk
            if digest.digest() != part.sha256:
                raise TamperedDataError(f"archive: a part {wire.part_name(part.kind)} does not match its digest")


class ArchiveReader:
    """An archive whose beginning was read and is sound; made by `read_archive`."""

    def __init__(self, collection: ArchivedCollection, source: _Source) -> None:
        self.collection = collection
        self._source = source

    def segments(self) -> Iterator[ArchivedSegment]:
        """All segments, once; what was not read of one is read and checked before the next. It ends only where the
        whole file was sound to its last byte. Raises TamperedDataError."""
        for segment_id in self.collection.live_segments:
            header = _segment_header(self._source.record(SEGMENT), segment_id, self.collection)
            segment = ArchivedSegment(header, self._source)
            yield segment
            for _ in segment.chunks():
                pass
        expected = self._source.digest()
        if self._source.record(END) != expected:
            raise TamperedDataError("archive: its bytes do not match the digest at the end")
        self._source.require_end()

    def verify(self) -> None:
        """Read to the end. Raises TamperedDataError."""
        for _ in self.segments():
            pass


def read_archive(stream: BinaryIO) -> ArchiveReader:
    """Reads as far as the collection record, in bounded memory whatever the bytes are, and never beyond what they
    declare. Raises FormatVersionError for a file that is no archive of this version, TamperedDataError."""
    source = _Source(stream)
    try:
        magic, version = _START.unpack(source.read(_START.size))
    except TamperedDataError:
        magic, version = b"", 0
    if magic != MAGIC:
        raise FormatVersionError("archive: this file is not a hesearch archive")
    if version != ARCHIVE_FORMAT_VERSION:
        raise FormatVersionError(f"archive: got format version {version}, expected {ARCHIVE_FORMAT_VERSION}")
    return ArchiveReader(_collection(source.record(COLLECTION)), source)


class _Source:
    """A stream and the digest of what was read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._position_bytes = 0

    def pieces(self, length_bytes: int) -> Iterator[bytes]:
        while length_bytes:
            piece = self._stream.read(min(length_bytes, CHUNK_BYTES))
            if not piece:
                raise TamperedDataError(
                    f"archive: it ends after {self._position_bytes} bytes, expected {length_bytes} more at least"
                )
            self._digest.update(piece)
            self._position_bytes += len(piece)
            length_bytes -= len(piece)
            yield piece

    def read(self, length_bytes: int) -> bytes:
        return b"".join(self.pieces(length_bytes))

    def record(self, expected_kind: int) -> bytes:
        """The body of the next record."""
        start = self.read(_RECORD.size)
        kind, length_bytes = _RECORD.unpack(start)
        if kind != expected_kind:
            raise TamperedDataError(f"archive: got a record of kind {kind}, expected {expected_kind}")
        if length_bytes > MAX_BODY_BYTES:
            raise TamperedDataError(f"archive: got a record of {length_bytes} bytes, expected at most {MAX_BODY_BYTES}")
        body = self.read(length_bytes)
        digest = hashlib.sha256(start)
        digest.update(body)
        if self.read(digest.digest_size) != digest.digest():
            raise TamperedDataError("archive: a record does not match its digest")
        return body

    def digest(self) -> bytes:
        """SHA-256 of all bytes so far."""
        return self._digest.digest()

    def require_end(self) -> None:
        if self._stream.read(1):
            raise TamperedDataError(f"archive: bytes follow its end at {self._position_bytes}")


def _collection(body: bytes) -> ArchivedCollection:
    if len(body) < _COLLECTION.size:
        raise TamperedDataError(f"archive: got a collection record of {len(body)} bytes")
    fixed = _COLLECTION.unpack_from(body)
    collection_id, digest, version, engine, dim, stride, profile, name_bytes, manifest_bytes, segments = fixed
    if not 1 <= version < MAX_VERSION or not 1 <= manifest_bytes <= wire.MAX_MANIFEST_BYTES:
        raise TamperedDataError(f"archive: got version {version} and a manifest of {manifest_bytes} bytes")
    manifest_at = _COLLECTION.size + name_bytes
    ids_at = manifest_at + manifest_bytes
    if len(body) != ids_at + 32 * segments:
        raise TamperedDataError("archive: the lengths in the collection record do not add up")
    try:
        name = wire.check_name(body[_COLLECTION.size : manifest_at].decode("latin-1"))
        message = pb.Parameters(engine=engine, profile=profile.rstrip(b"\0").decode("latin-1"), dim=dim, stride=stride)
        parameters = wire.parameters_from_wire(message)
    except InvalidInput as error:
        raise TamperedDataError(f"archive: {error}") from None
    if parameters.digest != digest:
        raise FormatVersionError("archive: its parameters have another digest in this version of hesearch")
    ids = tuple(body[at : at + 32] for at in range(ids_at, len(body), 32))
    if len(set(ids)) != len(ids):
        raise TamperedDataError("archive: a live segment is named twice")
    return ArchivedCollection(name, collection_id, parameters, version, body[manifest_at:ids_at], ids)


def _segment_header(body: bytes, expected_id: bytes, collection: ArchivedCollection) -> pb.SegmentHeader:
    if len(body) < _SEGMENT.size:
        raise TamperedDataError(f"archive: got a segment record of {len(body)} bytes")
    segment_id, blocks, count = _SEGMENT.unpack_from(body)
    if not 1 <= count <= _MAX_PARTS or len(body) != _SEGMENT.size + count * _PART.size or not blocks:
        raise TamperedDataError(f"archive: got a segment record of {len(body)} bytes, {blocks} blocks, {count} parts")
    parts = [
        pb.Part(kind=kind, length_bytes=length, sha256=sha256)
        for kind, length, sha256 in _PART.iter_unpack(body[_SEGMENT.size :])
    ]
    try:
        wire.check_parts(parts)
    except InvalidInput as error:
        raise TamperedDataError(f"archive: {error}") from None
    if max(part.length_bytes for part in parts) >= MAX_PART_BYTES:
        raise TamperedDataError("archive: a part is longer than a file can be")
    actual = wire.segment_id(collection.collection_id, collection.parameters.digest, blocks, parts)
    if not segment_id == actual == expected_id:
        raise TamperedDataError("archive: a segment is not the one that the collection names there")
    return pb.SegmentHeader(
        context=collection.context,
        collection_id=collection.collection_id,
        segment_id=segment_id,
        blocks=blocks,
        parts=parts,
    )

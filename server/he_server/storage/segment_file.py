"""The segment file, format version 1: one segment, written once, and refused if anything in it is unexpected.

Where data is sealed at rest, the same bytes lie inside a file of format version 2: he_server.storage.sealed_file.

All numbers are little-endian. The header takes one page of 4096 bytes:

    offset      bytes  what
    0           8      magic, "HESEARCH"
    8           4      format version, 1
    12          4      number of parts, n, 1 to 5
    16          32     parameter digest
    48          16     collection id
    64          32     segment id (he_proto.wire.segment_id of all that is described here)
    96          8      blocks, at least 1
    104         56·n   the part table; for each part, kinds ascending, INDEX first:
                         4   kind (PartKind)        4   zero
                         8   offset in the file     8   length, in bytes
                         32  SHA-256 of the part
    104 + 56·n  32     SHA-256 of all bytes before
    136 + 56·n  …      zeros up to 4096

The first part starts at 4096, every other one at the first multiple of 4096 at or after the end of the one
before; between them are zeros. The file ends with the last byte of the last part that is not empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import FormatVersionError, InvalidInput, TamperedDataError
from he_engine.keys import RootKey
from he_proto.chunks import CHUNK_BYTES
from he_proto.wire import part_name, segment_id
from he_server.storage.files import PAGE_BYTES, NewFile, PlainFile
from he_server.storage.sealed_file import SealedFile

MAGIC = b"HESEARCH"
FILE_FORMAT_VERSION = 1
_FIXED = struct.Struct("<8sII32s16s32sQ")
_PART = struct.Struct("<IIQQ32s")
MAX_PARTS = 5


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One line of the part table."""

    kind: int
    offset_bytes: int
    length_bytes: int
    sha256: bytes

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class Description:
    """What a header says; `of` lays the parts out."""

    collection_id: bytes
    parameter_digest: bytes
    segment_id: bytes
    blocks: int
    parts: tuple[PartEntry, ...]

    @classmethod
    def of(
        cls, collection_id: bytes, parameter_digest: bytes, blocks: int, parts: Iterable[tuple[int, int, bytes]]
    ) -> Description:
        """`parts`: (kind, length in bytes, SHA-256), kinds ascending. The id follows from all the rest."""
        table: list[PartEntry] = []
        end = PAGE_BYTES
        for kind, length_bytes, sha256 in parts:
            table.append(PartEntry(kind, -(-end // PAGE_BYTES) * PAGE_BYTES, length_bytes, sha256))
            end = table[-1].end_bytes
        identity = segment_id(collection_id, parameter_digest, blocks, table)
        return cls(collection_id, parameter_digest, identity, blocks, tuple(table))

    @property
    def stored_bytes(self) -> int:
        """Of all parts, without padding."""
        return sum(part.length_bytes for part in self.parts)

    @property
    def index_bytes(self) -> int:
        return self.parts[0].length_bytes

    @property
    def file_bytes(self) -> int:
        return max((part.end_bytes for part in self.parts if part.length_bytes), default=PAGE_BYTES)

    def part(self, kind: int) -> PartEntry | None:
        return next((part for part in self.parts if part.kind == kind), None)

    def header(self) -> bytes:
        """The first page of the file."""
        data = _FIXED.pack(
            MAGIC,
            FILE_FORMAT_VERSION,
            len(self.parts),
            self.parameter_digest,
            self.collection_id,
            self.segment_id,
            self.blocks,
        )
        for part in self.parts:
            data += _PART.pack(part.kind, 0, part.offset_bytes, part.length_bytes, part.sha256)
        return (data + hashlib.sha256(data).digest()).ljust(PAGE_BYTES, b"\0")


class Source(Protocol):
    """The bytes of a segment file, as they lie on the disk or opened from what is sealed."""

    def size_bytes(self) -> int: ...

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly that many bytes. Raises TamperedDataError."""


class FileSource(Source, Protocol):
    """The same, of a file that is at hand."""

    def read_into(self, offset_bytes: int, out: memoryview) -> None:
        """Fills `out` with the bytes from an offset on. Raises TamperedDataError."""


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment's description, where its file is, and what opens it (None: it is not sealed)."""

    description: Description
    path: Path
    generation: int = 0  #: of the data key; 0: not sealed
    data_key: RootKey | None = None

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.description.collection_id, self.description.segment_id

    @property
    def file_id(self) -> tuple[bytes, bytes, int]:
        return (*self.key, self.generation)

    @property
    def blocks(self) -> int:
        return self.description.blocks

    @property
    def index_bytes(self) -> int:
        return self.description.index_bytes

    @property
    def in_place(self) -> bool:
        """Whether kernels can read the file itself."""
        return self.data_key is None

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Description, FileSource]]:
        """See he_server.storage.indexes.Loadable."""
        yield self.description, self.source

    @property
    def source(self) -> FileSource:
        source = open_source(self.path, self.data_key)
        if isinstance(source, SealedFile) and source.envelope.file_id != self.file_id:
            raise TamperedDataError("segment file: it is another segment's")
        return source

    @property
    def index(self) -> IndexFile:
        """Where the index is in the file itself."""
        index = self.description.parts[0]
        return IndexFile(self.path, index.offset_bytes, index.length_bytes, self.description.blocks)


def open_source(path: Path, data_key: RootKey | None) -> FileSource:
    """Raises TamperedDataError, FormatVersionError."""
    return PlainFile(path) if data_key is None else SealedFile(path, data_key)


def read_description(source: Source) -> Description:
    """The description of a file whose header is right in every bit and whose length is what it says.

    The parts' own bytes are not read. Raises TamperedDataError; FormatVersionError for another version.
    """
    page = source.read(0, PAGE_BYTES)
    magic, version, count, digest, collection_id, _, blocks = _FIXED.unpack_from(page)
    if magic != MAGIC:
        raise TamperedDataError("segment file: its magic is not that of a segment")
    if version != FILE_FORMAT_VERSION:
        raise FormatVersionError(f"segment file: got format version {version}, expected {FILE_FORMAT_VERSION}")
    if not 1 <= count <= MAX_PARTS:
        raise TamperedDataError(f"segment file: got {count} parts, expected 1 to {MAX_PARTS}")
    table = [_PART.unpack_from(page, _FIXED.size + i * _PART.size) for i in range(count)]
    kinds = [kind for kind, *_ in table]
    if kinds != sorted(set(kinds)) or kinds[0] != 1 or kinds[-1] > MAX_PARTS:
        raise TamperedDataError(f"segment file: got parts of kinds {kinds}, expected 1 to {MAX_PARTS}, ascending")
    if max(length for _, _, _, length, _ in table) >> 48:
        raise TamperedDataError("segment file: a part is longer than a file can be")
    description = Description.of(
        collection_id, digest, blocks, ((kind, length, sha256) for kind, _, _, length, sha256 in table)
    )
    if description.header() != page:  # checksum, offsets, id, reserved fields and padding, all at once
        raise TamperedDataError("segment file: the header does not match its checksum")
    if (size := source.size_bytes()) != description.file_bytes:
        raise TamperedDataError(f"segment file: got {size} bytes, expected {description.file_bytes}")
    return description


def read_part(source: Source, part: PartEntry, offset_bytes: int, length_bytes: int) -> Iterator[bytes]:
    """A range of a part in chunks of 1 MiB. Raises TamperedDataError where the file is too short, and, after
    the last chunk of a part read whole, where the digest is not the part's."""
    digest = hashlib.sha256() if (offset_bytes, length_bytes) == (0, part.length_bytes) else None
    for start in range(offset_bytes, offset_bytes + length_bytes, CHUNK_BYTES):
        end = min(start + CHUNK_BYTES, offset_bytes + length_bytes)
        chunk = source.read(part.offset_bytes + start, end - start)
        if digest:
            digest.update(chunk)
        yield chunk
    if digest and digest.digest() != part.sha256:
        raise TamperedDataError(f"segment file: part {part_name(part.kind)} does not match its digest")


def verify(source: Source, progress: Callable[[int], None] = lambda _: None) -> Description:
    """Every byte of a segment file, padding too, read once and in order. Raises TamperedDataError."""
    description = read_description(source)
    parts = description.parts
    digests = [hashlib.sha256() for _ in parts]
    for start in range(0, description.file_bytes, CHUNK_BYTES):
        chunk = memoryview(source.read(start, min(CHUNK_BYTES, description.file_bytes - start)))
        covered = 0 if start else PAGE_BYTES  # of this chunk: by the header
        padding = b""
        for part, digest in zip(parts, digests, strict=True):
            first, last = (min(max(at - start, 0), len(chunk)) for at in (part.offset_bytes, part.end_bytes))
            if first < last:
                padding += chunk[covered:first]
                digest.update(chunk[first:last])
                covered = last
        if any(padding) or any(chunk[covered:]):
            raise TamperedDataError("segment file: the padding between its parts is not zero")
        progress(len(chunk))
    for part, digest in zip(parts, digests, strict=True):
        if digest.digest() != part.sha256:
            raise TamperedDataError(f"segment file: part {part.kind} does not match its digest")
    return description


class SegmentWriter:
    """Writes one segment file as its bytes arrive, checking lengths and digests on the way."""

    def __init__(self, description: Description, file: NewFile) -> None:
        self.description = description
        self._file = file
        self._parts = iter(description.parts)
        self._file.append(description.header())
        self._next_part()

    def write(self, chunk: Buffer) -> None:
        """The next bytes of the parts, end to end. Raises InvalidInput for too many, TamperedDataError for
        bytes that are not those described, LimitExceeded or Unavailable where the disk refuses them."""
        view = memoryview(chunk)
        while view:
            if self._part is None:
                raise InvalidInput(f"chunk: got {len(view)} bytes after the end of the last part")
            piece = view[: self._part.end_bytes - self._file.position_bytes]
            self._digest.update(piece)
            self._file.append(piece)
            view = view[len(piece) :]
            self._finish_parts()

    def finish(self) -> None:
        """All bytes are on the disk. Raises InvalidInput if some have not come."""
        if self._part is not None:
            missing = self._part.end_bytes - self._file.position_bytes
            raise InvalidInput(f"chunk: part {part_name(self._part.kind)} lacks {missing} bytes")
        self._file.sync()

    def _next_part(self) -> None:
        self._part = next(self._parts, None)
        self._digest = hashlib.sha256()
        if self._part is not None and self._part.length_bytes:
            self._file.pad_to(self._part.offset_bytes)
        else:
            self._finish_parts()

    def _finish_parts(self) -> None:
        part = self._part
        if part is None or (part.length_bytes and self._file.position_bytes < part.end_bytes):
            return
        if self._digest.digest() != part.sha256:
            raise TamperedDataError(f"chunk: part {part_name(part.kind)} does not match its digest")
        self._next_part()

"""Segments on the client: made from rows and sent, or fetched and opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from he_client.cache import PartCache
from he_client.metrics import Space
from he_client.results import Payload, RowId
from he_client.rows import RowTable, decode_payload
from he_client.transport import Remote
from he_engine.engine import Advance, Buffer, ClientEngine, EncryptedRows
from he_engine.errors import TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_engine.sealing import seal, seal_records, unseal, unseal_record
from he_proto import wire
from he_proto.chunks import segment_requests
from he_proto.v1 import hesearch_pb2 as pb

Contents: TypeAlias = dict[pb.PartKind, Buffer]

_NEEDED = (pb.PART_KIND_HINT, pb.PART_KIND_ROWS, pb.PART_KIND_FINGERPRINT)
ROWS, FINGERPRINT, PAYLOADS = "row table", "fingerprint", "payloads"


@dataclass(slots=True, repr=False, eq=False)
class Segment:
    """A live segment, opened: its row table, and what the engine needs to recover its answers."""

    entry: pb.SegmentEntry
    table: RowTable
    engine: Any
    deleted: set[int] | None = field(default=None, init=False)  #: as of the adopted manifest; None: not in it
    offsets: NDArray[np.uint64] = field(init=False)  #: of payload records in their part; rows + 1 entries

    def __post_init__(self) -> None:
        lengths = self.table.payload_lengths
        self.offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)])

    @property
    def id(self) -> bytes:
        return self.entry.segment_id

    def part(self, kind: pb.PartKind) -> pb.Part | None:
        return next((p for p in self.entry.parts if p.kind == kind), None)


class SegmentStore:
    """The segments of one collection, on a server, under a key."""

    def __init__(
        self,
        remote: Remote,
        collection_id: bytes,
        key: RootKey,
        engine: ClientEngine,
        space: Space,
        cache: PartCache,
        direct_payloads: bool,
    ) -> None:
        self._remote = remote
        self._id = collection_id
        self._key = key
        self._engine = engine
        self._space = space
        self._cache = cache
        self._direct = direct_payloads

    def _aad(self, what: str) -> bytes:
        return length_prefixed(what, self._id, self._remote.context.parameter_digest)

    # ---- writing ---------------------------------------------------------------------------------------
    def build(
        self,
        ids: list[RowId],
        vectors: NDArray[np.float64],
        payloads: list[bytes | None] | None,
        advance: Advance,
    ) -> tuple[Segment, Contents]:
        """Encrypt one segment; nothing is sent."""
        encrypted = self._engine.setup(vectors, advance)
        squares = self._engine.row_squares(vectors) if self._space.needs_squares else None
        salt, sealed = self._seal_payloads(payloads)
        lengths = np.array([len(s) for s in sealed], np.uint64)
        table = RowTable(ids, squares, encrypted.seed, salt, lengths)
        contents: Contents = {
            pb.PART_KIND_INDEX: encrypted.index,
            pb.PART_KIND_HINT: encrypted.hint,
            pb.PART_KIND_ROWS: seal(self._key, ROWS, self._aad(ROWS), table.to_bytes()),
            pb.PART_KIND_FINGERPRINT: b"",
            pb.PART_KIND_PAYLOADS: b"".join(sealed),
        }
        if encrypted.fingerprint:
            fingerprint = seal(self._key, FINGERPRINT, self._aad(FINGERPRINT), encrypted.fingerprint)
            contents[pb.PART_KIND_FINGERPRINT] = fingerprint
        contents = {kind: content for kind, content in contents.items() if len(content)}
        context = self._remote.context
        header = wire.segment_header(context.collection, self._id, context.parameter_digest, encrypted.blocks, contents)
        entry = pb.SegmentEntry(
            segment_id=header.segment_id, blocks=encrypted.blocks, rows=encrypted.rows, parts=header.parts
        )
        segment = Segment(entry, table, self._engine.load(encrypted))
        for part in header.parts:
            if part.kind != pb.PART_KIND_INDEX:
                keep = part.kind == pb.PART_KIND_PAYLOADS and not self._direct
                self._cache.put(part.sha256, bytes(contents[part.kind]), keep=keep)
        return segment, contents

    def _seal_payloads(self, payloads: list[bytes | None] | None) -> tuple[bytes, list[bytes]]:
        if payloads is None or all(p is None for p in payloads):
            return b"", []
        return seal_records(self._key, PAYLOADS, self._aad(PAYLOADS), payloads)

    def upload(self, segment: Segment, contents: Contents) -> None:
        """Send a built segment. The same bytes go again when the server could not be reached: it is idempotent."""
        header = pb.SegmentHeader(
            context=self._remote.context,
            collection_id=self._id,
            segment_id=segment.id,
            blocks=segment.entry.blocks,
            parts=segment.entry.parts,
        )
        parts = [contents[part.kind] for part in header.parts]
        self._remote.call("WriteSegment", lambda: segment_requests(header, parts))

    # ---- reading ---------------------------------------------------------------------------------------
    def open(self, entry: pb.SegmentEntry) -> Segment:
        """Fetch and check what recovery needs. Raises TamperedDataError or ResidueError."""
        parts = {part.kind: part for part in entry.parts}
        raw_table = unseal(self._key, ROWS, self._aad(ROWS), self._fetch(entry, parts.get(pb.PART_KIND_ROWS)))
        table = RowTable.parse(raw_table, entry.rows)
        fingerprint = b""
        if pb.PART_KIND_FINGERPRINT in parts:
            sealed = self._fetch(entry, parts[pb.PART_KIND_FINGERPRINT])
            fingerprint = unseal(self._key, FINGERPRINT, self._aad(FINGERPRINT), sealed)
        encrypted = EncryptedRows(
            rows=entry.rows,
            blocks=entry.blocks,
            index=b"",
            hint=self._fetch(entry, parts.get(pb.PART_KIND_HINT)),
            seed=table.seed,
            fingerprint=fingerprint,
        )
        return Segment(entry, table, self._engine.load(encrypted))

    def needed_bytes(self, entry: pb.SegmentEntry) -> int:
        """Of the parts that `open` reads."""
        return sum(p.length_bytes for p in entry.parts if p.kind in _NEEDED)

    def missing_bytes(self, entry: pb.SegmentEntry) -> int:
        """What `open` would have to download."""
        return sum(p.length_bytes for p in entry.parts if p.kind in _NEEDED and not self._cache.has(p.sha256))

    def forget(self, segment: Segment) -> None:
        """The segment has left the manifest: nothing of it is kept in memory."""
        self._engine.release(segment.engine)
        for part in segment.entry.parts:
            self._cache.forget(part.sha256)

    def _fetch(self, entry: pb.SegmentEntry, part: pb.Part | None, *, keep: bool = False) -> bytes:
        """A whole part, from the cache or the server, checked against its digest."""
        if part is None:
            return b""
        cached = self._cache.get(part.sha256)
        if cached is not None:
            return cached
        content = self._read(entry, part.kind, 0, part.length_bytes)
        if hashlib.sha256(content).digest() != part.sha256:
            raise TamperedDataError(
                f"segment {entry.segment_id.hex()[:16]}: the server's {wire.part_name(part.kind)} part does not "
                "match its digest"
            )
        self._cache.put(part.sha256, content, keep=keep)
        return content

    def _read(self, entry: pb.SegmentEntry, kind: pb.PartKind, offset: int, length: int) -> bytes:
        request = pb.ReadSegmentPartRequest(
            context=self._remote.context,
            segment_id=entry.segment_id,
            kind=kind,
            offset_bytes=offset,
            length_bytes=length,
        )

        def receive(responses: Iterator[pb.ReadSegmentPartResponse]) -> bytes:
            content = bytearray()
            for response in responses:
                content += response.chunk
                if len(content) > length:
                    break
            if len(content) != length:
                raise TamperedDataError(f"segment part: got {len(content)} bytes, expected {length}")
            return bytes(content)

        return self._remote.stream("ReadSegmentPart", request, receive)

    def payload(self, segment: Segment, row: int, columns: Mapping[bytes, bytes]) -> Payload | None:
        """The payload of one row.

        From `columns`, what `fetch_payloads` gave, so that the server cannot tell which row was found; `direct`
        fetches the one record, and the server can.
        """
        part = segment.part(pb.PART_KIND_PAYLOADS)
        if part is None or not segment.table.payload_lengths[row]:
            return None
        start, end = int(segment.offsets[row]), int(segment.offsets[row + 1])
        if self._direct:
            record = self._read(segment.entry, pb.PART_KIND_PAYLOADS, start, end - start)
        else:
            record = columns[segment.id][start:end]
        salt = segment.table.payload_salt
        return decode_payload(unseal_record(self._key, PAYLOADS, self._aad(PAYLOADS), salt, row, record))

    def fetch_payloads(self, segments: Sequence[Segment]) -> dict[bytes, bytes]:
        """All payload columns by segment id, before anything is found: which ones are wanted must not show, not even
        where another thread meanwhile forgets the segment. None if `direct`."""
        if self._direct:
            return {}
        return {s.id: self._fetch(s.entry, s.part(pb.PART_KIND_PAYLOADS), keep=True) for s in segments}


def split(rows: int, engine: ClientEngine, target_bytes: int) -> Iterator[slice]:
    """Ranges of rows whose indexes have about `target_bytes`, in whole blocks."""
    blocks = max(1, target_bytes // engine.index_bytes_per_block)
    step = blocks * engine.rows_per_block
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))

"""Segments on the client: made from rows and sent, or fetched and opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from he_client.cache import PartCache
from he_client.metrics import Space
from he_client.parts import PartReader, part_of
from he_client.results import Payload, RowId
from he_client.rows import Rows, RowTable, decode_payload
from he_client.transport import Remote
from he_engine.engine import Advance, Buffer, ClientEngine, EncryptedRows
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
        self._parts = PartReader(remote, cache)
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
        return self._pack(encrypted, ids, squares, payloads)

    def build_again(self, rows: Rows, advance: Advance) -> tuple[Segment, Contents]:
        """The same for rows that were stored before: fresh seed, fresh seals; nothing is sent."""
        encrypted = self._engine.setup_encoded(rows.encoded, advance)
        return self._pack(encrypted, rows.ids, rows.squares, rows.payloads)

    def fingerprint_again(self, segment: Segment) -> tuple[Segment, Contents]:
        """The same segment, part for part, but for its fingerprint, which has fresh weights; nothing is sent.

        Downloads the others, and uses none that does not match its digest in the manifest: a new fingerprint vouches
        for the bytes that it is made of, and ciphertexts that were altered are ciphertexts. Raises TamperedDataError,
        NotFound (the segment was retired), Unavailable.
        """
        entry, index = segment.entry, self._parts.download(segment.entry, pb.PART_KIND_INDEX)
        rest = (part.kind for part in entry.parts if part.kind not in (pb.PART_KIND_INDEX, pb.PART_KIND_FINGERPRINT))
        contents: Contents = {pb.PART_KIND_INDEX: index} | {kind: self._parts.fetch(entry, kind) for kind in rest}
        encrypted = EncryptedRows(
            rows=entry.rows,
            blocks=entry.blocks,
            index=index,
            hint=bytes(contents[pb.PART_KIND_HINT]),
            seed=segment.table.seed,
            fingerprint=self._engine.fingerprint_again(segment.engine, index),
        )
        return self._described(encrypted, segment.table, contents)

    def _pack(
        self,
        encrypted: EncryptedRows,
        ids: list[RowId],
        squares: NDArray[np.float64] | None,
        payloads: list[bytes | None] | None,
    ) -> tuple[Segment, Contents]:
        salt, sealed = self._seal_payloads(payloads)
        lengths = np.array([len(s) for s in sealed], np.uint64)
        table = RowTable(ids, squares, encrypted.seed, salt, lengths)
        contents: Contents = {
            pb.PART_KIND_INDEX: encrypted.index,
            pb.PART_KIND_HINT: encrypted.hint,
            pb.PART_KIND_ROWS: seal(self._key, ROWS, self._aad(ROWS), table.to_bytes()),
            pb.PART_KIND_PAYLOADS: b"".join(sealed),
        }
        return self._described(encrypted, table, contents)

    def _described(self, encrypted: EncryptedRows, table: RowTable, contents: Contents) -> tuple[Segment, Contents]:
        """A segment of these parts, with its fingerprint, which is sealed here; without the empty ones."""
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
        table = self.table(entry)
        fingerprint = self._parts.fetch(entry, pb.PART_KIND_FINGERPRINT)
        if fingerprint:
            fingerprint = unseal(self._key, FINGERPRINT, self._aad(FINGERPRINT), fingerprint)
        encrypted = EncryptedRows(
            rows=entry.rows,
            blocks=entry.blocks,
            index=b"",
            hint=self._parts.fetch(entry, pb.PART_KIND_HINT),
            seed=table.seed,
            fingerprint=fingerprint,
        )
        return Segment(entry, table, self._engine.load(encrypted))

    def table(self, entry: pb.SegmentEntry) -> RowTable:
        """Fetch and check the row table alone. Raises TamperedDataError."""
        sealed = self._parts.fetch(entry, pb.PART_KIND_ROWS)
        return RowTable.parse(unseal(self._key, ROWS, self._aad(ROWS), sealed), entry.rows)

    def rows(self, segment: Segment, kept: NDArray[np.intp]) -> Rows:
        """The rows with these numbers, decrypted. Downloads the whole index and the whole payload column.

        Raises TamperedDataError, NotFound (the segment was retired), Unavailable.
        """
        index = self._parts.download(segment.entry, pb.PART_KIND_INDEX)
        return self.rows_of(segment, kept, index, self._parts.fetch(segment.entry, pb.PART_KIND_PAYLOADS))

    def rows_of(self, segment: Segment, kept: NDArray[np.intp], index: Buffer, payloads: Buffer) -> Rows:
        """The same from these two parts, which match their digests. Raises TamperedDataError."""
        encoded = self._engine.decrypt(segment.engine, index)
        column = memoryview(payloads)
        squares = segment.table.squares
        return Rows(
            ids=[segment.table.ids[row] for row in kept],
            encoded=encoded if len(kept) == len(encoded) else encoded[kept],
            squares=None if squares is None else squares[kept],
            payloads=[self._unsealed(segment, int(row), column) for row in kept],
        )

    def needed_bytes(self, entry: pb.SegmentEntry) -> int:
        """Of the parts that `open` reads."""
        return sum(p.length_bytes for p in entry.parts if p.kind in _NEEDED)

    def missing_bytes(self, entry: pb.SegmentEntry) -> int:
        """What `open` would have to download."""
        return sum(p.length_bytes for p in entry.parts if p.kind in _NEEDED and not self._cache.has(p.sha256))

    def forget(self, segment: Segment, live: Iterable[pb.SegmentEntry] = ()) -> None:
        """The segment has left the manifest: nothing of it is kept, but for parts that `live` ones have, too."""
        self._engine.release(segment.engine)
        kept = {part.sha256 for entry in live for part in entry.parts}
        for part in segment.entry.parts:
            if part.sha256 not in kept:
                self._cache.forget(part.sha256)

    def payload(self, segment: Segment, row: int, columns: Mapping[bytes, bytes]) -> Payload | None:
        """The payload of one row.

        From `columns`, what `fetch_payloads` gave, so that the server cannot tell which row was found; `direct`
        fetches the one record, and the server can.
        """
        found = self._unsealed(segment, row, None if self._direct else memoryview(columns.get(segment.id, b"")))
        return None if found is None else decode_payload(found)

    def _unsealed(self, segment: Segment, row: int, column: memoryview | None) -> bytes | None:
        """One payload with its type in the first byte; `column` None: fetched alone. Raises TamperedDataError."""
        if part_of(segment.entry, pb.PART_KIND_PAYLOADS) is None or not segment.table.payload_lengths[row]:
            return None
        start, end = int(segment.offsets[row]), int(segment.offsets[row + 1])
        if column is None:
            record: Buffer = self._parts.read(segment.entry, pb.PART_KIND_PAYLOADS, start, end - start)
        else:
            record = column[start:end]
        salt = segment.table.payload_salt
        return unseal_record(self._key, PAYLOADS, self._aad(PAYLOADS), salt, row, record)

    def fetch_payloads(self, segments: Sequence[Segment]) -> dict[bytes, bytes]:
        """All payload columns by segment id, before anything is found: which ones are wanted must not show, not even
        where another thread meanwhile forgets the segment. None if `direct`."""
        if self._direct:
            return {}
        return {s.id: self._parts.fetch(s.entry, pb.PART_KIND_PAYLOADS, keep=True) for s in segments}


def split(rows: int, engine: ClientEngine, target_bytes: int) -> Iterator[slice]:
    """Ranges of rows whose indexes have about `target_bytes`, in whole blocks."""
    blocks = max(1, target_bytes // engine.index_bytes_per_block)
    step = blocks * engine.rows_per_block
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))

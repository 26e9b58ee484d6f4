"""Parts of segments as the server has them: fetched whole or in ranges, and checked against their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from he_client.cache import PartCache
from he_client.transport import Remote
from he_engine.engine import Buffer
from he_engine.errors import DamagedDataError, TamperedDataError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb


class PartReader:
    """Of one collection. Thread-safe."""

    def __init__(self, remote: Remote, cache: PartCache) -> None:
        self._remote = remote
        self._cache = cache

    def fetch(self, entry: pb.SegmentEntry, kind: pb.PartKind, *, keep: bool = False) -> bytes:
        """A whole part, from the cache or the server; b"" where the segment has none. `keep`: in memory, too.

        Raises TamperedDataError, NotFound, Unavailable.
        """
        part = part_of(entry, kind)
        if part is None:
            return b""
        cached = self._cache.get(part.sha256)
        if cached is not None:
            return cached
        content = bytes(self.download(entry, kind))
        self._cache.put(part.sha256, content, keep=keep)
        return content

    def download(self, entry: pb.SegmentEntry, kind: pb.PartKind) -> Buffer:
        """A whole part that the segment has, from the server. Raises as `fetch`."""
        part = part_of(entry, kind)
        assert part is not None
        content = self.read(entry, kind, 0, part.length_bytes)
        if hashlib.sha256(content).digest() != part.sha256:
            raise TamperedDataError(
                f"segment {entry.segment_id.hex()[:16]}: the server's {wire.part_name(kind)} part does not match its "
                "digest"
            )
        return content

    def read(self, entry: pb.SegmentEntry, kind: pb.PartKind, offset: int, length: int) -> bytearray:
        """A range of a part, unchecked but for its length. Raises as `fetch`."""
        request = pb.ReadSegmentPartRequest(
            context=self._remote.context,
            segment_id=entry.segment_id,
            kind=kind,
            offset_bytes=offset,
            length_bytes=length,
        )

        def receive(responses: Iterator[pb.ReadSegmentPartResponse]) -> bytearray:
            content = bytearray()
            for response in responses:
                content += response.chunk
                if len(content) > length:
                    break
            if len(content) != length:
                raise TamperedDataError(f"segment part: got {len(content)} bytes, expected {length}")
            return content

        try:
            return self._remote.stream("ReadSegmentPart", request, receive)
        except DamagedDataError as error:
            name = entry.segment_id.hex()[:16]
            raise error if name in str(error) else DamagedDataError(f"segment {name}: {error}") from None


def part_of(entry: pb.SegmentEntry, kind: pb.PartKind) -> pb.Part | None:
    return next((p for p in entry.parts if p.kind == kind), None)

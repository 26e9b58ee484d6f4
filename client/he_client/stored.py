"""Stored segments as whoever may read ciphertexts sees them: described, read and sent without a key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

from he_client.cache import PartCache
from he_client.parts import PartReader
from he_client.transport import Remote
from he_engine.engine import Buffer
from he_engine.errors import InvalidInput, TamperedDataError
from he_proto import wire
from he_proto.chunks import segment_requests
from he_proto.v1 import hesearch_pb2 as pb

PIECE_BYTES = 16 << 20  #: of a part, asked for at a time


def describe_segment(remote: Remote, collection_id: bytes, segment_id: bytes) -> pb.SegmentHeader:
    """The header with which a segment was stored: its id stands for every field of it. Raises NotFound,
    TamperedDataError."""
    request = pb.DescribeSegmentRequest(context=remote.context, collection_id=collection_id, segment_id=segment_id)
    found: pb.SegmentHeader = remote.call("DescribeSegment", request)
    try:
        wire.check_parts(found.parts)
    except InvalidInput as error:
        raise TamperedDataError(f"{_name(segment_id)}: {error}") from None
    if wire.segment_id(collection_id, remote.context.parameter_digest, found.blocks, found.parts) != segment_id:
        raise TamperedDataError(f"{_name(segment_id)}: the server described another segment")
    entry = pb.SegmentEntry(segment_id=segment_id, blocks=found.blocks, parts=found.parts)
    return header_of(remote, collection_id, entry)


def header_of(remote: Remote, collection_id: bytes, entry: pb.SegmentEntry) -> pb.SegmentHeader:
    """What WriteSegment takes first."""
    return pb.SegmentHeader(
        context=remote.context,
        collection_id=collection_id,
        segment_id=entry.segment_id,
        blocks=entry.blocks,
        parts=entry.parts,
    )


def read_part(remote: Remote, header: pb.SegmentHeader, part: pb.Part) -> Iterator[Buffer]:
    """A whole part in pieces of at most 16 MiB. Raises NotFound; TamperedDataError, after the last piece, where they
    do not match the digest."""
    reader = PartReader(remote, PartCache(None))
    entry = pb.SegmentEntry(segment_id=header.segment_id, parts=header.parts)
    digest = hashlib.sha256()
    for offset in range(0, part.length_bytes, PIECE_BYTES):
        piece = reader.read(entry, part.kind, offset, min(PIECE_BYTES, part.length_bytes - offset))
        digest.update(piece)
        yield piece
    if digest.digest() != part.sha256:
        name = wire.part_name(part.kind)
        raise TamperedDataError(f"{_name(header.segment_id)}: the server's {name} part does not match its digest")


def send_segment(remote: Remote, header: pb.SegmentHeader, parts: Callable[[], Iterable[Buffer]]) -> bool:
    """Store a segment, whose parts' bytes `parts` gives anew for each attempt. Returns whether it was there before;
    then they are hardly read, and it counts as sent just now."""
    response = remote.call("WriteSegment", lambda: segment_requests(header, parts()))
    return bool(response.existed)


def is_stored(remote: Remote, header: pb.SegmentHeader) -> bool:
    """Whether the server has the segment and its file is sound; if so, it counts as sent just now."""
    try:
        return send_segment(remote, header, tuple)
    except InvalidInput:  # the parts did not follow
        return False


def _name(segment_id: bytes) -> str:
    return f"segment {segment_id.hex()[:16]}"

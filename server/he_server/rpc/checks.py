"""What a request must be before anything is done for it: lengths, counts and limits, one function a message.

Versions, names and digests are checked by he_proto.wire. Every function raises InvalidInput for what can never
be right, LimitExceeded for what is more than this server admits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from he_engine.engine import ServerEngine
from he_engine.errors import InvalidInput, LimitExceeded
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.storage.segment_file import Description, PartEntry

MAX_VERSION = 1 << 48  #: of a manifest; above what any collection reaches, below what the catalogue can count
MAX_TAGS = 16  #: of a collection
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EMPTY_SHA256 = hashlib.sha256().digest()


def at_most(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitExceeded(f"{field}: got {value}, and this server admits at most {limit}")


def first_header(requests: Iterator[Any]) -> Any:
    """The header with which a stream of WriteSegmentRequest or AnswerRequest begins."""
    first = next(requests, None)
    if first is None or first.WhichOneof("content") != "header":
        raise InvalidInput("stream: got no header, expected one in the first message")
    return first.header


def chunks_after(requests: Iterator[Any]) -> Iterator[bytes]:
    """The chunks that follow a header."""
    for request in requests:
        if request.WhichOneof("content") != "chunk":
            raise InvalidInput("stream: got something else than a chunk after the header")
        if not 1 <= len(request.chunk) <= CHUNK_BYTES:
            raise InvalidInput(f"chunk: got {len(request.chunk)} bytes, expected 1 to {CHUNK_BYTES}")
        yield request.chunk


class Checks:
    """The checks that depend on the limits of one server."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    def new_collection(self, request: pb.CreateCollectionRequest, parameters: wire.PublicParameters) -> None:
        wire.check_collection_id(request.collection_id)
        at_most("dim", parameters.dim, self._config.max_dim)
        if not request.import_version:
            self.manifest(request.sealed_manifest)
        elif request.sealed_manifest:
            raise InvalidInput("sealed_manifest: got one with import_version, expected it with the first commit")
        elif request.import_version >= MAX_VERSION:
            raise InvalidInput(f"import_version: got {request.import_version}, expected less than {MAX_VERSION}")
        at_most("tags", len(request.tags), MAX_TAGS)
        if not all(_TAG.fullmatch(text) for tag in request.tags.items() for text in tag):
            raise InvalidInput(f"tags: expected names and values of {_TAG.pattern}, got something else")

    def engine(self, engine: ServerEngine) -> None:
        """Whether a collection of such ciphertexts could ever be used here."""
        at_most("parameters: bytes in a query", engine.query_bytes, self._config.max_query_bytes)
        at_most("parameters: bytes in a block", engine.index_bytes_per_block, self._config.max_segment_bytes)

    def manifest(self, sealed: bytes) -> None:
        if not sealed:
            raise InvalidInput("sealed_manifest: got none")
        at_most("sealed_manifest: bytes", len(sealed), self._config.max_manifest_bytes)

    def live_segments(self, ids: Sequence[bytes]) -> None:
        at_most("live_segments", len(ids), self._config.max_segments)
        for segment_id in ids:
            wire.check_digest(segment_id, "live_segments")
        if len(set(ids)) != len(ids):
            raise InvalidInput("live_segments: got one twice, expected each once")

    def segment(self, header: pb.SegmentHeader, engine: ServerEngine) -> Description:
        """The checked description of the segment that is announced."""
        wire.check_digest(header.segment_id, "segment_id")
        wire.check_parts(header.parts)
        if header.blocks < 1:
            raise InvalidInput("blocks: got 0, expected at least 1")
        at_most("parts: bytes", sum(p.length_bytes for p in header.parts), self._config.max_segment_bytes)
        expected_bytes = header.blocks * engine.index_bytes_per_block
        if header.parts[0].length_bytes != expected_bytes:
            raise InvalidInput(
                f"parts.INDEX.length_bytes: got {header.parts[0].length_bytes}, expected {expected_bytes} "
                f"for {header.blocks} blocks"
            )
        description = Description.of(
            header.collection_id,
            header.context.parameter_digest,
            header.blocks,
            ((p.kind, p.length_bytes, p.sha256) for p in header.parts),
        )
        if description.segment_id != header.segment_id:
            raise InvalidInput(
                f"segment_id: got {header.segment_id.hex()[:16]}…, expected "
                f"{description.segment_id.hex()[:16]}…, which is the digest of this description"
            )
        return description

    @staticmethod
    def part_kind(kind: int) -> str:
        """As policies name it."""
        if kind not in pb.PartKind.values()[1:]:
            raise InvalidInput(f"kind: got {kind}, expected a known part")
        return wire.part_name(kind).lower()

    def part_range(self, request: pb.ReadSegmentPartRequest, description: Description) -> tuple[PartEntry, int]:
        """The part that is asked for, and the number of bytes to send."""
        part = description.part(request.kind) or PartEntry(request.kind, 0, 0, _EMPTY_SHA256)
        length_bytes = request.length_bytes or max(0, part.length_bytes - request.offset_bytes)
        if request.offset_bytes + length_bytes > part.length_bytes:
            raise InvalidInput(
                f"offset_bytes, length_bytes: got {request.offset_bytes} and {request.length_bytes}, "
                f"but part {wire.part_name(request.kind)} has {part.length_bytes} bytes"
            )
        return part, length_bytes

    def queries(self, header: pb.AnswerHeader, engine: ServerEngine) -> int:
        """The number of bytes of the ciphertexts that follow."""
        if header.queries < 1:
            raise InvalidInput("queries: got 0, expected at least 1")
        at_most("queries", header.queries, self._config.max_queries)
        at_most("queries: bytes", header.queries * engine.query_bytes, self._config.max_query_bytes)
        return header.queries * engine.query_bytes

"""The one place where messages become engine types and engine types become messages.

Identifiers, contexts, parameters and segment descriptions, for clients and servers alike. Whatever arrives is
checked here before anything is computed with it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from he_engine import errors
from he_engine.engine import Buffer, EngineKind
from he_engine.errors import FormatVersionError, InvalidInput
from he_engine.params import MAX_DIM, Parameters
from he_proto.chunks import flat
from he_proto.v1 import hesearch_pb2 as pb

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 16 << 20  #: of one sealed manifest; it travels in one message
MAX_MESSAGE_BYTES = 20 << 20  #: a sealed manifest and its list of live segments
COLLECTION_ID_BYTES = 16
DIGEST_BYTES = 32  #: SHA-256: parameter digests, segment ids, digests of parts

#: For channels and servers alike. gRPC's own limit for receiving is 4 MiB.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


# ---- contexts and identifiers --------------------------------------------------------------------------------
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


def check_name(name: str) -> str:
    """The collection name itself. Raises InvalidInput unless it is 1 to 128 of [A-Za-z0-9._-], first a letter
    or digit."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"collection: got {str(name)[:160]!r}, expected 1 to 128 of [A-Za-z0-9._-], first a letter or digit"
        )
    return name


def check_format(format_version: int) -> None:
    """Raises FormatVersionError unless it is this side's."""
    if format_version != FORMAT_VERSION:
        raise FormatVersionError(f"format_version: got {format_version}, expected {FORMAT_VERSION}")


def check_digest(digest: bytes, field: str) -> bytes:
    """The digest (or segment id) itself. Raises InvalidInput unless it has 32 bytes."""
    if len(digest) != DIGEST_BYTES:
        raise InvalidInput(f"{field}: got {len(digest)} bytes, expected {DIGEST_BYTES}")
    return digest


def check_collection_id(collection_id: bytes) -> bytes:
    """The id itself. Raises InvalidInput unless it has 16 bytes."""
    if len(collection_id) != COLLECTION_ID_BYTES:
        raise InvalidInput(f"collection_id: got {len(collection_id)} bytes, expected {COLLECTION_ID_BYTES}")
    return collection_id


def context(collection: str, parameter_digest: bytes) -> pb.Context:
    """What every message about one collection starts with."""
    return pb.Context(format_version=FORMAT_VERSION, collection=collection, parameter_digest=parameter_digest)


def check_context(received: pb.Context, *, collection: str | None = None, parameter_digest: bytes | None = None) -> str:
    """The collection's name, after all checks that need no look-up; and those against what is given.

    Raises FormatVersionError for another format version, name or digest than expected; InvalidInput for a name
    or a digest that cannot be one.
    """
    check_format(received.format_version)
    check_name(received.collection)
    check_digest(received.parameter_digest, "parameter_digest")
    if collection is not None and received.collection != collection:
        raise FormatVersionError(f"collection: got {received.collection!r}, expected {collection!r}")
    if parameter_digest is not None and received.parameter_digest != parameter_digest:
        raise FormatVersionError(
            f"parameter_digest: got {received.parameter_digest.hex()[:16]}…, "
            f"expected {parameter_digest.hex()[:16]}… for collection {received.collection!r}"
        )
    return received.collection


# ---- parameters ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class TensealParameters:
    """All that tells one TenSEAL collection from another: the ring is fixed (he_engine.tenseal_format)."""

    dim: int  #: vector dimension, 1 to 16384

    def __post_init__(self) -> None:
        if type(self.dim) is not int or not 1 <= self.dim <= MAX_DIM:
            raise errors.ParameterError(f"dim: got {self.dim!r}, expected an integer from 1 to {MAX_DIM}")

    @property
    def stride(self) -> int:
        return 1

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over every public number, as Parameters.digest; under a domain of its own."""
        from he_engine import tenseal_format as ring  # needs no TenSEAL, but nor do hint collections need it

        scales = (ring.INDEX_SCALE, ring.QUERY_SCALE)
        fields = ("hesearch tenseal parameters 1", self.dim, ring.LOG_N, ring.MODULUS, *map(int, scales))
        return hashlib.sha256("\x00".join(map(str, fields)).encode()).digest()


PublicParameters = Parameters | TensealParameters


def engine_kind(parameters: PublicParameters) -> EngineKind:
    return EngineKind.HINT if isinstance(parameters, Parameters) else EngineKind.TENSEAL


def parameters_to_wire(parameters: PublicParameters) -> pb.Parameters:
    """The message from which the other side makes the same parameters."""
    if isinstance(parameters, TensealParameters):
        return pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=parameters.dim, stride=1)
    return pb.Parameters(
        engine=pb.ENGINE_HINT,
        profile=parameters.profile.value,
        dim=parameters.dim,
        stride=parameters.stride,
    )


def parameters_from_wire(message: pb.Parameters) -> PublicParameters:
    """Checked parameters. Raises ParameterError (a bad field), FormatVersionError (an engine unknown here)."""
    if message.engine == pb.ENGINE_HINT:
        if message.stride < 1:
            raise errors.ParameterError("stride: got 0, expected a power of two")
        return Parameters.choose(message.profile, message.dim, message.stride)
    if message.engine == pb.ENGINE_TENSEAL:
        if message.profile or message.stride != 1:
            raise errors.ParameterError(
                f"parameters: got profile {message.profile[:32]!r} and stride {message.stride}, "
                "expected none and 1 for ENGINE_TENSEAL"
            )
        return TensealParameters(dim=message.dim)
    raise FormatVersionError(f"engine: got {message.engine}, expected ENGINE_HINT or ENGINE_TENSEAL")


# ---- segments ------------------------------------------------------------------------------------------------
_KINDS = tuple(number for number in pb.PartKind.values() if number)


def part_name(kind: int) -> str:
    """INDEX and so on, for messages."""
    return pb.PartKind.Name(kind).removeprefix("PART_KIND_")


def check_parts(parts: Iterable[pb.Part]) -> None:
    """Raises InvalidInput unless INDEX comes first, kinds ascend, none repeats, and digests have 32 bytes."""
    parts = list(itertools.islice(parts, len(_KINDS) + 1))  # one more is wrong, however many follow
    kinds = [int(part.kind) for part in parts]
    if kinds[:1] != [int(pb.PART_KIND_INDEX)] or kinds != sorted(set(kinds) & set(_KINDS)):
        raise InvalidInput(f"parts: got kinds {kinds[:8]}, expected INDEX first and each known kind once, ascending")
    for part in parts:
        check_digest(part.sha256, f"parts.{part_name(part.kind)}.sha256")


class PartLike(Protocol):
    """A part's line in a description: the message, or what a file says of it."""

    @property
    def kind(self) -> int: ...
    @property
    def length_bytes(self) -> int: ...
    @property
    def sha256(self) -> bytes: ...


def segment_id(collection_id: bytes, parameter_digest: bytes, blocks: int, parts: Iterable[PartLike]) -> bytes:
    """SHA-256 of a segment's description, 32 bytes.

    The digests of the parts are in it, so it stands for every byte of the segment: sending one twice changes
    nothing, and one segment cannot be passed off as another, nor moved to another collection.
    Every field is preceded by its length (uint32, little-endian), so no two descriptions share an encoding.
    """
    digest = hashlib.sha256()

    def add(field: bytes) -> None:
        digest.update(len(field).to_bytes(4, "little") + field)

    add(b"hesearch segment 1")
    add(collection_id)
    add(parameter_digest)
    add(blocks.to_bytes(8, "little"))
    for part in parts:
        add(part.kind.to_bytes(4, "little") + part.length_bytes.to_bytes(8, "little") + part.sha256)
    return digest.digest()


def segment_header(
    collection: str,
    collection_id: bytes,
    parameter_digest: bytes,
    blocks: int,
    contents: Mapping[pb.PartKind, Buffer],
) -> pb.SegmentHeader:
    """Hashes the contents and describes them, kinds ascending; `segment_requests` sends them in that order."""
    parts = [
        pb.Part(kind=kind, length_bytes=len(flat(contents[kind])), sha256=hashlib.sha256(contents[kind]).digest())
        for kind in sorted(contents)
    ]
    return pb.SegmentHeader(
        context=context(collection, parameter_digest),
        collection_id=collection_id,
        segment_id=segment_id(collection_id, parameter_digest, blocks, parts),
        blocks=blocks,
        parts=parts,
    )

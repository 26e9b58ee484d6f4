"""Manifests: the sealed list of what a collection consists of, chained to the versions before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from he_client.metrics import Space
from he_client.signing import KeyHolder, Writer, sign_manifest, verify_manifest
from he_engine.errors import FormatVersionError, TamperedDataError, WrongKeyError
from he_engine.keys import RootKey, length_prefixed
from he_engine.sealing import seal, unseal
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

PURPOSE = "manifest"
FORMAT_VERSION = 2  #: of what is sealed
EPOCH = 0
MAX_VERSION = 1 << 48  #: as servers count
MAX_ANCESTORS = 256  #: versions before that are named, the latest first
MAX_ROWS = 1 << 32  #: of a segment: deleted rows are numbered by 32 bits

Entries = list[pb.SegmentEntry]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Manifest:
    """One version of a collection, as its key holders see it."""

    message: pb.Manifest
    sha256: bytes  #: of the sealed bytes

    @property
    def version(self) -> int:
        return self.message.version

    @property
    def collection_id(self) -> bytes:
        return self.message.collection_id

    @property
    def parameters(self) -> wire.PublicParameters:
        return wire.parameters_from_wire(self.message.parameters)

    @property
    def space(self) -> Space:
        m = self.message
        return Space.make(m.metric, m.parameters.dim, None if m.metric == "cosine" else m.norm_bound)

    @property
    def count(self) -> int:
        """Rows that are not deleted."""
        return sum(s.rows - len(s.deleted_rows) for s in self.message.segments)

    @property
    def owner(self) -> bytes:
        """Public key of who says who may sign; empty: every key holder may."""
        return self.message.writers.owner

    def successor(self, segments: list[pb.SegmentEntry]) -> pb.Manifest:
        """The next version, with these segments."""
        following = pb.Manifest()
        following.CopyFrom(self.message)
        following.version = self.version + 1
        del following.ancestors_sha256[:]
        following.ancestors_sha256.extend([self.sha256, *self.message.ancestors_sha256][:MAX_ANCESTORS])
        del following.segments[:]
        following.segments.extend(segments)
        return following


def without_rows(entries: Iterable[pb.SegmentEntry], gone: Mapping[bytes, Iterable[int]]) -> Entries:
    """The entries with more rows marked as deleted, by segment id; without those that have no row left."""
    kept = []
    for entry in entries:
        if entry.segment_id in gone:
            deleted = sorted({*entry.deleted_rows, *gone[entry.segment_id]})
            if len(deleted) == entry.rows:
                continue
            changed = pb.SegmentEntry()
            changed.CopyFrom(entry)
            del changed.deleted_rows[:]
            changed.deleted_rows.extend(deleted)
            entry = changed
        kept.append(entry)
    return kept


def _aad(name: str, collection_id: bytes, version: int) -> bytes:
    return length_prefixed(PURPOSE, name, collection_id, EPOCH, version)


def seal_manifest(
    key: RootKey, name: str, message: pb.Manifest, writer: Writer | None = None
) -> tuple[bytes, Manifest]:
    """(sealed bytes, the manifest with their digest). Bound to the collection's name, signed by `writer`, or by the
    key holders as one. Raises InvalidInput for a writer who may not."""
    plain = sign_manifest(writer or KeyHolder(key, message.collection_id), name, message)
    sealed = seal(key, PURPOSE, _aad(name, message.collection_id, message.version), plain)
    return sealed, Manifest(message, hashlib.sha256(sealed).digest())


def _deletes_its_own(entry: pb.SegmentEntry) -> bool:
    """Whether the deleted rows ascend, and are rows of the segment."""
    deleted = np.array(entry.deleted_rows, np.int64)
    return entry.rows < MAX_ROWS and bool((np.diff(deleted, prepend=-1, append=entry.rows) > 0).all())


def _opened(key: RootKey, name: str, plain: bytes) -> pb.Manifest:
    """The message, whoever signed it; of format 1, nobody did."""
    try:
        signed = pb.SignedManifest.FromString(plain)
        if (version := signed.format_version) not in (1, FORMAT_VERSION):
            raise FormatVersionError(f"manifest: got format {version}, expected 1 or {FORMAT_VERSION}")
        message = pb.Manifest.FromString(plain if version == 1 else signed.manifest)
    except DecodeError:
        raise TamperedDataError("manifest: not a message of this format") from None
    if message.format_version != wire.FORMAT_VERSION:
        raise FormatVersionError(f"manifest: got format {message.format_version}, expected {wire.FORMAT_VERSION}")
    if version == 1 and message.HasField("writers"):
        raise TamperedDataError("manifest: it has a list of writers and no signature")
    if version == FORMAT_VERSION:
        verify_manifest(key, name, message, signed)
    return message


def open_manifest(key: RootKey, name: str, response: pb.ReadManifestResponse) -> Manifest:
    """Raises WrongKeyError, FormatVersionError or TamperedDataError."""
    aad = _aad(name, response.collection_id, response.version)
    try:
        plain = unseal(key, PURPOSE, aad, response.sealed_manifest)
    except TamperedDataError:
        raise WrongKeyError(
            "manifest: this key does not open the collection (it may have been resealed under a new key since, or the "
            "server altered the manifest)"
        ) from None
    message = _opened(key, name, plain)
    live = [s.segment_id for s in message.segments]
    if (
        message.collection_id != response.collection_id
        or message.version != response.version
        or sorted(live) != sorted(response.live_segments)
    ):
        raise TamperedDataError("manifest: the server's version or live segments differ from what was sealed")
    if not 1 <= message.version < MAX_VERSION or not all(_deletes_its_own(entry) for entry in message.segments):
        raise TamperedDataError("manifest: its version or a segment's deleted rows cannot be")
    manifest = Manifest(message, hashlib.sha256(response.sealed_manifest).digest())
    if manifest.parameters.digest != message.parameter_digest:
        raise FormatVersionError("manifest: its parameters have another digest in this version of hesearch")
    return manifest

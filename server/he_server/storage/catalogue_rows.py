"""What the catalogue knows of collections and segments, and how a row is written down.

Numbers are little-endian. The content of a collection's `state` cell (format 2):

    u32 length, name in UTF-8 · u32 length, the Parameters message · 32 bytes parameter digest · u64 version
    u8 1 if there is a manifest, 0 while the collection is being imported
    u32 number of data keys; each: u32 generation, f64 Unix time of making, 32 bytes key; generations ascending
    u32 number of live segments; each: 32 bytes id, in the manifest's order
    u32 length, tenant · u32 length, owner · u32 number of tags; each: u32 length, name · u32 length, value; ascending

(rows of schema version 2 end before the tenant: they are LOCAL_TENANT's, and LOCAL_OWNER made them)

and of a segment's cell: u64 blocks · u64 stored bytes · u64 index bytes · f64 Unix time of the last upload ·
u32 generation of the data key that the file is sealed under, 0: not sealed · if files lie on object storage, 16 bytes
that no other object's name has.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, replace
from typing import Any

from he_engine.errors import Conflict, TamperedDataError
from he_engine.keys import KEY_BYTES, RootKey, Secret

ID_BYTES = 32
COPY_BYTES = 16
LOCAL_TENANT, LOCAL_OWNER = "local", "loopback"  #: of what is made without TLS
_KEY = struct.Struct(f"<Id{KEY_BYTES}s")
_SEGMENT = struct.Struct("<QQQdI")

Key = tuple[bytes, bytes]  #: (collection id, segment id)
FileId = tuple[bytes, bytes, int]  #: and the generation of the data key


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """One collection, without its manifest, keys and segments."""

    name: str
    collection_id: bytes
    parameters: bytes  #: the serialised Parameters message
    parameter_digest: bytes
    version: int
    tenant: str = LOCAL_TENANT
    owner: str = LOCAL_OWNER  #: the name of the principal of that tenant who made it
    tags: tuple[tuple[str, str], ...] = ()  #: ascending, each name once

    @property
    def place(self) -> tuple[str, str]:
        """What no other collection has."""
        return self.tenant, self.name

    def require_version(self, version: int) -> None:
        """Raises Conflict if the manifest is at another one."""
        if self.version != version:
            raise Conflict(f"version: got {version}, but the manifest is at version {self.version}")


@dataclass(frozen=True, slots=True)
class Totals:
    """Over the live segments of one collection."""

    segments: int
    blocks: int
    stored_bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One stored segment."""

    collection_id: bytes
    segment_id: bytes
    blocks: int
    stored_bytes: int
    index_bytes: int
    generation: int = 0  #: of the data key; 0: not sealed
    copy: bytes = b""  #: of the object's name (he_server.storage.objects); empty: the file is in the data folder

    @property
    def key(self) -> Key:
        return self.collection_id, self.segment_id

    @property
    def file_id(self) -> FileId:
        return self.collection_id, self.segment_id, self.generation


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class DataKey(Secret):
    """What seals the files of one collection."""

    generation: int
    made_s: float
    secret: bytes

    @property
    def key(self) -> RootKey:
        return RootKey(self.secret)


@dataclass(frozen=True, slots=True)
class State:
    """Of one collection, all that one row says but its manifest."""

    record: CollectionRecord
    has_manifest: bool
    keys: tuple[DataKey, ...]  #: generations ascending; empty: not sealed
    live: tuple[bytes, ...]

    @property
    def newest_key(self) -> DataKey | None:
        return self.keys[-1] if self.keys else None

    def key(self, generation: int) -> RootKey | None:
        """None for generation 0. Raises TamperedDataError where it is gone."""
        secret = self.secret(generation)
        return RootKey(secret) if secret else None

    def secret(self, generation: int) -> bytes:
        """The same in bytes, none for generation 0."""
        if generation == 0:
            return b""
        for data_key in self.keys:
            if data_key.generation == generation:
                return data_key.secret
        raise TamperedDataError(f"catalogue: the data key of generation {generation} is gone")

    def with_new_key(self, now_s: float, after: int = 0) -> State:
        """And a data key from the system's generator, newer than all it has, and than generation `after`."""
        generation = (self.keys[-1].generation if self.keys else after) + 1
        return replace(self, keys=(*self.keys, DataKey(generation, now_s, secrets.token_bytes(KEY_BYTES))))

    def to_bytes(self) -> bytes:
        record = self.record
        parts = [
            _sized(record.name.encode()), _sized(record.parameters),
            record.parameter_digest, struct.pack("<QBI", record.version, self.has_manifest, len(self.keys)),
        ]  # fmt: skip
        parts += [_KEY.pack(k.generation, k.made_s, k.secret) for k in self.keys]
        parts += [struct.pack("<I", len(self.live)), *self.live]
        parts += [_sized(record.tenant.encode()), _sized(record.owner.encode()), struct.pack("<I", len(record.tags))]
        parts += [_sized(text.encode()) for tag in record.tags for text in tag]
        return b"".join(parts)

    @classmethod
    def parse(cls, collection_id: bytes, raw: bytes) -> State:
        """Raises TamperedDataError."""
        view = _Reader(raw)
        try:
            name = view.text()
            parameters = view.take(view.number("<I"))
            digest = view.take(ID_BYTES)
            version, has_manifest = view.number("<Q"), view.number("<B")
            keys = []
            for _ in range(view.number("<I")):
                keys.append(DataKey(*_KEY.unpack(view.take(_KEY.size))))
            live = tuple(view.take(ID_BYTES) for _ in range(view.number("<I")))
            access: tuple[Any, ...] = ()
            if view.rest:
                tenant, owner = view.text(), view.text()
                access = (tenant, owner, tuple((view.text(), view.text()) for _ in range(view.number("<I"))))
        except (ValueError, struct.error):
            raise TamperedDataError("catalogue: a collection's row has another form than expected") from None
        if view.rest or has_manifest > 1:
            raise TamperedDataError("catalogue: a collection's row has another form than expected")
        record = CollectionRecord(name, collection_id, parameters, digest, version, *access)
        return cls(record, bool(has_manifest), tuple(keys), live)


def _sized(raw: bytes) -> bytes:
    return struct.pack("<I", len(raw)) + raw


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.rest = memoryview(raw)

    def take(self, length: int) -> bytes:
        if length > len(self.rest):
            raise ValueError
        taken, self.rest = bytes(self.rest[:length]), self.rest[length:]
        return taken

    def text(self) -> str:
        return self.take(self.number("<I")).decode()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]


def segment_to_bytes(segment: SegmentRecord, touched_s: float) -> bytes:
    numbers = segment.blocks, segment.stored_bytes, segment.index_bytes, touched_s, segment.generation
    return _SEGMENT.pack(*numbers) + segment.copy


def segment_from_bytes(key: Key, raw: bytes) -> tuple[SegmentRecord, float]:
    """The record and the Unix time of its last upload. Raises TamperedDataError."""
    copy = raw[_SEGMENT.size :]
    if len(raw) < _SEGMENT.size or len(copy) not in (0, COPY_BYTES):
        raise TamperedDataError("catalogue: a segment's row has another form than expected")
    blocks, stored_bytes, index_bytes, touched_s, generation = _SEGMENT.unpack_from(raw)
    return SegmentRecord(*key, blocks, stored_bytes, index_bytes, generation, copy), touched_s

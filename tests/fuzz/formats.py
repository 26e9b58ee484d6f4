"""Parsers of files and of what is sealed: one target each. All work in memory but the readers of vector files."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from he_client.files import read_table
from he_client.keys import FORMAT, MAX_FILE_BYTES, SealedKey
from he_client.manifest import open_manifest, seal_manifest
from he_client.metrics import Space
from he_client.pins import Pin
from he_client.rows import RowTable, check_ids, decode_payload, encode_payloads
from he_client.upkeep.reseal_journal import MAX_FILE_BYTES as MAX_JOURNAL_BYTES
from he_client.upkeep.reseal_journal import Resealed, open_journal
from he_engine.errors import TamperedDataError
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_engine.sealing import seal
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.storage.segment_file import Description, read_description, read_part
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_protobuf, mutate_text
from tests.fuzz.target import Target, scratch

KEY, NEW_KEY = RootKey(bytes(range(32))), RootKey(bytes(range(32, 64)))
COLLECTION = b"collection id 16"
PARAMETERS = Parameters.choose("compact", 4, 128)
PAGE = 4096
MIB = 1 << 20


# ---- the segment file ----------------------------------------------------------------------------------------
class Memory:
    """A file of these bytes (he_server.storage.segment_file.Source)."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        piece = self.data[offset_bytes : offset_bytes + length_bytes]
        if len(piece) != length_bytes:
            raise TamperedDataError("storage: a file ends too early")
        return piece


def segment_bytes(contents: Sequence[bytes]) -> bytes:
    """A whole segment file; its parts have kinds 1, 2 and so on."""
    parts = [(kind, len(part), hashlib.sha256(part).digest()) for kind, part in enumerate(contents, 1)]
    description = Description.of(COLLECTION, PARAMETERS.digest, 1, parts)
    data = bytearray(description.header())
    for entry, part in zip(description.parts, contents, strict=True):
        if part:
            data += bytes(entry.offset_bytes - len(data)) + part
    return bytes(data)


def _read_segment(data: bytes) -> None:
    description = read_description(Memory(data))
    for part in description.parts:
        for _ in read_part(Memory(data), part, 0, part.length_bytes):
            pass


def _repair_segment(data: bytes) -> bytes:
    """The segment id and the checksum of the header as they must be for its other fields; sizes as they are."""
    page = data[:PAGE]
    if len(page) < PAGE or (count := struct.unpack_from("<I", page, 12)[0]) > 60:
        return data
    table = [struct.unpack_from("<IIQQ32s", page, 104 + 56 * i) for i in range(count)]
    try:
        (blocks,) = struct.unpack_from("<Q", page, 96)
        parts = [(kind, length, sha256) for kind, _, _, length, sha256 in table]
        header = Description.of(page[48:64], page[16:48], blocks, parts).header()
    except (OverflowError, struct.error):
        return data
    return header[:PAGE] + data[PAGE:]


def segment_target() -> Target:
    samples = [
        segment_bytes([b"index" * 10, b"", b"rows", b"", b"p" * 5000]),
        segment_bytes([b"index"]),
        segment_bytes([b"i" * PAGE, b"hint"]),
    ]
    return Target(
        name="segment-file",
        run=_read_segment,
        samples=samples,
        mutate=mutate_bytes,
        repair=_repair_segment,
        limit_bytes=4 * MIB,  # chunks of 1 MiB, a few at a time
    )


# ---- what clients seal ---------------------------------------------------------------------------------------
def _entry(number: int, rows: int, deleted: Sequence[int]) -> pb.SegmentEntry:
    parts = [
        pb.Part(kind=pb.PartKind.Name(kind), length_bytes=9, sha256=bytes([number, *range(31)]))
        for kind in (1, 2, 3, 4)
    ]
    return pb.SegmentEntry(segment_id=bytes([number] * 32), blocks=1, rows=rows, parts=parts, deleted_rows=deleted)


def manifest_message() -> pb.Manifest:
    return pb.Manifest(
        format_version=wire.FORMAT_VERSION,
        collection_id=COLLECTION,
        version=3,
        ancestors_sha256=[bytes([2] * 32), bytes([1] * 32)],
        parameters=wire.parameters_to_wire(PARAMETERS),
        parameter_digest=PARAMETERS.digest,
        metric="l2",
        norm_bound=2.0,
        engine_state=bytes(32),
        segments=[_entry(1, 16, [0, 5]), _entry(2, 3, [])],
    )


def _open_manifest(data: bytes) -> None:
    """As sealed by somebody who has the key; the server says of it what it says of itself."""
    try:
        message = pb.Manifest.FromString(data)
    except Exception:
        message = pb.Manifest(collection_id=COLLECTION, version=3)
    aad_of = pb.Manifest(collection_id=message.collection_id, version=message.version)
    from he_client import manifest as module

    sealed = seal(KEY, module.PURPOSE, module._aad("notes", aad_of.collection_id, aad_of.version), data)
    opened = open_manifest(
        KEY,
        "notes",
        pb.ReadManifestResponse(
            collection_id=message.collection_id,
            version=message.version,
            sealed_manifest=sealed,
            live_segments=[s.segment_id for s in message.segments],
        ),
    )
    Pin.of(opened).require_successor(opened)
    opened.successor(list(opened.message.segments))
    assert opened.space.dim == opened.parameters.dim
    assert 0 <= opened.count < 1 << 63
    for entry in opened.message.segments:
        assert all(row < entry.rows for row in entry.deleted_rows), "a deleted row is in its segment"


def manifest_target() -> Target:
    small = manifest_message()
    del small.segments[:], small.ancestors_sha256[:]
    small.version, small.metric, small.norm_bound = 1, "cosine", 1.0
    other = manifest_message()
    other.parameters.CopyFrom(pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=3, stride=1))
    other.parameter_digest = wire.parameters_from_wire(other.parameters).digest
    messages = [manifest_message(), small, other]
    for message in messages:
        seal_manifest(KEY, "notes", message)
    return Target(
        name="manifest",
        run=_open_manifest,
        samples=[message.SerializeToString() for message in messages],
        mutate=mutate_protobuf,
        limit_bytes=wire.MAX_MANIFEST_BYTES,
    )


def _parse_rows(data: bytes) -> None:
    table = RowTable.parse(data, 5)
    assert len(table.ids) == 5
    np.cumsum(table.payload_lengths, dtype=np.uint64)
    assert table.squares is None or table.squares.shape == (5,)


def rows_target() -> Target:
    lengths = np.array([0, 17, 20, 0, 31], np.uint64)
    tables = [
        RowTable([1, -2, 1 << 62, 4, 5], None, bytes(32), b"", np.array([], np.uint64)),
        RowTable(["a", 7, "é" * 30, -1, "b"], np.linspace(0, 1, 5), bytes(32), bytes(32), lengths),
    ]
    return Target(
        name="row-table",
        run=_parse_rows,
        samples=[table.to_bytes() for table in tables],
        mutate=mutate_protobuf,
        limit_bytes=4 * MIB,
    )


def payload_target() -> Target:
    def run(data: bytes) -> None:
        decode_payload(data)

    samples = ["t\ud800é".encode("utf-8", "surrogatepass"), b"b\x00\xff", b"t"]
    return Target(name="payload", run=run, samples=samples, mutate=mutate_text, limit_bytes=MIB)


# ---- files of the user ---------------------------------------------------------------------------------------
def key_file_target() -> Target:
    def run(data: bytes) -> None:
        SealedKey.parse(data)

    kdf = {"name": "argon2id", "iterations": 3, "memory_kib": 65536, "lanes": 4}
    fields = {"format": FORMAT, "version": 1, "kdf": kdf, "salt": "5a" * 16, "nonce": "a5" * 12, "sealed": "0f" * 48}
    return Target(
        name="key-file",
        run=run,
        samples=[(json.dumps(fields, indent=1) + "\n").encode(), json.dumps(fields).encode()],
        mutate=mutate_json,
        limit_bytes=32 * MAX_FILE_BYTES,  # a Python object for every two bytes of JSON
    )


def journal_bytes(path: Path) -> bytes:
    """A journal of a reseal, of two segments."""
    with open_journal(path, COLLECTION, KEY, NEW_KEY, bytes(32)) as journal:
        for entry in manifest_message().segments:
            journal.add(Resealed(entry.segment_id, tuple(entry.deleted_rows), entry))
    return path.read_bytes()


def journal_target() -> Target:
    folder = scratch()
    path = folder / "journal"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        with open_journal(path, COLLECTION, KEY, NEW_KEY, bytes(32)) as journal:
            assert len(journal.done) <= 2

    return Target(
        name="reseal-journal",
        run=run,
        samples=[journal_bytes(path)],
        mutate=mutate_text,
        limit_bytes=MAX_JOURNAL_BYTES,
        close=lambda: shutil.rmtree(folder),
    )


SUFFIXES = (".npy", ".npz", ".csv")


def _vector_samples() -> list[bytes]:
    vectors = np.linspace(-1, 1, 12).reshape(3, 4)
    found: list[bytes] = []
    for array in (vectors, np.asfortranarray(vectors.astype(np.float32)), np.array(["x", "yz"]), vectors.astype(">f2")):
        file = io.BytesIO()
        np.save(file, array)
        found.append(b"\0" + file.getvalue())
    archive: Any
    for save in (np.savez, np.savez_compressed):
        archive = io.BytesIO()
        save(archive, vectors=vectors, ids=np.arange(3), payloads=np.array(["a", "é", ""]))
        found.append(b"\1" + archive.getvalue())
    found.append(b'\2id,payload,vector\n1,"a, b","[0.5, 0.25]"\nx,,1 2\n')
    found.append("\2id,a,b\n-3,0.5,1e-3\n007,1,2\n\n№,inf,nan\n".encode())
    return found


def vectors_target() -> Target:
    """The first byte says which kind of file the rest is."""
    folder = scratch()
    space = Space.make("cosine", 4, None)

    def run(data: bytes) -> None:
        path = folder / f"rows{SUFFIXES[data[0] % len(SUFFIXES) if data else 0]}"
        path.write_bytes(data[1:])
        table = read_table(path)
        if table.ids is not None:
            check_ids(table.ids)
        if table.payloads is not None:
            encode_payloads(table.payloads, len(table.payloads))
        space.check_rows(table.vectors)

    def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        rest = [other[1:] for other in others if other[:1] == data[:1]] or [b""]
        change = mutate_text if data[:1] == b"\2" or rng.random() < 0.3 else mutate_bytes
        return data[:1] + change(rng, data[1:], rest)

    return Target(
        name="vector-files",
        run=run,
        samples=_vector_samples(),
        mutate=mutate,
        limit_bytes=96 * MIB,  # 64 KiB, deflated at most 1032 times, and what is made of them
        close=lambda: shutil.rmtree(folder),
    )

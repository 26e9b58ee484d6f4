"""Parsers of what the server keeps beside segment files, of backups, archives, and of its configuration."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import struct
from pathlib import PurePosixPath

from he_client.upkeep.archive_format import MAX_BODY_BYTES, ArchivedCollection, ArchiveWriter, read_archive
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.config_file import make_config, to_toml
from he_server.operate.backup_list import CATALOGUE, LIST, Entry, digest, read_list, write_list
from he_server.storage.catalogue_rows import (
    CollectionRecord,
    SegmentRecord,
    State,
    segment_from_bytes,
    segment_to_bytes,
)
from he_server.storage.cells import close_cell, open_cell
from he_server.storage.kek import SecretKek
from he_server.storage.sealed_file import Envelope, NewSealedFile, SealedFile
from he_server.storage.segment_file import read_description, read_part
from tests.fuzz.formats import COLLECTION, KEY, MIB, PAGE, PARAMETERS, segment_bytes
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_text
from tests.fuzz.target import Target, scratch


# ---- the archive ---------------------------------------------------------------------------------------------
def archive_bytes(segments: int) -> bytes:
    headers, contents = [], []
    for number in range(segments):
        parts = {pb.PART_KIND_INDEX: bytes([number]) * 100, pb.PART_KIND_ROWS: b"rows", pb.PART_KIND_PAYLOADS: b""}
        headers.append(wire.segment_header("notes", COLLECTION, PARAMETERS.digest, 1, parts))
        contents.append(b"".join(parts.values()))
    live = tuple(header.segment_id for header in headers)
    stream = io.BytesIO()
    writer = ArchiveWriter(stream)
    writer.collection(ArchivedCollection("notes", COLLECTION, PARAMETERS, 5, b"sealed manifest", live))
    for header, content in zip(headers, contents, strict=True):
        writer.segment(header)
        writer.write(content)
    writer.end()
    return stream.getvalue()


def _repair_archive(data: bytes) -> bytes:
    """The digests of the records as far as they can be found, and that at the end."""
    out, at = bytearray(data), 12
    while at + 12 <= len(out):
        kind, length = struct.unpack_from("<IQ", out, at)
        end = at + 12 + length
        if not 1 <= kind <= 3 or end + 32 > len(out):
            break
        if kind == 3 and length == 32:
            out[at + 12 : end] = hashlib.sha256(out[:at]).digest()
        out[end : end + 32] = hashlib.sha256(out[at:end]).digest()
        if kind == 2 and length >= 88:  # its parts' bytes follow
            count = (length - 44) // 44
            end += sum(struct.unpack_from("<Q", out, at + 56 + 44 * i + 4)[0] for i in range(count))
        at = end + 32
    return bytes(out)


def archive_target() -> Target:
    def run(data: bytes) -> None:
        read_archive(io.BytesIO(data)).verify()

    return Target(
        name="archive",
        run=run,
        samples=[archive_bytes(segments) for segments in (0, 1, 3)],
        mutate=mutate_bytes,
        repair=_repair_archive,
        limit_bytes=MAX_BODY_BYTES,
    )


# ---- the catalogue -------------------------------------------------------------------------------------------
def catalogue_target() -> Target:
    """The first byte says what the rest is: a cell as it lies in the file, or what a sound cell holds."""
    parameters = wire.parameters_to_wire(PARAMETERS).SerializeToString()
    state = State(CollectionRecord("notes", COLLECTION, parameters, PARAMETERS.digest, 3), True, (), (bytes(32),))
    record = SegmentRecord(COLLECTION, bytes(32), 1, 2, 3, 4)
    contents = [state.to_bytes(), state.with_new_key(1e9).to_bytes(), segment_to_bytes(record, 1e9)]
    wrapped = SecretKek(KEY).wrap(bytes(32), b"context")

    def run(data: bytes) -> None:
        kind, rest = data[:1] or b"\0", data[1:]
        if kind == b"\0":
            State.parse(COLLECTION, rest).key(1)
        elif kind == b"\1":
            segment_from_bytes((COLLECTION, bytes(32)), rest)
        elif kind == b"\2":
            RootKey(SecretKek(KEY).unwrap(rest, b"context"))
        else:
            open_cell(KEY if kind == b"\3" else None, "collection", b"aad", rest)

    return Target(
        name="catalogue-cell",
        run=run,
        samples=[
            *(b"\0" + content for content in contents[:2]),
            b"\1" + contents[2],
            b"\2" + wrapped,
            b"\3" + close_cell(KEY, "collection", b"aad", contents[0]),
            b"\4" + close_cell(None, "collection", b"aad", contents[0]),
        ],
        mutate=mutate_bytes,
        limit_bytes=MIB,
    )


# ---- files sealed at rest ------------------------------------------------------------------------------------
def sealed_target() -> Target:
    folder = scratch()
    content = segment_bytes([b"index" * 10, b"hint"])
    with NewSealedFile(folder, KEY, 3, COLLECTION, bytes(32), len(content)) as file:
        file.append(content)
        file.sync()
        sample = file.path.read_bytes()
    path = folder / "segment.3"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        sealed = SealedFile(path, KEY)
        description = read_description(sealed)
        for part in description.parts:
            for _ in read_part(sealed, part, 0, part.length_bytes):
                pass

    def repair(data: bytes) -> bytes:
        fixed = data[:104].ljust(104, b"\0")
        return (fixed + hashlib.sha256(fixed).digest()).ljust(PAGE, b"\0") + data[PAGE:]

    Envelope.parse(sample[:PAGE])
    return Target(
        name="sealed-file",
        run=run,
        samples=[sample],
        mutate=mutate_bytes,
        repair=repair,
        limit_bytes=4 * MIB,
        close=lambda: shutil.rmtree(folder),
    )


# ---- the list of a backup ------------------------------------------------------------------------------------
def backup_list_target() -> Target:
    folder = scratch()
    (folder / "incoming").mkdir()
    segments = {f"segments/{COLLECTION.hex()}/{number:064x}{suffix}": Entry(4096 << number, f"{number:064x}")
                for number, suffix in ((1, ""), (2, ".1"), (3, ".4294967295"))}  # fmt: skip
    samples = []
    for entries in ({}, segments):
        write_list(folder, {CATALOGUE: Entry(20480, "ab" * 32), **entries}, 1.7e9)
        samples.append((folder / LIST).read_bytes())

    def run(data: bytes) -> None:
        (folder / LIST).write_bytes(data)
        for place, entry in read_list(folder).items():  # nothing outside, and nothing that is no file of a data folder
            assert PurePosixPath(place).parts[0] in (CATALOGUE, "segments") and ".." not in place
            assert entry.length_bytes >= 0 and len(bytes.fromhex(entry.sha256)) == 32
        taken = json.loads(data)
        assert (
            type(taken["format"]) is int and type(taken["made_s"]) in (int, float) and abs(taken["made_s"]) < math.inf
        )

    def repair(data: bytes) -> bytes:
        """With the digest of what it says now."""
        try:
            content = json.loads(data)
            content.pop("sha256", None)
            return json.dumps(content | {"sha256": digest(content)}).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            return data

    return Target(
        name="backup-list",
        run=run,
        samples=samples,
        mutate=mutate_json,
        repair=repair,
        limit_bytes=2 * MIB,  # what JSON becomes
        close=lambda: shutil.rmtree(folder),
    )


# ---- the configuration ---------------------------------------------------------------------------------------
def config_target() -> Target:
    folder = scratch()
    path = folder / "server.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        make_config(path, {})

    whole = to_toml(ServerConfig(data=folder, insecure=True)).splitlines()
    samples = ['data = "x"\n' + "\n".join(lines) + "\n" for lines in (whole[4:10], whole[-40:-20], ["threads = 2"])]
    return Target(
        name="config-file",
        run=run,
        samples=[sample.encode() for sample in samples],
        mutate=mutate_text,
        limit_bytes=16 * MIB,
        close=lambda: shutil.rmtree(folder),
    )

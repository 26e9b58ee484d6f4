"""docs/format.md is enough to read every file: a second reader, written from it, that shares no code with the first.

It opens the newest fixtures (tests/fixtures). Only the messages are hesearch's own, since the protocol describes them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from he_proto.v1 import hesearch_pb2 as pb
from tests.fixtures.make import PASSPHRASE, ROOT

K = ROOT


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format")
    with tarfile.open(Path(__file__).parent / "fixtures/v2/files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def lp(*fields: bytes | str | int) -> bytes:
    out = b""
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        raw = raw.to_bytes(8, "big") if isinstance(raw, int) else raw
        out += len(raw).to_bytes(8, "big") + raw
    return out


def kdf(key: bytes, label: str, *context: bytes | str) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=32, info=lp("hesearch 1", label, *context)).derive(key)


def unseal(key: bytes, purpose: str, aad: bytes, sealed: bytes) -> bytes:
    return AESGCM(kdf(key, "seal", purpose, sealed[:32])).decrypt(bytes(12), sealed[32:], aad)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def stretched(salt: bytes) -> bytes:
    return Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536).derive(PASSPHRASE.encode())


class Fields:
    """Numbers and bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, form: str) -> Any:
        found = struct.unpack_from("<" + form, self.rest)
        self.rest = self.rest[struct.calcsize("<" + form) :]
        return found[0] if len(found) == 1 else found

    def text(self) -> bytes:
        return bytes(self.take(f"{self.take('I')}s"))


def read_segment(data: bytes) -> tuple[bytes, bytes]:
    """Section 3.1: (collection id, segment id); every part is opened."""
    magic, version, count, parameters, collection, segment, blocks = struct.unpack_from("<8sII32s16s32sQ", data)
    end = 104 + 56 * count
    assert (magic, version) == (b"HESEARCH", 1) and sha256(data[:end]) == data[end : end + 32]
    assert not any(data[end + 32 : 4096])
    fields = [b"hesearch segment 1", collection, parameters, struct.pack("<Q", blocks)]
    parts, place = {}, 4096
    for at in range(104, end, 56):
        kind, zero, offset, length, digest = struct.unpack_from("<IIQQ32s", data, at)
        assert zero == 0 and offset == -(-place // 4096) * 4096 and not any(data[place:offset])
        parts[kind], place = data[offset : offset + length], offset + length
        assert sha256(parts[kind]) == digest
        fields.append(struct.pack("<IQ", kind, length) + digest)
    assert place == len(data)
    assert segment == sha256(b"".join(struct.pack("<I", len(field)) + field for field in fields))
    open_parts(parts, lambda what: lp(what, collection, parameters))
    return collection, segment


def open_parts(parts: dict[int, bytes], aad: Any) -> None:
    table = pb.RowTable.FromString(unseal(K, "row table", aad("row table"), parts[3]))
    assert len(table.numbers) + len(table.texts) == table.rows
    if 4 in parts:
        assert (len(unseal(K, "fingerprint", aad("fingerprint"), parts[4])) - 32) % 12 == 0
    at = 0
    for row, length in enumerate(table.payload_lengths):
        if length:
            cipher = AESGCM(kdf(K, "records", "payloads", aad("payloads"), table.payload_salt))
            record = cipher.decrypt(row.to_bytes(12, "big"), parts[5][at : at + length], aad("payloads"))
            assert record[:1] in (b"t", b"b")
        at += length
    assert at == len(parts.get(5, b""))


def unseal_file(data: bytes, key: bytes, generation: int) -> bytes:
    """Section 3.2."""
    magic, version, found, collection, segment, length, _ = struct.unpack_from("<8sII16s32sQ32s", data)
    assert (magic, version, found) == (b"HESEARCH", 2, generation) and sha256(data[:104]) == data[104:136]
    cipher, step = AESGCM(kdf(key, "segment file", data[:104])), (1 << 20) + 16
    chunks = [data[at : at + step] for at in range(4096, len(data), step)]
    opened = [cipher.decrypt(i.to_bytes(12, "big"), chunk, data[:4096]) for i, chunk in enumerate(chunks)]
    plain = b"".join(opened)
    assert len(plain) == length and read_segment(plain) == (collection, segment)
    return plain


def folder_key(wrapped: bytes, kind: str, files: Path) -> bytes | None:
    """Section 4."""
    if kind == "passphrase":
        return unseal(stretched(wrapped[:16]), "key encryption", b"hesearch folder key", wrapped[16:])
    return unseal((files / "file").read_bytes(), "key encryption", b"hesearch folder key", wrapped) if kind else None


def open_cell(key: bytes | None, what: str, aad: bytes, cell: bytes) -> bytes:
    if key is not None:
        assert cell[0] == 1
        return unseal(key, what, aad, cell[1:])
    assert cell[0] == 0 and cell[1:33] == sha256(lp(what, aad) + cell[33:])
    return cell[33:]


@pytest.mark.parametrize(
    ("folder", "kind"), [("data", ""), ("sealed-file", "file"), ("sealed-passphrase", "passphrase")]
)
def test_data_folder(files: Path, folder: str, kind: str) -> None:
    """Sections 2 to 5 and 7."""
    root = files / folder
    db = sqlite3.connect(root / "catalogue.sqlite")
    pragmas = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    assert pragmas == [0x48455352, 2]
    key = folder_key(db.execute("SELECT wrapped_key FROM folder").fetchone()[0], kind, files)
    seen = set()
    for collection, cell, manifest_cell in db.execute("SELECT collection_id, state, manifest FROM collections"):
        state = Fields(open_cell(key, "collection", collection, cell))
        name, parameters, _digest = state.text().decode(), pb.Parameters.FromString(state.text()), state.take("32s")
        version, has_manifest = state.take("QB")
        keys = {
            generation: data_key for generation, _, data_key in (state.take("Id32s") for _ in range(state.take("I")))
        }
        live = [state.take("32s") for _ in range(state.take("I"))]
        assert state.rest == b"" and has_manifest == 1 and bool(keys) == bool(kind)
        sealed = open_cell(key, "manifest", lp(collection, version), manifest_cell)
        manifest = pb.Manifest.FromString(unseal(K, "manifest", lp("manifest", name, collection, 0, version), sealed))
        assert manifest.parameters == parameters and [s.segment_id for s in manifest.segments] == live
        for segment in live:
            query = "SELECT cell FROM segments WHERE (collection_id, segment_id) = (?, ?)"
            raw = open_cell(
                key, "segment", lp(collection, segment), db.execute(query, (collection, segment)).fetchone()[0]
            )
            generation = struct.unpack("<QQQdI", raw)[4]
            path = root / "segments" / collection.hex() / (segment.hex() + (f".{generation}" if generation else ""))
            data = path.read_bytes()
            plain = unseal_file(data, keys[generation], generation) if generation else data
            assert read_segment(plain) == (collection, segment)
            seen.add(path)
    db.close()
    assert seen == set((root / "segments").glob("*/*"))


@pytest.mark.parametrize("name", ["compact-cosine-int", "exact-l2-text", "exact-empty"])
def test_archive(files: Path, name: str) -> None:
    """Section 6."""
    data, at, kinds = (files / f"{name}.archive").read_bytes(), 12, []
    assert data[:12] == b"HESARCHV" + struct.pack("<I", 1)
    while at < len(data):
        kind, length = struct.unpack_from("<IQ", data, at)
        body, end = data[at + 12 : at + 12 + length], at + 12 + length
        assert data[end : end + 32] == sha256(data[at:end])
        kinds.append(kind)
        at, start = end + 32, at
        if kind == 1:
            *_, profile, name_bytes, manifest_bytes, segments = struct.unpack_from("<16s32sQIII16sIII", body)
            assert body[96 : 96 + name_bytes].decode() == name and name.startswith(profile.rstrip(b"\0").decode())
            assert len(body) == 96 + name_bytes + manifest_bytes + 32 * segments
        elif kind == 2:
            for part in range(44, len(body), 44):
                _, length, digest = struct.unpack_from("<IQ32s", body, part)
                assert sha256(data[at : at + length]) == digest
                at += length
        else:
            assert body == sha256(data[:start])
    assert kinds == [1, *[2] * segments, 3]


def test_key_file(files: Path) -> None:
    """Section 7."""
    header = json.loads((files / "notes.key").read_text())
    sealed, salt, nonce = (bytes.fromhex(header[name]) for name in ("sealed", "salt", "nonce"))
    del header["sealed"]
    aad = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    assert AESGCM(stretched(salt)).decrypt(nonce, sealed, aad) == K


def test_cache(files: Path) -> None:
    """Section 7."""
    cached = list((files / "cache").iterdir())
    assert cached
    for path in cached:
        assert path.name == sha256(path.read_bytes()).hex()

"""A file sealed at rest (segment file, format version 2): AES-256-GCM around the bytes of a file of format version 1.

Numbers are little-endian. The first page of 4096 bytes:

    offset   bytes  what
    0        8      magic, "HESEARCH"
    8        4      format version, 2
    12       4      generation of the collection's data key
    16       16     collection id
    32       32     segment id
    64       8      L, the length of what is sealed
    72       32     salt, random
    104      32     SHA-256 of bytes 0 to 103
    136      3960   zeros

Chunk i starts at 4096 + i·(2^20 + 16): AES-256-GCM(file key, nonce = i as 12 bytes big-endian, bytes i·2^20 to
(i + 1)·2^20 − 1 of what is sealed, aad = the first page), its tag of 16 bytes at the end. The last one is shorter.

    file key = HKDF-Expand(data key, "segment file" ‖ bytes 0 to 103)

A file key encrypts one file, once, from its start to its end: no nonce repeats, whatever is sealed under the data key.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from he_engine.engine import Buffer
from he_engine.errors import FormatVersionError, TamperedDataError
from he_engine.keys import RootKey
from he_server.storage.files import PAGE_BYTES, NewFile, PlainFile, storage_errors

MAGIC = b"HESEARCH"
SEALED_FORMAT_VERSION = 2
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
_FIXED = struct.Struct("<8sII16s32sQ32s")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The first page of a sealed file."""

    generation: int
    collection_id: bytes
    segment_id: bytes
    length_bytes: int
    salt: bytes

    def _fixed(self) -> bytes:
        return _FIXED.pack(
            MAGIC,
            SEALED_FORMAT_VERSION,
            self.generation,
            self.collection_id,
            self.segment_id,
            self.length_bytes,
            self.salt,
        )

    def page(self) -> bytes:
        fixed = self._fixed()
        return (fixed + hashlib.sha256(fixed).digest()).ljust(PAGE_BYTES, b"\0")

    def cipher(self, data_key: RootKey) -> AESGCM:
        return AESGCM(data_key.derive("segment file", self._fixed()))

    @property
    def file_id(self) -> tuple[bytes, bytes, int]:
        return self.collection_id, self.segment_id, self.generation

    @property
    def file_bytes(self) -> int:
        return PAGE_BYTES + self.length_bytes + -(-self.length_bytes // CHUNK_BYTES) * TAG_BYTES

    @classmethod
    def parse(cls, page: bytes) -> Self:
        """Raises TamperedDataError; FormatVersionError for another version."""
        magic, version, generation, collection_id, segment_id, length_bytes, salt = _FIXED.unpack_from(page)
        if magic != MAGIC:
            raise TamperedDataError("segment file: its magic is not that of a segment")
        if version != SEALED_FORMAT_VERSION:
            raise FormatVersionError(f"segment file: got format version {version}, expected {SEALED_FORMAT_VERSION}")
        envelope = cls(generation, collection_id, segment_id, length_bytes, salt)
        if envelope.page() != page:
            raise TamperedDataError("segment file: the first page does not match its checksum")
        return envelope


def _nonce(chunk: int) -> bytes:
    return chunk.to_bytes(12, "big")


class NewSealedFile(NewFile):
    """A NewFile whose bytes are sealed on their way; positions are those of what is sealed."""

    def __init__(
        self,
        folder: Path,
        data_key: RootKey,
        generation: int,
        collection_id: bytes,
        segment_id: bytes,
        length_bytes: int,
    ) -> None:
        super().__init__(folder)
        envelope = Envelope(generation, collection_id, segment_id, length_bytes, secrets.token_bytes(32))
        self._length_bytes = length_bytes
        self._page = envelope.page()
        self._cipher = envelope.cipher(data_key)
        self._chunks = 0
        self._waiting = bytearray()
        try:
            super().append(self._page)
        except BaseException:
            self.__exit__()
            raise
        self.position_bytes = 0

    def append(self, data: Buffer) -> None:
        view = memoryview(data)
        position_bytes = self.position_bytes + len(view)
        while view:
            piece = view[: CHUNK_BYTES - len(self._waiting)]
            self._waiting += piece
            view = view[len(piece) :]
            if len(self._waiting) == CHUNK_BYTES:
                self._seal()
        self.position_bytes = position_bytes

    def _seal(self) -> None:
        """The next chunk: each number once, and never again after a write that failed."""
        nonce = _nonce(self._chunks)
        self._chunks += 1
        sealed = self._cipher.encrypt(nonce, self._waiting, self._page)
        self._waiting.clear()
        super().append(sealed)

    def sync(self) -> None:
        if self.position_bytes != self._length_bytes:
            raise AssertionError(f"sealed file: got {self.position_bytes} bytes, expected {self._length_bytes}")
        if self._waiting:
            self._seal()
        super().sync()


class SealedFile:
    """Reads what is sealed in a file, at any position. Raises TamperedDataError where a chunk was altered."""

    def __init__(self, path: Path, data_key: RootKey) -> None:
        with storage_errors("reading"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        self._file = PlainFile(Path(f"/proc/self/fd/{descriptor}"))  # another salt's file may take its name
        self._page = self._file.read(0, PAGE_BYTES)
        self.envelope = Envelope.parse(self._page)
        self._cipher = self.envelope.cipher(data_key)
        if (size := self._file.size_bytes()) != self.envelope.file_bytes:
            raise TamperedDataError(f"segment file: got {size} bytes, expected {self.envelope.file_bytes}")

    def size_bytes(self) -> int:
        return self.envelope.length_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        out = bytearray(length_bytes)
        self.read_into(offset_bytes, memoryview(out))
        return bytes(out)

    def read_into(self, offset_bytes: int, out: memoryview) -> None:
        """Fills `out` with the bytes from `offset_bytes` on."""
        end_bytes = offset_bytes + len(out)
        if end_bytes > self.envelope.length_bytes:
            raise TamperedDataError(f"storage: a file ends {end_bytes - self.envelope.length_bytes} bytes too early")
        buffer = memoryview(bytearray(CHUNK_BYTES + TAG_BYTES))
        with self._file.opened() as read_into:
            for chunk in range(offset_bytes // CHUNK_BYTES, -(-end_bytes // CHUNK_BYTES)):
                start = chunk * CHUNK_BYTES
                length = min(CHUNK_BYTES, self.envelope.length_bytes - start)
                sealed = buffer[: length + TAG_BYTES]
                read_into(PAGE_BYTES + chunk * (CHUNK_BYTES + TAG_BYTES), sealed)
                first, last = max(start, offset_bytes), min(start + length, end_bytes)
                try:
                    with out[first - offset_bytes : last - offset_bytes] as target:  # not left open by an error
                        if len(target) == length:
                            self._cipher.decrypt_into(_nonce(chunk), sealed, self._page, target)
                        else:
                            opened = self._cipher.decrypt(_nonce(chunk), sealed, self._page)
                            target[:] = memoryview(opened)[first - start : last - start]
                except InvalidTag:
                    raise TamperedDataError("segment file: a sealed chunk does not match its tag") from None

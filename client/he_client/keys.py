"""CollectionKey: the one secret of a collection, and its file under a passphrase (keyring has the other ways).

The file is JSON: the key under AES-256-GCM, under a key from the passphrase by Argon2id (RFC 9106's second
recommended option: 64 MiB, 3 passes, 4 lanes). The header is authenticated. Mode 0600, written to a
temporary file, synced and linked into place, so a key file is whole or absent, and never replaced unasked.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from he_engine.errors import AlreadyExists, FormatVersionError, InvalidInput, NotFound, WrongKeyError
from he_engine.keys import KEY_BYTES, RootKey

FORMAT = "hesearch collection key"
VERSION = 1
ITERATIONS, MEMORY_KIB, LANES = 3, 65536, 4
MAX_ITERATIONS, MAX_MEMORY_KIB, MAX_LANES = 16, 1 << 18, 16  #: a hostile file must not exhaust the reader
MAX_FILE_BYTES = 1 << 16


class StoredKey(RootKey):
    """A root key that has a file."""

    __slots__ = ()
    file_format: ClassVar[str]

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def save(self, path: str | os.PathLike[str], passphrase: str) -> None:
        """Write the key, sealed under `passphrase`.

        Raises AlreadyExists where the file exists, InvalidInput for an empty passphrase.
        """
        root = self.reveal()
        if not passphrase:
            raise InvalidInput("passphrase: got an empty one; the key file would protect nothing")
        header: dict[str, Any] = {
            "format": self.file_format,
            "version": VERSION,
            "kdf": {"name": "argon2id", "iterations": ITERATIONS, "memory_kib": MEMORY_KIB, "lanes": LANES},
            "salt": secrets.token_hex(16),
            "nonce": secrets.token_hex(12),
        }
        sealed = _cipher(header, passphrase).encrypt(bytes.fromhex(header["nonce"]), root, canonical(header))
        root[:] = bytes(KEY_BYTES)
        write_new(Path(path), json.dumps({**header, "sealed": sealed.hex()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str) -> Self:
        """Raises NotFound, FormatVersionError for a file that is not one of ours, WrongKeyError."""
        source = Path(path)
        raw = read_key_file(source)
        try:
            sealed = SealedKey.parse(raw, cls.file_format)
        except FormatVersionError as error:
            raise FormatVersionError(f"{source}: {error}") from None
        try:
            root = sealed.open(passphrase)
        except InvalidTag:
            raise WrongKeyError(f"{source}: wrong passphrase, or the file was altered") from None
        key = cls(root)
        root[:] = bytes(KEY_BYTES)
        return key

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name this key and tell nothing of it."""
        return self.derive("key id", length_bytes=8).hex()

    def reveal(self) -> bytearray:
        """A copy of the 32 bytes, for who seals, wraps or splits them and overwrites it then."""
        if self._root is None:
            raise InvalidInput("this key is closed")
        return bytearray(self._root)


class CollectionKey(StoredKey):
    """Encrypts, searches and opens every collection that it created. Losing it is losing the data."""

    __slots__ = ()
    file_format = FORMAT


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SealedKey:
    """What a key file holds, checked, not yet opened."""

    header: dict[str, Any]
    sealed: bytes

    @classmethod
    def parse(cls, raw: bytes, expected: str = FORMAT) -> SealedKey:
        """Checks every field, and that there are no others; stretches nothing. Raises FormatVersionError."""
        try:
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError
            header = json.loads(raw.decode())
            sealed = bytes.fromhex(header.pop("sealed"))
            kdf, salt = header["kdf"], bytes.fromhex(header["salt"])
            iterations, memory_kib, lanes = (_integer(kdf[name]) for name in ("iterations", "memory_kib", "lanes"))
            right = (
                header.keys() == {"format", "version", "kdf", "salt", "nonce"}
                and (header["format"], _integer(header["version"])) == (expected, VERSION)
                and kdf.keys() == {"name", "iterations", "memory_kib", "lanes"}
                and kdf["name"] == "argon2id"
                and 1 <= iterations <= MAX_ITERATIONS
                and 1 <= lanes <= MAX_LANES
                and 8 * lanes <= memory_kib <= MAX_MEMORY_KIB
                and len(salt) == 16
                and len(bytes.fromhex(header["nonce"])) == 12
                and len(sealed) == KEY_BYTES + 16
            )
            if not right:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatVersionError(f"not a hesearch key file of version {VERSION} ({expected})") from None
        return cls(header, sealed)

    def open(self, passphrase: str) -> bytearray:
        """The root key. Raises InvalidTag for another passphrase, or where a byte was altered."""
        root, nonce = bytearray(KEY_BYTES), bytes.fromhex(self.header["nonce"])
        _cipher(self.header, passphrase).decrypt_into(nonce, self.sealed, canonical(self.header), root)
        return root


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def canonical(header: dict[str, Any]) -> bytes:
    """The same bytes for the same fields."""
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _cipher(header: dict[str, Any], passphrase: str) -> AESGCM:
    kdf = header["kdf"]
    stretched = Argon2id(
        salt=bytes.fromhex(header["salt"]),
        length=32,
        iterations=kdf["iterations"],
        lanes=kdf["lanes"],
        memory_cost=kdf["memory_kib"],
    )
    return AESGCM(stretched.derive(passphrase.encode("utf-8", "surrogatepass")))


def read_key_file(source: Path) -> bytes:
    """At most one byte more than any such file has. Raises NotFound."""
    try:
        with source.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"key file {source}: {error.strerror}") from None


def write_new(target: Path, text: str) -> None:
    """A private file that is whole or absent. Raises AlreadyExists, NotFound where its folder is missing."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise NotFound(f"key file {target}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, target)  # fails where the target exists, unlike rename
        except FileExistsError:
            raise AlreadyExists(f"key file {target}: exists; keys are never overwritten") from None
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)

"""CollectionKey: the one secret of a collection, and its file.

The file is JSON: the key under AES-256-GCM, under a key from the passphrase by Argon2id (RFC 9106's second
recommended option: 64 MiB, 3 passes, 4 lanes). The header is authenticated. Mode 0600, written to a
temporary file, synced and linked into place, so a key file is whole or absent, and never replaced unasked.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from he_engine.errors import AlreadyExists, FormatVersionError, InvalidInput, NotFound, WrongKeyError
from he_engine.keys import KEY_BYTES, RootKey

FORMAT = "hesearch collection key"
VERSION = 1
ITERATIONS, MEMORY_KIB, LANES = 3, 65536, 4
MAX_ITERATIONS, MAX_MEMORY_KIB, MAX_LANES = 64, 1 << 20, 64  #: a hostile file must not exhaust the reader


class CollectionKey(RootKey):
    """Encrypts, searches and opens every collection that it created. Losing it is losing the data."""

    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def save(self, path: str | os.PathLike[str], passphrase: str) -> None:
        """Write the key, sealed under `passphrase`.

        Raises AlreadyExists where the file exists, InvalidInput for an empty passphrase.
        """
        target = Path(path)
        if self._root is None:
            raise InvalidInput("this key is closed")
        if not passphrase:
            raise InvalidInput("passphrase: got an empty one; the key file would protect nothing")
        header = {
            "format": FORMAT,
            "version": VERSION,
            "kdf": {"name": "argon2id", "iterations": ITERATIONS, "memory_kib": MEMORY_KIB, "lanes": LANES},
            "salt": secrets.token_hex(16),
            "nonce": secrets.token_hex(12),
        }
        wrapping = _stretch(header, passphrase)
        nonce = bytes.fromhex(str(header["nonce"]))
        sealed = AESGCM(wrapping).encrypt(nonce, bytes(self._root), _canonical(header))
        _write_new(target, json.dumps({**header, "sealed": sealed.hex()}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str) -> Self:
        """Raises NotFound, FormatVersionError for a file that is not one of ours, WrongKeyError."""
        source = Path(path)
        try:
            raw = source.read_bytes()[: 1 << 16]
        except OSError as error:
            raise NotFound(f"key file {source}: {error.strerror}") from None
        try:
            fields = json.loads(raw)
            sealed = bytes.fromhex(fields.pop("sealed"))
            nonce = bytes.fromhex(fields["nonce"])
            if fields["format"] != FORMAT or fields["version"] != VERSION or len(nonce) != 12:
                raise ValueError
            wrapping = _stretch(fields, passphrase)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
            raise FormatVersionError(f"{source}: not a hesearch key file of version {VERSION}") from None
        try:
            root = AESGCM(wrapping).decrypt(nonce, sealed, _canonical(fields))
        except InvalidTag:
            raise WrongKeyError(f"{source}: wrong passphrase, or the file was altered") from None
        return cls(root)


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _stretch(header: dict[str, Any], passphrase: str) -> bytes:
    kdf = header["kdf"]
    iterations, memory, lanes = int(kdf["iterations"]), int(kdf["memory_kib"]), int(kdf["lanes"])
    if kdf["name"] != "argon2id" or iterations > MAX_ITERATIONS or memory > MAX_MEMORY_KIB or lanes > MAX_LANES:
        raise ValueError
    return Argon2id(
        salt=bytes.fromhex(header["salt"]), length=32, iterations=iterations, lanes=lanes, memory_cost=memory
    ).derive(passphrase.encode())


def _write_new(target: Path, text: str) -> None:
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

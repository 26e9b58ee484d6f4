"""The key that wraps all others at rest: where it comes from. The server's disk never holds it in the clear.

    file:PATH         32 random bytes in a file of its own, on another disk or from a secret store (`hesearch kek new`)
    passphrase:PATH   the first line of a file; Argon2id makes the key, its salt lies in what is wrapped
    exec:PROGRAM      a key management service: the program gets the word wrap or unwrap as its argument and one line of
                      hexadecimal on its input, and gives one line of hexadecimal

What is wrapped is the folder key (he_server.storage.catalogue_file), 32 bytes, once for the whole data folder.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from he_engine.errors import AlreadyExists, InvalidInput, NotFound, TamperedDataError, WrongKeyError
from he_engine.key_program import KeyProgram
from he_engine.keys import KEY_BYTES, RootKey, Secret
from he_engine.sealing import seal, unseal

_PURPOSE = "key encryption"
_SALT_BYTES = 16
ITERATIONS, MEMORY_KIB, LANES = 3, 65536, 4


class KeyProvider(Protocol):
    """Wraps a key so that only it can unwrap it. `context` must be the same both times."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Raises Unavailable where a service cannot be reached."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises WrongKeyError where this provider did not wrap it, or it was altered; Unavailable."""


class SecretKek(Secret):
    """A key that this process holds."""

    def __init__(self, kek: RootKey) -> None:
        self._kek = kek

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return seal(self._kek, _PURPOSE, context, key)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return unseal(self._kek, _PURPOSE, context, wrapped)
        except TamperedDataError:
            raise WrongKeyError("kek: it does not open this data folder (or the wrapped key was altered)") from None


class PassphraseKek(Secret):
    """A key made of a passphrase: salt (16 bytes) ‖ what SecretKek wraps under Argon2id(passphrase, salt)."""

    def __init__(self, passphrase: bytes) -> None:
        if not passphrase:
            raise InvalidInput("kek: got an empty passphrase; it would protect nothing")
        self._passphrase = passphrase

    def _stretched(self, salt: bytes) -> SecretKek:
        kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB)
        return SecretKek(RootKey(kdf.derive(self._passphrase)))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        salt = secrets.token_bytes(_SALT_BYTES)
        return salt + self._stretched(salt).wrap(key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if len(wrapped) < _SALT_BYTES:
            raise WrongKeyError("kek: this data folder was not sealed with a passphrase")
        return self._stretched(wrapped[:_SALT_BYTES]).unwrap(wrapped[_SALT_BYTES:], context)


def open_kek(spec: str) -> KeyProvider:
    """file:PATH, passphrase:PATH or exec:PROGRAM. Raises InvalidInput, NotFound."""
    kind, colon, where = spec.partition(":")
    if not colon or not where or kind not in ("file", "passphrase", "exec"):
        raise InvalidInput(f"kek: got {spec!r}, expected file:PATH, passphrase:PATH or exec:PROGRAM")
    if kind == "exec":
        return KeyProgram(where, "kek")
    content = _private(Path(where))
    if kind == "passphrase":
        return PassphraseKek(content.split(b"\n", 1)[0].rstrip(b"\r"))
    if len(content) != KEY_BYTES:
        raise InvalidInput(
            f"kek: got {len(content)} bytes in {where}, expected {KEY_BYTES}; `hesearch kek new` makes one"
        )
    return SecretKek(RootKey(content))


def _private(path: Path) -> bytes:
    """A file's content. Raises NotFound; InvalidInput if others than its owner and group may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o007:
                raise InvalidInput(f"kek: everybody may read {path} (mode {mode:o}); run chmod 600 on it")
            return file.read(1 << 16)
    except OSError as error:
        raise NotFound(f"kek: {path}: {error.strerror}") from None


def new_kek_file(path: Path) -> None:
    """A new random key in a new file, mode 600, durable. Raises AlreadyExists, NotFound."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"kek: {path} exists; keys are never overwritten") from None
    except OSError as error:
        raise NotFound(f"kek: {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

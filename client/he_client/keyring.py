"""The key ring: collection keys in a folder, a file each, and what locks them.

    passphrase   Argon2id makes the key that seals it (he_client.keys)
    keyring      a random key seals it, an entry of the operating system's keyring (PyPI `keyring`)
    exec         a program wraps it, for a key management service (he_engine.key_program)

A file says what locks it, but not which program: a file from elsewhere must not choose what runs here. The file of
the last two is JSON; its fields are authenticated with what is sealed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from he_client.keys import MAX_FILE_BYTES, CollectionKey, StoredKey, canonical, read_key_file, write_new
from he_engine.errors import (
    AlreadyExists,
    FormatVersionError,
    InvalidInput,
    MissingExtra,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_engine.key_program import KeyProgram
from he_engine.keys import KEY_BYTES, RootKey, Secret
from he_engine.sealing import seal, unseal

VERSION = 2
SERVICE = "hesearch"  #: the name of our entries in the operating system's keyring
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_HEX = {"entry": 32, "key_id": 16}
Key = TypeVar("Key", bound=StoredKey)


class Lock(Protocol):
    """What seals the files of keys."""

    def save(self, key: StoredKey, path: Path) -> None:
        """A new file. Raises AlreadyExists, NotFound (no such folder), InvalidInput, Unavailable."""

    def load(self, kind: type[Key], path: Path) -> Key:
        """Raises NotFound, FormatVersionError, WrongKeyError, Unavailable."""


class PassphraseLock(Secret):
    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase

    def save(self, key: StoredKey, path: Path) -> None:
        key.save(path, self._passphrase)

    def load(self, kind: type[Key], path: Path) -> Key:
        return kind.load(path, self._passphrase)


class _WrappingLock:
    """Seals what `canonical` makes of the file's other fields along with the key."""

    name = ""

    def save(self, key: StoredKey, path: Path) -> None:
        if path.exists():  # write_new decides; this saves an entry of the keyring, or a call to a service
            raise AlreadyExists(f"key file {path}: exists; keys are never overwritten")
        fields: dict[str, Any] = {
            "format": key.file_format, "version": VERSION, "lock": self.name,
            "entry": secrets.token_hex(16), "key_id": key.key_id,
        }  # fmt: skip
        root = key.reveal()
        sealed = self._wrap(root, fields)
        root[:] = bytes(KEY_BYTES)
        try:
            write_new(path, json.dumps({**fields, "sealed": sealed.hex()}, indent=1) + "\n")
        except BaseException:
            self._forget(fields)
            raise

    def load(self, kind: type[Key], path: Path) -> Key:
        fields = _fields(path)
        if fields["format"] != kind.file_format or fields.get("lock") != self.name:
            raise FormatVersionError(f"{path}: not a file of version {VERSION} ({kind.file_format}, {self.name})")
        sealed = bytes.fromhex(fields.pop("sealed"))
        try:
            key = kind(self._unwrap(sealed, fields))
        except (TamperedDataError, WrongKeyError):
            raise WrongKeyError(f"{path}: another key sealed it, or the file was altered") from None
        if key.key_id != fields["key_id"]:
            raise WrongKeyError(f"{path}: it holds another key than it says")
        return key

    def _wrap(self, root: bytearray, fields: dict[str, Any]) -> bytes:
        raise NotImplementedError

    def _unwrap(self, sealed: bytes, fields: dict[str, Any]) -> bytes:
        raise NotImplementedError

    def _forget(self, fields: dict[str, Any]) -> None:
        """Undoes what `_wrap` left elsewhere."""


class KeyringLock(_WrappingLock):
    """A file and its entry in the operating system's keyring open the key together; neither does alone."""

    name = "keyring"

    def _wrap(self, root: bytearray, fields: dict[str, Any]) -> bytes:
        secret = secrets.token_bytes(KEY_BYTES)
        _ask_keyring("set_password", fields["entry"], secret.hex())
        if _ask_keyring("get_password", fields["entry"]) != secret.hex():
            raise Unavailable("keyring: it does not keep what it is given; see `keyring --list-backends`")
        return seal(RootKey(secret), "key file", canonical(fields), root)

    def _unwrap(self, sealed: bytes, fields: dict[str, Any]) -> bytes:
        if (secret := _ask_keyring("get_password", fields["entry"])) is None:
            raise WrongKeyError("keyring: it has no entry for this file")
        return unseal(RootKey(bytes.fromhex(secret)), "key file", canonical(fields), sealed)

    def _forget(self, fields: dict[str, Any]) -> None:
        _ask_keyring("delete_password", fields["entry"])


class ProgramLock(_WrappingLock):
    """A key management service, asked by a program."""

    name = "exec"

    def __init__(self, program: str) -> None:
        self._program = KeyProgram(program, "key")

    def _wrap(self, root: bytearray, fields: dict[str, Any]) -> bytes:
        return self._program.wrap(root, hashlib.sha256(canonical(fields)).digest())

    def _unwrap(self, sealed: bytes, fields: dict[str, Any]) -> bytes:
        return self._program.unwrap(sealed, hashlib.sha256(canonical(fields)).digest())


def load_key(kind: type[Key], path: Path, passphrase: Callable[[Path], str], program: str | None) -> Key:
    """The key of a file, whatever locks it: `passphrase` is asked only where it is needed.

    Raises as Lock.load; InvalidInput where a program locks it and none is given.
    """
    lock = _fields(path).get("lock", "passphrase")
    if lock == "exec" and not program:
        raise InvalidInput(f"{path}: a program unwraps this key; name it with --key-program")
    if lock == "exec":
        return ProgramLock(str(program)).load(kind, path)
    return KeyringLock().load(kind, path) if lock == "keyring" else kind.load(path, passphrase(path))


class KeyRing:
    """A folder of key files, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """The folder, private, where it is missing."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the key of this name is, or would be. Raises InvalidInput."""
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"key ring: got {name!r}, expected a name of letters, digits and ._@-, 128 at most")
        return self.folder / f"{name}.key"

    def names(self) -> list[str]:
        return sorted(path.name.removesuffix(".key") for path in self.folder.glob("[!.]*.key"))

    def add(self, name: str, key: CollectionKey, lock: Lock) -> None:
        """Raises AlreadyExists, InvalidInput, Unavailable."""
        self.make()
        lock.save(key, self.path(name))

    def open(self, name: str, lock: Lock) -> CollectionKey:
        """Raises as Lock.load."""
        return lock.load(CollectionKey, self.path(name))


def _fields(path: Path) -> dict[str, Any]:
    """Raises NotFound; FormatVersionError unless every field is there that a lock of version 2 reads."""
    raw = read_key_file(path)
    try:
        fields: dict[str, Any] = json.loads(raw.decode())
        if len(raw) > MAX_FILE_BYTES or type(fields) is not dict:
            raise ValueError
        if fields["version"] == VERSION:
            if fields.keys() != {"format", "version", "lock", "entry", "key_id", "sealed"}:
                raise ValueError
            if fields["lock"] not in ("keyring", "exec") or any(
                len(bytes.fromhex(fields[name])) * 2 != digits for name, digits in _HEX.items()
            ):
                raise ValueError
            bytes.fromhex(fields["sealed"])
        elif "lock" in fields:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatVersionError(f"{path}: not a hesearch key file of version 1 or {VERSION}") from None
    return fields


def _ask_keyring(verb: str, entry: str, *value: str) -> str | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise MissingExtra("keyring is not installed: pip install '.[keyring]'") from None
    try:
        answer: str | None = getattr(keyring, verb)(SERVICE, entry, *value)
    except KeyringError as error:
        raise Unavailable(f"keyring: {type(error).__name__}; see `keyring --list-backends`") from None
    return answer

"""The vault: which token stands for which value, in one sealed file, so that its key can put values back.

    first line: hesearch vault 1 <id of the key>
    then: seal(key, "vault", first line, JSON {"version": n, "entries": [[entity, value, token], …]})

A token is random, so it tells nothing of its value, and the same value has the same one in all texts. The file is
replaced as a whole, synced, under a lock that excludes other processes; each begins with what the others wrote. So it
is whole or as it was, and no altered byte goes unnoticed. An older whole file does, but for who has
seen a newer one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from he_client.durable import file_errors, new_file
from he_client.protect.text.keys import VaultKey
from he_client.protect.text.values import LETTERS, as_letters, checked_entity
from he_engine.errors import (
    AlreadyExists,
    FormatVersionError,
    InvalidInput,
    RollbackError,
    TamperedDataError,
    WrongKeyError,
)
from he_engine.keys import Secret
from he_engine.sealing import SALT_BYTES, seal, unseal

MAGIC = b"hesearch vault 1 "
PURPOSE = WHAT = "vault"
TOKEN_BYTES = 8
TOKEN = re.compile(rf"\[([A-Z][A-Z0-9_]{{0,63}}):([{LETTERS}]{{{2 * TOKEN_BYTES}}})\]")
_HEAD_BYTES = len(MAGIC) + 17


class Vault(Secret):
    """An open vault. Threads may share it, and processes its file. The key stays the caller's, and open."""

    __slots__ = ("_head", "_key", "_lock", "_path", "_salt", "_tokens", "_values", "_version")

    def __init__(self, path: Path, key: VaultKey) -> None:
        """Not for callers: `create` and `open`."""
        self._path = path.resolve() if path.is_symlink() else path  # the link stays, and one file has one lock
        self._key = key
        self._head = MAGIC + key.key_id.encode() + b"\n"
        self._lock = threading.RLock()
        self._salt: bytes | None = None  #: of the version in memory
        self._version = 0
        self._tokens: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}

    @classmethod
    def create(cls, path: str | os.PathLike[str], key: VaultKey) -> Vault:
        """A new, empty one. Raises AlreadyExists, NotFound where its folder is missing."""
        vault = cls(Path(path), key)
        with vault._locked():
            if vault._path.exists():
                raise AlreadyExists(f"{WHAT} {path}: exists; vaults are never overwritten")
            vault._write([])
        return vault

    @classmethod
    def open(cls, path: str | os.PathLike[str], key: VaultKey) -> Vault:
        """Raises NotFound, FormatVersionError for another file, WrongKeyError, TamperedDataError."""
        vault = cls(Path(path), key)
        vault._refresh()
        return vault

    def __len__(self) -> int:
        """How many values are in it, as far as this process knows."""
        return len(self._tokens)

    def tokens(self, entity: str, values: Sequence[str]) -> list[str]:
        """A token for each value: that which it has, or a new one, which is on the disk when this returns.

        Values are taken as they are: "Anna" and "anna" have two tokens, so that each is put back as it was. Raises
        InvalidInput for an empty one, and what `open` raises; RollbackError for a file older than one seen before.
        """
        checked_entity(entity)
        if not all(values):
            raise InvalidInput("value: got an empty one")
        with self._lock:
            if any((entity, value) not in self._tokens for value in values):
                with self._locked():
                    self._refresh()
                    if new := [value for value in dict.fromkeys(values) if (entity, value) not in self._tokens]:
                        self._write([(entity, value, self._unused(entity)) for value in new])
            return [self._tokens[entity, value] for value in values]

    def reveal(self, text: str) -> str:
        """The text with the values instead of this vault's tokens. Other tokens stay: `unknown` lists them.

        Raises as `tokens`.
        """
        self._look_for(text)
        return TOKEN.sub(lambda match: self._values.get(match[0], match[0]), text)

    def unknown(self, text: str) -> list[str]:
        """Tokens in a text that this vault does not have. Raises as `tokens`."""
        self._look_for(text)
        return [match[0] for match in TOKEN.finditer(text) if match[0] not in self._values]

    def _look_for(self, text: str) -> None:
        """What other processes wrote counts, too."""
        if any(match[0] not in self._values for match in TOKEN.finditer(text)):
            with self._lock:
                self._refresh()

    def _unused(self, entity: str) -> str:
        while (token := f"[{entity}:{as_letters(secrets.token_bytes(TOKEN_BYTES))}]") in self._values:
            pass
        return token

    def _refresh(self) -> None:
        """What the file holds now, where it was replaced since it was read."""
        with file_errors(self._path, WHAT), self._path.open("rb") as file:
            raw = file.read(_HEAD_BYTES + SALT_BYTES)
            if raw[_HEAD_BYTES:] == self._salt:  # no other version has it
                return
            raw += file.read()
        head = raw[:_HEAD_BYTES]
        if not head.startswith(MAGIC) or head[-1:] != b"\n":
            raise FormatVersionError(f"{WHAT} {self._path}: not a vault of this version")
        if head != self._head:
            raise WrongKeyError(f"{WHAT} {self._path}: another key sealed it, or its first line was altered")
        try:
            content = json.loads(unseal(self._key, PURPOSE, head, raw[_HEAD_BYTES:]))
        except TamperedDataError:
            raise TamperedDataError(f"{WHAT} {self._path}: it was altered") from None
        if content["version"] <= self._version:
            raise RollbackError(
                f"{WHAT} {self._path}: older than what this process has seen, or another of its versions"
            )
        self._keep(raw, content["version"], [tuple(entry) for entry in content["entries"]])

    def _write(self, new: list[tuple[str, str, str]]) -> None:
        """These entries, too. Under both locks, after `_refresh`."""
        entries = [(entity, value, token) for (entity, value), token in self._tokens.items()] + new
        content = json.dumps({"version": self._version + 1, "entries": entries}).encode()
        raw = self._head + seal(self._key, PURPOSE, self._head, content)
        with new_file(self._path, WHAT) as file:
            file.write(raw)
        self._keep(raw, self._version + 1, new)

    def _keep(self, raw: bytes, version: int, entries: list[tuple[str, str, str]]) -> None:
        for entity, value, token in entries:
            self._tokens[entity, value] = token
            self._values[token] = value
        self._salt, self._version = raw[_HEAD_BYTES : _HEAD_BYTES + SALT_BYTES], version

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Beside the vault, as the vault itself is replaced."""
        lock = self._path.with_name(f"{self._path.name}.lock")
        with file_errors(lock, WHAT):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

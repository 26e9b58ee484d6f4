"""Pins: the newest manifest that a client has seen of each name. What does not extend it is refused.

In memory they last as long as the client; in a folder, beyond: one small JSON file for each server and name, which is
replaced as a whole, and never by an older one. A client without a pin has to take what the server shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from he_client.durable import make_folder, new_file, state_errors
from he_client.manifest import MAX_ANCESTORS, Manifest
from he_engine.errors import FormatVersionError, RollbackError, TamperedDataError
from he_engine.keys import length_prefixed

_FORMAT = "hesearch pin 1"
_MAX_BYTES = 4096
_TRUST = "If you know why (a backup was restored): `hesearch trust`, Client.trust"


@dataclass(frozen=True, slots=True)
class Pin:
    """Ids, digests and keys in hexadecimal."""

    collection_id: str
    version: int
    sha256: str  #: of the sealed manifest
    owner: str  #: public key; empty: every key holder may sign
    serial: int  #: of the list of writers

    @classmethod
    def of(cls, manifest: Manifest) -> Pin:
        m = manifest.message
        return cls(m.collection_id.hex(), m.version, manifest.sha256.hex(), m.writers.owner.hex(), m.writers.serial)

    def require_successor(self, newer: Manifest) -> None:
        """Raises RollbackError unless `newer` is this version or descends from it, TamperedDataError for another owner
        or an older list of writers.

        Over a gap of more than 256 versions only the version numbers can be compared.
        """
        other = Pin.of(newer)
        if other.collection_id != self.collection_id:
            raise RollbackError(
                f"manifest: of another collection of this name than the one that this client has seen. {_TRUST}"
            )
        if self.owner and (other.owner != self.owner or other.serial < self.serial):
            raise TamperedDataError("manifest: another owner, or an older list of writers, than this client has seen")
        gap = other.version - self.version
        if gap == 0:
            extends = other.sha256 == self.sha256
        elif 0 < gap <= MAX_ANCESTORS:
            ancestors = newer.message.ancestors_sha256
            extends = len(ancestors) >= gap and ancestors[gap - 1].hex() == self.sha256
        else:
            extends = gap > 0
        if not extends:
            raise RollbackError(
                f"manifest: version {other.version} does not extend version {self.version}, which this client "
                f"has seen; the server went back or forked the history. {_TRUST}"
            )


class Pins:
    """Of the collections of one server. Thread-safe, and among processes that share `folder` (None: memory alone)."""

    def __init__(self, server: str, folder: Path | None) -> None:
        self._server = server
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: dict[str, Pin] = {}
        if folder is not None:
            make_folder(folder)

    def require(self, name: str, manifest: Manifest) -> None:
        """Raises RollbackError or TamperedDataError unless the manifest extends the pin, if there is one."""
        with self._lock:
            pins = [self._memory.get(name), self._read(name)]
        for pin in pins:
            if pin is not None:
                pin.require_successor(manifest)

    def pin(self, name: str, manifest: Manifest) -> None:
        """From now on. An older manifest of the same collection changes nothing."""
        new = Pin.of(manifest)
        with self._lock, self._locked():
            if _newer(new, self._memory.get(name)):
                self._memory[name] = new
            if self._folder is not None and _newer(new, self._read(name)):
                with new_file(self._path(name), "pin") as file:
                    file.write(json.dumps({"format": _FORMAT, **asdict(new)}).encode())

    def forget(self, name: str) -> None:
        """The collection was dropped by whoever calls this, or what the server shows now is to be believed."""
        with self._lock, self._locked():
            self._memory.pop(name, None)
            if self._folder is not None:
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(length_prefixed('pin', self._server, name)).hexdigest()}.json"

    def _read(self, name: str) -> Pin | None:
        """Raises FormatVersionError for a file that is no pin: to pass over it would be to trust the server."""
        if self._folder is None:
            return None
        path = self._path(name)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        try:
            values = json.loads(raw)
            if values.pop("format") != _FORMAT or set(values) != {field.name for field in fields(Pin)}:
                raise ValueError
            pin = Pin(**values)
            numbers = {name for name, value in values.items() if isinstance(value, int)}
            if numbers != {"version", "serial"} or not all(isinstance(values[n], str) for n in set(values) - numbers):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatVersionError(f"{path}: not a pin of this version; remove it to trust the server anew") from None
        return pin

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._folder is None:
            yield
            return
        with state_errors(self._folder, "pins"):
            descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _newer(new: Pin, old: Pin | None) -> bool:
    return old is None or new.collection_id != old.collection_id or new.version > old.version

"""Parts that clients keep, by digest: in memory for the life of the client, and in a folder on request.

Parts are stored as they came: sealed, or a hint, which means nothing without the key. What is read back is
checked against its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from pathlib import Path


class PartCache:
    """Thread-safe. `folder` None: memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, sha256: bytes) -> bytes | None:
        with self._lock:
            found = self._memory.get(sha256)
        if found is not None or self._folder is None:
            return found
        try:
            found = (self._folder / sha256.hex()).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(found).digest() != sha256:
            (self._folder / sha256.hex()).unlink(missing_ok=True)
            return None
        return found

    def has(self, sha256: bytes) -> bool:
        """Whether `get` is likely to find it: a damaged file is noticed only by `get`."""
        with self._lock:
            if sha256 in self._memory:
                return True
        return self._folder is not None and (self._folder / sha256.hex()).exists()

    def put(self, sha256: bytes, content: bytes, *, keep: bool = False) -> None:
        """Store on disk where there is a folder that takes it; in memory where `keep`."""
        if keep:
            with self._lock:
                self._memory[sha256] = content
        if self._folder is not None:
            temporary = self._folder / f".{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):  # a full disk makes a cache useless, not a search wrong
                temporary.touch(mode=0o600)
                temporary.write_bytes(content)
                temporary.replace(self._folder / sha256.hex())

    def forget(self, sha256: bytes) -> None:
        """Drop it from memory and disk."""
        with self._lock:
            self._memory.pop(sha256, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / sha256.hex()).unlink(missing_ok=True)

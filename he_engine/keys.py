"""The root key of a collection and everything that derives from it.

    root (32 random bytes) ─ HKDF-Expand(label ‖ contexts) ─→ seal salts and keys, row seeds, block secrets,
                                                               noise, query secrets, fingerprint weights

HKDF-Expand alone (RFC 5869, section 3.3): the root is uniform already, so there is nothing to extract.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from he_engine.errors import InvalidInput, SecretReuseError

KEY_BYTES = 32


def length_prefixed(*fields: bytes | str | int) -> bytes:
    """An injective encoding: each field as its length (8 bytes, big-endian), then its bytes; integers as 8 bytes."""
    out = []
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        raw = struct.pack(">Q", raw) if isinstance(raw, int) else raw
        out.append(struct.pack(">Q", len(raw)) + raw)
    return b"".join(out)


class Secret:
    """Base of objects that hold secrets: no repr, no copy, no pickle, identity comparison only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise SecretReuseError(f"{type(self).__name__}: a secret cannot be copied or pickled")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)


class RootKey(Secret):
    """32 secret bytes. `close` overwrites them; copies that Python or OpenSSL made cannot be reached."""

    __slots__ = ("_root",)

    def __init__(self, root: bytes | bytearray) -> None:
        if len(root) != KEY_BYTES:
            raise InvalidInput(f"root key: got {len(root)} bytes, expected {KEY_BYTES}")
        self._root: bytearray | None = bytearray(root)

    def derive(self, label: str, *context: bytes | int, length_bytes: int = KEY_BYTES) -> bytes:
        """HKDF-Expand(root, "hesearch 1" ‖ label ‖ context…): distinct inputs give independent keys."""
        if self._root is None:
            raise SecretReuseError("this key is closed")
        info = length_prefixed("hesearch 1", label, *context)
        return HKDFExpand(algorithm=SHA256(), length=length_bytes, info=info).derive(self._root)

    def hedged_seed(self, label: str, *content: bytes | memoryview | int) -> bytes:
        """PRF(key, 32 random bytes ‖ content), 32 bytes: fresh while either randomness or content is.

        After a snapshot, a fork or a broken generator the random bytes may repeat; two different contents
        still get independent seeds, and equal contents give equal bytes, which reveal only that.
        """
        mac = hmac.new(self.derive("hedge", label.encode()), os.urandom(32), "sha256")
        for field in content:
            raw = struct.pack(">Q", field) if isinstance(field, int) else memoryview(field).cast("B")
            mac.update(struct.pack(">Q", len(raw)))
            mac.update(raw)
        return mac.digest()

    def close(self) -> None:
        if self._root is not None:
            self._root[:] = bytes(KEY_BYTES)
            self._root = None

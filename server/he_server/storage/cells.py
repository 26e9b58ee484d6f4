"""What one column of a catalogue row holds, protected against a reader of the disk or at least against its decay.

    sealed folder     1 ‖ he_engine.sealing.seal(key, what, aad, content)
    unsealed folder   0 ‖ SHA-256(what ‖ aad ‖ content) ‖ content

`what` and `aad` say which row it belongs to, so that a cell in another place is refused. In a sealed folder no cell of
the other kind is taken.
"""

from __future__ import annotations

import hashlib

from he_engine.engine import Buffer
from he_engine.errors import TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_engine.sealing import seal, unseal

_UNSEALED, _SEALED = b"\x00", b"\x01"
_DIGEST_BYTES = 32


def close_cell(key: RootKey | None, what: str, aad: bytes, content: Buffer) -> bytes:
    """Sealed under the key, or with a digest where there is none."""
    if key is not None:
        return _SEALED + seal(key, what, aad, content)
    return _UNSEALED + _digest(what, aad, content) + bytes(content)


def open_cell(key: RootKey | None, what: str, aad: bytes, cell: bytes) -> bytes:
    """The content. Raises TamperedDataError."""
    if not isinstance(cell, bytes):  # one bit of a row says that it is text
        raise TamperedDataError(f"catalogue: {what}: got {type(cell).__name__}, expected bytes")
    if cell[:1] != (_UNSEALED if key is None else _SEALED):
        raise TamperedDataError(f"catalogue: {what}: neither sealed nor unsealed as the folder is")
    if key is not None:
        return unseal(key, what, aad, memoryview(cell)[1:])
    content = cell[1 + _DIGEST_BYTES :]
    if cell[1 : 1 + _DIGEST_BYTES] != _digest(what, aad, content):
        raise TamperedDataError(f"catalogue: {what}: its bytes do not match their digest")
    return content


def _digest(what: str, aad: bytes, content: Buffer) -> bytes:
    digest = hashlib.sha256(length_prefixed(what, aad))
    digest.update(content)
    return digest.digest()

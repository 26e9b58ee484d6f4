"""The keys of an audit log, in the file `keys` of its folder: 0 ‖ root, or 1 ‖ root wrapped by a key-encryption key.

From the root (32 random bytes, made with the log) derive the Ed25519 key that signs heads, whose public half is the
log's id, and the key that seals entries where there is a KEK. The root of the operators' log derives from the server's:
commands find it without a KEK, so it is not wrapped, and a backup needs no copy of it.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from he_engine.errors import HesearchError, InvalidInput, TamperedDataError, Unavailable, WrongKeyError
from he_engine.keys import KEY_BYTES, RootKey
from he_server.audit.heads import replace_file
from he_server.audit.reading import LOG
from he_server.storage import files
from he_server.storage.kek import KeyProvider

KEYS = "keys"
_CONTEXT = b"hesearch audit key"
_PLAIN, _WRAPPED = b"\x00", b"\x01"


def open_keys(
    folder: Path,
    kek: KeyProvider | None = None,
    previous_kek: KeyProvider | None = None,
    derived: Path | None = None,
) -> tuple[Ed25519PrivateKey, RootKey | None]:
    """What signs, and what seals where there is a kek, in the log in `folder`; made where there is none. An unsealed
    log is sealed from the first kek on; one under `previous_kek` is put under `kek`. No server may have it open.
    `derived`: the folder of a log that gets the root that derives from this one, unless it has its own.

    Raises InvalidInput (sealed, and no kek), WrongKeyError, TamperedDataError, Unavailable, LimitExceeded,
    ReadOnlyError.
    """
    with files.storage_errors("making the audit log"):
        files.make_folder(folder, 0o700)
    path = folder / KEYS
    if not path.exists() and (folder / LOG).exists():
        raise TamperedDataError("audit log: its keys are missing; move the folder aside, and a new log is begun")
    raw = _read(path) if path.exists() else b""
    root, settled = raw[1:] if raw else secrets.token_bytes(KEY_BYTES), bool(raw) and kek is None
    if raw[:1] == _WRAPPED:
        try:
            root, settled = _unwrapped(raw, kek), True
        except (WrongKeyError, Unavailable) as error:
            try:
                root, settled = _unwrapped(raw, previous_kek), False
            except HesearchError:
                raise error from None
    if not settled:
        replace_file(path, _WRAPPED + kek.wrap(root, _CONTEXT) if kek else _PLAIN + root)
    if derived is not None and not (derived / KEYS).exists():
        with files.storage_errors("making the operators' audit log"):
            files.make_folder(derived, 0o700)
        replace_file(derived / KEYS, _PLAIN + RootKey(root).derive("audit of operators"))
    signer = Ed25519PrivateKey.from_private_bytes(RootKey(root).derive("audit signer"))
    return signer, _sealing(root) if kek else None


def read_sealing_key(folder: Path, kek: KeyProvider) -> RootKey | None:
    """Changes nothing. Raises TamperedDataError, WrongKeyError, Unavailable."""
    raw = _read(folder / KEYS)
    return _sealing(_unwrapped(raw, kek)) if raw[:1] == _WRAPPED else None


def _sealing(root: bytes) -> RootKey:
    return RootKey(RootKey(root).derive("audit sealing"))


def _read(path: Path) -> bytes:
    with files.storage_errors("reading the audit log's keys"):
        raw = path.read_bytes()
    if raw[:1] != _WRAPPED and (raw[:1] != _PLAIN or len(raw) != 1 + KEY_BYTES):
        raise TamperedDataError("audit log: the file of its keys is damaged; bring it back from a copy")
    return raw


def _unwrapped(raw: bytes, kek: KeyProvider | None) -> bytes:
    if kek is None:
        raise InvalidInput("kek: this audit log is sealed; give the key-encryption key that opens it (--kek)")
    return kek.unwrap(raw[1:], _CONTEXT)

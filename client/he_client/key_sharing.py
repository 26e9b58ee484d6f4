"""A collection key handed to a colleague: only the recipient opens it, and knows who sent it.

    sealed    = HPKE(recipient's X25519 key, info = what ‖ sender ‖ recipient ‖ key id, the key's 32 bytes)
    signature = Ed25519(sender, what ‖ sender ‖ recipient ‖ key id ‖ sealed)

HPKE is RFC 9180 in base mode, with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. Both public keys are in
its info too, so that nobody can take a signature off and pass the same sealed key on as their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from he_client.keys import MAX_FILE_BYTES, CollectionKey, StoredKey, read_key_file, write_new
from he_engine.errors import FormatVersionError, InvalidInput, TamperedDataError, WrongKeyError
from he_engine.keys import KEY_BYTES, length_prefixed

WHAT = "hesearch shared key"
VERSION = 1
_PREFIX = "hesearch-identity-1."
_CHECK_BYTES = 4
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class WrongRecipientError(WrongKeyError):
    """The key was shared with somebody else."""


class WrongSenderError(WrongKeyError):
    """The key was shared by somebody else than expected."""


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """Whom a key may be shared with, and who shared one; written as one word with a checksum."""

    agreement: bytes  #: X25519, 32 bytes
    signing: bytes  #: Ed25519, 32 bytes

    def __str__(self) -> str:
        raw = self.agreement + self.signing
        return _PREFIX + base64.urlsafe_b64encode(raw + _check(raw)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> PublicIdentity:
        """What `str` gives, and nothing else. Raises InvalidInput."""
        try:
            body = text.removeprefix(_PREFIX)
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            found = cls(raw[:KEY_BYTES], raw[KEY_BYTES : 2 * KEY_BYTES])
            if raw[2 * KEY_BYTES :] != _check(raw[: 2 * KEY_BYTES]) or str(found) != text:
                raise ValueError
        except ValueError:
            raise InvalidInput(f"public identity: got {text[:120]!r}, expected {_PREFIX}…, mistyped or cut?") from None
        return found


class Identity(StoredKey):
    """Who shares keys and is given some. Both private keys derive from its 32 bytes."""

    __slots__ = ()
    file_format = "hesearch identity"

    @property
    def public(self) -> PublicIdentity:
        return PublicIdentity(
            self.agreement_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
            self.signing_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
        )

    def agreement_key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.derive("identity agreement"))

    def signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.derive("identity signing"))


def share_key(key: CollectionKey, sender: Identity, recipient: PublicIdentity, path: Path) -> None:
    """Write a file that only the recipient opens. Raises AlreadyExists, NotFound, InvalidInput."""
    named = str(sender.public), str(recipient), key.key_id
    root = key.reveal()
    try:
        sealed = _SUITE.encrypt(root, X25519PublicKey.from_public_bytes(recipient.agreement), _bound(*named))
    except ValueError:  # a point of small order, with which everybody agrees on the same secret
        raise InvalidInput("recipient: not a public key that anybody has") from None
    finally:
        root[:] = bytes(KEY_BYTES)
    fields = {
        "format": WHAT, "version": VERSION, "from": named[0], "to": named[1], "key_id": named[2],
        "sealed": sealed.hex(), "signature": sender.signing_key().sign(_bound(*named, sealed)).hex(),
    }  # fmt: skip
    write_new(path, json.dumps(fields, indent=1) + "\n")


def accept_key(path: Path, recipient: Identity, sender: PublicIdentity) -> CollectionKey:
    """The key of a file that `sender` made for `recipient`.

    Raises NotFound, FormatVersionError, WrongRecipientError, WrongSenderError; TamperedDataError where the signature is
    not the sender's or something else than they sealed is in it.
    """
    fields = _fields(path)
    if fields["to"] != str(recipient.public):
        raise WrongRecipientError(f"{path}: this key was shared with another identity than yours")
    if fields["from"] != str(sender):
        raise WrongSenderError(f"{path}: this key was shared by another identity than the one that you expect")
    named, sealed = (fields["from"], fields["to"], fields["key_id"]), bytes.fromhex(fields["sealed"])
    try:
        signed = Ed25519PublicKey.from_public_bytes(sender.signing)
        signed.verify(bytes.fromhex(fields["signature"]), _bound(*named, sealed))
        key = CollectionKey(_SUITE.decrypt(sealed, recipient.agreement_key(), _bound(*named)))
    except (InvalidSignature, InvalidTag, ValueError):
        raise TamperedDataError(f"{path}: not what its sender signed and sealed; ask for it again") from None
    if key.key_id != fields["key_id"]:
        raise TamperedDataError(f"{path}: its sender names another key than the file holds")
    return key


def _fields(path: Path) -> dict[str, str]:
    raw = read_key_file(path)
    try:
        fields: dict[str, Any] = json.loads(raw.decode())
        texts = {"format", "from", "to", "key_id", "sealed", "signature"}
        right = (
            len(raw) <= MAX_FILE_BYTES
            and type(fields) is dict
            and fields.keys() == texts | {"version"}
            and all(type(fields[name]) is str for name in texts)
            and (fields["format"], fields["version"]) == (WHAT, VERSION)
        )
        if not right:
            raise ValueError
        bytes.fromhex(fields["sealed"]), bytes.fromhex(fields["signature"])
    except (ValueError, RecursionError):
        raise FormatVersionError(f"{path}: not a shared hesearch key of version {VERSION}") from None
    return fields


def _bound(*fields: str | bytes) -> bytes:
    return length_prefixed(WHAT, VERSION, *fields)


def _check(raw: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + raw).digest()[:_CHECK_BYTES]

"""Authenticated encryption of everything a client stores beside ciphertexts: AES-256-GCM, one key per use.

    salt = PRF(key, 32 random bytes ‖ purpose ‖ aad ‖ plaintext)      key' = HKDF(key, purpose ‖ salt)
    sealed = salt ‖ AES-256-GCM(key', nonce 0, plaintext, aad)

A key never meets two nonces, so no nonce can repeat; the salt depends on the plaintext too, so a repeated
random generator state (snapshot, fork) repeats only identical bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from he_engine.engine import Buffer
from he_engine.errors import TamperedDataError
from he_engine.keys import RootKey

SALT_BYTES = 32
TAG_BYTES = 16
OVERHEAD_BYTES = SALT_BYTES + TAG_BYTES
_NONCE = bytes(12)


def seal(key: RootKey, purpose: str, aad: bytes, plaintext: Buffer) -> bytes:
    """salt (32 bytes) ‖ ciphertext ‖ tag (16 bytes)."""
    salt = key.hedged_seed("seal", purpose.encode(), aad, memoryview(plaintext))
    one_time = key.derive("seal", purpose.encode(), salt)
    return salt + AESGCM(one_time).encrypt(_NONCE, plaintext, aad)


def unseal(key: RootKey, purpose: str, aad: bytes, sealed: Buffer) -> bytes:
    """The plaintext. Raises TamperedDataError when key, purpose, aad or bytes are not those of `seal`."""
    if len(sealed) < OVERHEAD_BYTES:
        raise TamperedDataError(f"sealed {purpose}: got {len(sealed)} bytes, expected at least {OVERHEAD_BYTES}")
    view = memoryview(sealed)
    one_time = key.derive("seal", purpose.encode(), bytes(view[:SALT_BYTES]))
    try:
        return AESGCM(one_time).decrypt(_NONCE, view[SALT_BYTES:], aad)
    except InvalidTag:
        raise TamperedDataError(f"sealed {purpose}: wrong key, or the bytes were altered") from None


def seal_records(key: RootKey, purpose: str, aad: bytes, records: Sequence[bytes | None]) -> tuple[bytes, list[bytes]]:
    """(salt, sealed records) of one column: one key a column, which depends on all of it; the number is the nonce.

    None and only None becomes b"".
    """
    salt = key.hedged_seed("records", purpose.encode(), aad, *(r or b"" for r in records))
    cipher = AESGCM(key.derive("records", purpose.encode(), aad, salt))
    return salt, [
        b"" if record is None else cipher.encrypt(_number(number), record, aad) for number, record in enumerate(records)
    ]


def unseal_record(key: RootKey, purpose: str, aad: bytes, salt: bytes, number: int, sealed: Buffer) -> bytes:
    """Record `number` of a column. Raises TamperedDataError."""
    cipher = AESGCM(key.derive("records", purpose.encode(), aad, salt))
    try:
        return cipher.decrypt(_number(number), sealed, aad)
    except InvalidTag:
        raise TamperedDataError(f"{purpose}, record {number}: wrong key, or the bytes were altered") from None


def _number(number: int) -> bytes:
    return number.to_bytes(12, "big")

"""Salted hashes: pseudonyms that everybody who knows the salt can make, for parties that cannot share a secret key.

    hash = first letters of Argon2id(field ‖ normalised identifier, salt)       64 MiB, 3 passes, 4 lanes

Identifiers are few: whoever has the salt hashes all of them and looks hashes up. Argon2id makes each guess cost a tenth
of a second or so of a core, which delays that and does not prevent it: eight digits are some months of one core. Take
Pseudonyms wherever a key can be kept.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from he_client.keys import ITERATIONS, LANES, MEMORY_KIB
from he_client.protect.text.pseudonyms import DEFAULT_LETTERS, checked_letters
from he_client.protect.text.values import as_bytes, as_letters, checked_field, normalised
from he_engine.errors import InvalidInput
from he_engine.keys import length_prefixed

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class SaltedHash:
    """`salt`: 16 bytes or more, the same for all who compare hashes, and new for every other use; not secret."""

    salt: bytes
    field: str
    letters: int = DEFAULT_LETTERS  #: 12 to 64

    def __post_init__(self) -> None:
        if len(self.salt) < SALT_BYTES:
            raise InvalidInput(f"salt: got {len(self.salt)} bytes, expected {SALT_BYTES} or more")
        checked_field(self.field)
        checked_letters(self.letters)

    @classmethod
    def generate(cls, field: str) -> SaltedHash:
        """With a new salt, from the operating system's generator."""
        return cls(secrets.token_bytes(SALT_BYTES), field)

    def of(self, value: str) -> str:
        """The hash, `letters` letters. Raises InvalidInput for an empty identifier."""
        argon2id = Argon2id(salt=self.salt, length=32, iterations=ITERATIONS, lanes=LANES, memory_cost=MEMORY_KIB)
        derived = argon2id.derive(length_prefixed("salted hash", self.field, as_bytes(normalised(value))))
        return as_letters(derived)[: self.letters]

    def in_text(self, entity: str, value: str) -> str:
        """[ENTITY#hash]."""
        return f"[{entity}#{self.of(value)}]"

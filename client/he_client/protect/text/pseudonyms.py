"""Keyed pseudonyms: the same identifier, the same pseudonym; without the key, nothing about either.

    pseudonym = first letters of HMAC-SHA-256(HKDF(key, "pseudonym" ‖ field), normalised identifier)

Fields have keys of their own, so that equal identifiers in two fields cannot be joined. HMAC is one-way for who lacks
the key, however few identifiers there are; its holder can try all of them.
"""

from __future__ import annotations

import hmac

from he_client.protect.text.keys import PseudonymKey
from he_client.protect.text.values import as_bytes, as_letters, checked_field, normalised
from he_engine.errors import InvalidInput
from he_engine.keys import Secret

MIN_LETTERS, DEFAULT_LETTERS, MAX_LETTERS = 12, 20, 64


class Pseudonyms(Secret):
    """Of one field, under one key. `letters`: 12 to 64, of 4 bits each; 20 by default, which is 80 bits."""

    __slots__ = ("_key", "letters")

    def __init__(self, key: PseudonymKey, field: str, letters: int = DEFAULT_LETTERS) -> None:
        self.letters = checked_letters(letters)
        self._key = key.derive("pseudonym", checked_field(field).encode())

    def of(self, value: str) -> str:
        """The pseudonym, `letters` letters. Raises InvalidInput for an empty identifier."""
        return as_letters(hmac.digest(self._key, as_bytes(normalised(value)), "sha256"))[: self.letters]

    def in_text(self, entity: str, value: str) -> str:
        """[ENTITY#pseudonym]."""
        return f"[{entity}#{self.of(value)}]"


def checked_letters(letters: int) -> int:
    if not MIN_LETTERS <= letters <= MAX_LETTERS:
        raise InvalidInput(f"letters: got {letters}, expected {MIN_LETTERS} to {MAX_LETTERS}")
    return letters


def collision_bound(values: int, letters: int = DEFAULT_LETTERS) -> float:
    """At most this probability that any two of n different identifiers share a pseudonym: n(n − 1) / 2^(4·letters + 1).

    The union bound over pairs, HMAC-SHA-256 taken for a random function.
    """
    return min(1.0, values * (values - 1) / (2 << (4 * checked_letters(letters))))

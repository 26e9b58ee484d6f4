"""Pseudonyms that keep an identifier's format, for systems that check it: "AB-123456" becomes "AB-907182".

FF1 under a key for each field: one to one, and decrypted by the same key. Characters outside of the alphabet stay where
they are, readable, and are the tweak. Nobody sees that such an identifier is a pseudonym; where that does not matter,
take Pseudonyms.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from he_client.protect.text.ff1 import FF1
from he_client.protect.text.keys import PseudonymKey
from he_client.protect.text.values import as_bytes, checked_field
from he_engine.errors import InvalidInput
from he_engine.keys import Secret


class IdCipher(Secret):
    """Of one field, under one key. `alphabet`: the characters that are encrypted, each once; digits by default.

    Identifiers are taken as they are, not normalised: the format is kept. Those of fewer than 10^6 possible strings
    (six digits are the fewest that suffice) are refused.
    """

    __slots__ = ("_alphabet", "_ff1", "_numerals")

    def __init__(self, key: PseudonymKey, field: str, alphabet: str = string.digits) -> None:
        if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
            raise InvalidInput("alphabet: expected two characters or more, each once")
        self._alphabet = alphabet
        self._numerals = {character: numeral for numeral, character in enumerate(alphabet)}
        self._ff1 = FF1(key.derive("ff1", checked_field(field).encode(), as_bytes(alphabet)), len(alphabet))

    def of(self, value: str) -> str:
        """As long, the same characters outside of the alphabet. Raises InvalidInput for a short one."""
        return self._mapped(self._ff1.encrypt, value)

    def invert(self, pseudonym: str) -> str:
        """The identifier. Nothing tells a wrong key: the result is another identifier then."""
        return self._mapped(self._ff1.decrypt, pseudonym)

    def in_text(self, entity: str, value: str) -> str:  # noqa: ARG002
        """The pseudonym alone, so that the text keeps its format, too."""
        return self.of(value)

    def _mapped(self, permutation: Callable[[Sequence[int], bytes], list[int]], value: str) -> str:
        encrypted = [self._numerals[c] for c in value if c in self._numerals]
        kept = "".join("\0" if c in self._numerals else c for c in value)
        numerals = iter(permutation(encrypted, as_bytes(kept)))
        return "".join(self._alphabet[next(numerals)] if c in self._numerals else c for c in value)

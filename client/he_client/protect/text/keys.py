"""The two keys of protected texts: who can make pseudonyms cannot for that reveal tokens, and the other way round."""

from __future__ import annotations

from he_client.keys import StoredKey


class PseudonymKey(StoredKey):
    """Makes pseudonyms. Whoever has it can test guesses of what is behind one, and decrypts those of IdCipher."""

    __slots__ = ()
    file_format = "hesearch pseudonym key"


class VaultKey(StoredKey):
    """Seals vaults. Whoever has it and a vault reads all values in it. Losing it is losing them."""

    __slots__ = ()
    file_format = "hesearch vault key"

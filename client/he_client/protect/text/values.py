"""Identifiers as they are compared, the names of their fields, and what stands for them in texts."""

from __future__ import annotations

import re
import unicodedata

from he_engine.errors import InvalidInput

#: One for each hexadecimal digit. No digits: no recogniser takes it for a number. No vowels: no words.
LETTERS = "bcdfghjklmnpqrst"
_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENTITY = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_TO_LETTERS = str.maketrans("0123456789abcdef", LETTERS)


def normalised(value: str) -> str:
    """NFKC, case folded, white space at the ends removed and within one space: " ＡＢ-12  x" is "ab-12 x".

    Everything else counts: "12-34" and "1234" are different identifiers. Raises InvalidInput where nothing is left.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    if not (words := folded.split()):
        raise InvalidInput("identifier: got an empty one")
    return " ".join(words)


def as_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def as_letters(raw: bytes) -> str:
    """Two letters a byte."""
    return raw.hex().translate(_TO_LETTERS)


def checked_field(field: str) -> str:
    if not _FIELD.fullmatch(field):
        raise InvalidInput(f"field: got {field!r}, expected 1 to 64 letters, digits and ._-")
    return field


def checked_entity(entity: str) -> str:
    if not _ENTITY.fullmatch(entity):
        raise InvalidInput(f"entity: got {entity!r}, expected 1 to 64 capital letters, digits and _, a letter first")
    return entity

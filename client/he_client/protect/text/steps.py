"""Steps of a pipeline: which entities each takes, by recogniser or by a pattern of its own, and what replaces them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from he_client.protect.text.values import checked_entity
from he_client.protect.text.vault import Vault
from he_engine.errors import InvalidInput


class Step(Protocol):
    """`pattern`: what it finds itself; None: recognisers find its entities."""

    @property
    def entities(self) -> tuple[str, ...]: ...

    @property
    def pattern(self) -> re.Pattern[str] | None: ...

    def replacements(self, entity: str, values: Sequence[str]) -> list[str]:
        """What stands in the texts instead of each value."""


class Pseudonymiser(Protocol):
    """Pseudonyms, IdCipher and SaltedHash."""

    def in_text(self, entity: str, value: str) -> str: ...


class Redact:
    """[ENTITY] instead of each value: nothing of it is left but its kind. `pattern` is for one entity."""

    def __init__(self, *entities: str, pattern: str | None = None) -> None:
        if not entities or (pattern is not None and len(entities) > 1):
            raise InvalidInput(f"Redact: got {len(entities)} entities, expected one or more; with a pattern, one")
        self.entities = tuple(map(checked_entity, entities))
        self.pattern = compiled(pattern)

    def replacements(self, entity: str, values: Sequence[str]) -> list[str]:
        return [redacted(entity)] * len(values)


class Pseudonymise:
    """What `how` makes of each value: the same for the same identifier, in all texts."""

    def __init__(self, entity: str, how: Pseudonymiser, pattern: str | None = None) -> None:
        self.entities = (checked_entity(entity),)
        self.pattern = compiled(pattern)
        self._how = how

    def replacements(self, entity: str, values: Sequence[str]) -> list[str]:
        return [self._how.in_text(entity, value) for value in values]


class Tokenise:
    """A token of the vault instead of each value, which is on the disk, in the vault, before a text has its token."""

    def __init__(self, entity: str, vault: Vault, pattern: str | None = None) -> None:
        self.entities = (checked_entity(entity),)
        self.pattern = compiled(pattern)
        self._vault = vault

    def replacements(self, entity: str, values: Sequence[str]) -> list[str]:
        return self._vault.tokens(entity, values)


def redacted(entity: str) -> str:
    return f"[{entity}]"


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """Raises InvalidInput for what is no regular expression of Python's."""
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise InvalidInput(f"pattern: got {pattern!r}: {error}") from None

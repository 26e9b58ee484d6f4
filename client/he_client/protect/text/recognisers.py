"""Recognisers find entities in texts: Microsoft Presidio's patterns, ours for what hospitals write, known names.

Patterns find no names of people or places: that takes a list of names, or a model.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from he_engine.errors import HesearchError, InvalidInput, MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

REGIONS = ("US", "GB", "DE")  #: of telephone numbers without a country's code; each is one more pass over a text
MIN_SCORE = 0.35  #: of Presidio's: keeps what has a word beside it, a checksum or a strict pattern
PERSON = "PERSON"


class Recognisers:
    """Of one configuration; takes about a second to make.

    names: found as PERSON wherever they stand, whatever their case; each as given (a surname alone is another name).
    model: of spaCy, by name or folder, installed by you (code of its package runs); adds what it finds (PERSON,
    LOCATION, …). regions: of telephone numbers. min_score: 0 to 1, of Presidio; lower finds more, also of what is no
    identifier. Raises InvalidInput, MissingExtra.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        *,
        model: str | None = None,
        regions: Sequence[str] = REGIONS,
        min_score: float = MIN_SCORE,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise InvalidInput(f"min_score: got {min_score}, expected 0 to 1")
        presidio = _presidio()
        self._min_score = min_score
        self._language: str = presidio.LANGUAGE
        self._timeout_s: int = presidio.REGEX_TIMEOUT_SECONDS
        self._engine = presidio.engine(_checked(names), model, regions)
        self.entities = frozenset(self._engine.get_supported_entities(self._language))  #: what these can find

    def require(self, entities: Iterable[str]) -> None:
        """Raises InvalidInput unless all of these can be found."""
        for entity in entities:
            if entity == PERSON and entity not in self.entities:
                raise InvalidInput("PERSON: patterns find no names; give a list of names, or a model")
            if entity not in self.entities:
                raise InvalidInput(f"entity: got {entity}, expected one of {', '.join(sorted(self.entities))}")

    def find(self, text: str, entities: Collection[str]) -> list[tuple[str, int, int]]:
        """(entity, start, end) of all that is found, overlaps and all.

        Raises InvalidInput for a text that is not valid Unicode, HesearchError where a pattern took too long.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("got a lone surrogate, expected valid Unicode") from None
        began = time.monotonic()
        found = self._engine.analyze(text, self._language, entities=list(entities), score_threshold=self._min_score)
        if time.monotonic() - began >= self._timeout_s:  # Presidio skips a pattern then, and only its log says so
            raise HesearchError(f"recognisers: {self._timeout_s} s or more for one text, and a pattern may be given up")
        return [(result.entity_type, result.start, result.end) for result in found]


def _checked(names: Iterable[str]) -> list[str]:
    """Each once, the longest first, so that "Anna Meyer" is not found as "Anna"."""
    given = [] if isinstance(names, str) else sorted(set(names), key=lambda name: (-len(name), name))
    if isinstance(names, str) or not all(name.strip() for name in given):
        raise InvalidInput("names: got one text, or an empty name; expected a list of names")
    return given


def _presidio() -> ModuleType:
    try:
        from he_client.protect.text import presidio
    except ImportError:
        raise MissingExtra("presidio-analyzer is not installed: pip install '.[protect]'") from None
    return presidio

"""A pipeline: every step looks at the original text, overlaps are resolved (spans), and all is replaced at once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from he_client.progress import progress_bar
from he_client.protect.text.recognisers import Recognisers
from he_client.protect.text.spans import Span, resolve
from he_client.protect.text.steps import Step, redacted
from he_engine.errors import InvalidInput

TEXTS_AT_A_TIME = 1000  #: whose values go to a vault together: one file written, not one for each text


@dataclass(frozen=True, slots=True, repr=False)
class Protected:
    """A text, and where in the original something was replaced."""

    text: str
    spans: list[Span]


class Pipeline:
    """Steps, and the recognisers for those without patterns of their own; by default Recognisers(), without names.

    Raises InvalidInput where two steps leave one entity to recognisers, or one that these cannot find; MissingExtra.
    The same text gives the same result, but for tokens: those are random, and stay the same within a vault.
    """

    def __init__(self, steps: Sequence[Step], recognisers: Recognisers | None = None) -> None:
        self._steps = tuple(steps)
        self._by_entity: dict[str, int] = {}
        for number, step in enumerate(self._steps):
            for entity in step.entities if step.pattern is None else ():
                if entity in self._by_entity:
                    raise InvalidInput(f"steps: got {entity} twice, expected one step for what recognisers find of it")
                self._by_entity[entity] = number
        self._recognisers = recognisers
        if self._by_entity:
            self._recognisers = recognisers or Recognisers()
            self._recognisers.require(self._by_entity)

    def __call__(self, text: str) -> str:
        """The protected text."""
        return self.batch([text], progress=False)[0]

    def batch(self, texts: Sequence[str], progress: bool | None = None) -> list[str]:
        """The protected texts; all, or an error. progress None: a bar on a terminal."""
        return [protected.text for protected in self.run(texts, progress)]

    def run(self, texts: Sequence[str], progress: bool | None = None) -> Iterator[Protected]:
        """The same, with what was found, a thousand texts at a time."""
        with progress_bar(progress, len(texts), "protect", "texts") as advance:
            for first in range(0, len(texts), TEXTS_AT_A_TIME):
                some = texts[first : first + TEXTS_AT_A_TIME]
                found = []
                for number, text in enumerate(some, first):
                    try:
                        found.append(self.find(text))
                    except InvalidInput as error:
                        raise InvalidInput(f"text {number}: {error}") from None
                    advance(1)
                yield from self._replaced(some, found)

    def find(self, text: str) -> list[Span]:
        """What would be replaced, ascending, without overlaps."""
        if not isinstance(text, str):
            raise InvalidInput(f"text: got {type(text).__name__}, expected str")
        found = []
        for number, step in enumerate(self._steps):
            if step.pattern is not None:
                (entity,) = step.entities
                found += [Span(*_span(match), entity, number) for match in step.pattern.finditer(text)]
        if self._by_entity:
            assert self._recognisers is not None
            for entity, start, end in self._recognisers.find(text, self._by_entity):
                found.append(Span(start, end, entity, self._by_entity[entity]))
        return resolve([span for span in found if span.start < span.end], len(text))

    def _replaced(self, texts: Sequence[str], found: Sequence[list[Span]]) -> list[Protected]:
        wanted: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
        for text, spans in zip(texts, found, strict=True):
            for span in spans:
                if span.step is not None:
                    wanted[span.step, span.entity][text[span.start : span.end]] = ""
        for (step, entity), replacements in wanted.items():
            values = list(replacements)
            replacements.update(zip(values, self._steps[step].replacements(entity, values), strict=True))

        def replacement(text: str, span: Span) -> str:
            if span.step is None:
                return redacted(span.entity)
            return wanted[span.step, span.entity][text[span.start : span.end]]

        protected = []
        for text, spans in zip(texts, found, strict=True):
            pieces, at = [], 0
            for span in spans:
                pieces += [text[at : span.start], replacement(text, span)]
                at = span.end
            protected.append(Protected("".join([*pieces, text[at:]]), spans))
        return protected


def _span(match: re.Match[str]) -> tuple[int, int]:
    """Of the pattern's first group, where it has one that took part."""
    return match.span(1) if match.re.groups and match.start(1) >= 0 else match.span()

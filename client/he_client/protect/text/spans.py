"""Spans of a text that steps have found, and what is done where they overlap.

The span of the earlier step wins; within a step the longer one, then the one that begins first. What a loser covers
beyond the winners is redacted under the loser's label. So no character survives that any step has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start to end − 1 of a text. `step`: the number of the step that replaces them; None: redacted."""

    start: int
    end: int
    entity: str
    step: int | None


def resolve(found: Sequence[Span], length: int) -> list[Span]:
    """Spans that do not overlap, ascending, and cover what `found` covers. `length`: of the text."""
    taken = bytearray(length)
    resolved = []
    for span in sorted(found, key=lambda s: (s.step, s.start - s.end, s.start, s.entity)):
        if not any(taken[span.start : span.end]):
            resolved.append(span)
        else:
            resolved += [Span(start, end, span.entity, None) for start, end in _free(taken, span.start, span.end)]
        taken[span.start : span.end] = b"\1" * (span.end - span.start)
    return sorted(resolved, key=lambda s: s.start)


def _free(taken: bytearray, start: int, end: int) -> list[tuple[int, int]]:
    """Runs of zeros within start to end − 1."""
    runs = []
    while (first := taken.find(0, start, end)) >= 0:
        last = taken.find(1, first, end)
        start = last if last >= 0 else end
        runs.append((first, start))
    return runs

"""Which blocks' answers a call has: what comes twice, since two replicas were asked, is taken once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Coverage:
    """For each segment and query, a bit for each block that is missing."""

    def __init__(self, blocks: Sequence[int], queries: int) -> None:
        """blocks: of each segment."""
        self._missing = {(s, q): (1 << count) - 1 for s, count in enumerate(blocks) if count for q in range(queries)}

    @property
    def complete(self) -> bool:
        return not self._missing

    def take(self, segment: int, query: int, first: int, blocks: int) -> Iterator[tuple[int, int]]:
        """The ranges (first, blocks) of these that were missing, and are no more."""
        missing = self._missing.get((segment, query), 0)
        coming = missing & ((1 << blocks) - 1) << first
        if missing == coming:
            self._missing.pop((segment, query), None)
        else:
            self._missing[segment, query] = missing ^ coming
        while coming:
            start = (coming & -coming).bit_length() - 1
            run = coming >> start
            length = (~run & run + 1).bit_length() - 1
            yield start, length
            coming ^= ((1 << length) - 1) << start

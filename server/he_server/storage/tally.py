"""What a server did with what is elsewhere, counted since it started: for its metrics, and nothing depends on it.

The names are fixed here. None is of a collection, a segment or a key, so whoever reads the numbers learns how much, and
not of what.
"""

from __future__ import annotations

import threading
from types import MappingProxyType

COUNTS = MappingProxyType(
    {
        "segment_fetches": "Segments that were read from object storage, checked, and kept here.",
        "segment_fetched_bytes": "Bytes of segments that were read, those that were damaged included.",
        "segment_failed_fetches": "Segments that were damaged, removed by another server meanwhile, or not to be read.",
        "segment_evictions": "Copies of segments that went to make room for others.",
        "object_puts": "Segments that were sent to object storage.",
        "object_put_bytes": "Their bytes.",
        "object_failures": "Requests to object storage that failed, their repetitions too.",
        "catalogue_looks": "Questions to the shared catalogue whether others changed it.",
        "catalogue_refreshes": "Answers that they did: what changed was read.",
        "catalogue_reloads": "Refreshes that read all of it, since what changed was not known.",
        "cluster_hedges": "Parts of searches that a further actor was asked for, since one was late.",
        "cluster_losses": "Actors given up in a search: lost, started again, silent or without their segments.",
        "catalogue_failed_looks": "Questions to which the shared catalogue gave no answer.",
    }
)


class Tally:
    """Thread-safe. All begin at 0, and there they stay in a server whose storage is all in its data folder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = dict.fromkeys(COUNTS, 0)

    def add(self, name: str, amount: int = 1) -> None:
        """name: one of COUNTS; KeyError for another."""
        with self._lock:
            self._values[name] += amount

    def values(self) -> dict[str, int]:
        """By name, as they are now."""
        with self._lock:
            return dict(self._values)

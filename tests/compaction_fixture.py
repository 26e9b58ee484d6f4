"""Collections of small full segments, so that compaction has something to do in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_client import Client, Collection, CollectionKey

DIM = 16
BLOCK_ROWS = 256  #: at stride 16, `exact`
FULL_ROWS = 4 * BLOCK_ROWS


def shrink_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full segment has FULL_ROWS rows."""
    monkeypatch.setattr("he_client.collection.SEGMENT_BYTES", 4 * 32 * 1024)


def make(client: Client, key: CollectionKey, **options: Any) -> Collection:
    return client.create_collection("c", dim=DIM, key=key, **{"profile": "exact", "stride": 16, **options})


def segments(collection: Collection) -> list[tuple[int, int]]:
    """(rows, deleted ones) of each segment, by size."""
    entries = collection._state.manifest.message.segments
    return sorted((e.rows, len(e.deleted_rows)) for e in entries)


def contents(collection: Collection, queries: NDArray[np.float64]) -> list[dict[Any, tuple[float, Any]]]:
    """Every row that lives, with its score for each query, and its payload."""
    found = collection.search(queries, k=max(1, collection.count()))
    plain = [{hit.id: (hit.score, hit.payload) for hit in hits} for hits in found]
    assert all(len(one) == len(hits) for one, hits in zip(plain, found, strict=True)), "no id twice"
    return plain


def before(call: Callable[..., Any], action: Callable[[], object]) -> Callable[..., Any]:
    """`call`, with `action` once in front of it."""
    waiting = [action]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if waiting:
            waiting.pop()()
        return call(*arguments, **options)

    return wrapped

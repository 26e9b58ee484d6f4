"""Upsert: new rows are inserted, known ones replaced, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, CollectionKey, DimensionError, DuplicateIdError, InvalidInput, NormError
from tests.compaction_fixture import DIM, before, contents, make, segments
from tests.conftest import unit_rows
from tests.sdk_fixture import connect


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.mark.parametrize("kind", ["memory", "grpc"])
@pytest.mark.parametrize("options", [{}, {"metric": "l2", "norm_bound": 2.0}, {"engine": "tenseal"}], ids=str)
def test_known_rows_are_replaced(
    tmp_path: Path, key: CollectionKey, rng: np.random.Generator, options: dict[str, Any], kind: str
) -> None:
    if "engine" in options:
        options = {**options, "profile": None, "stride": None}
    rows = unit_rows(rng, 8, DIM)
    with connect(kind, tmp_path) as client:
        made = make(client, key, **options)
        assert made.upsert([1, "one", 2], rows[:3], ["a", "b", b"c"]) == 3
        version = made.version
        assert made.upsert(["one", 3, 1], rows[3:6], ["B", None, "A"]) == 3
        assert made.version == version + 1, "one commit"
        assert made.count() == 4
        for row_id, row, payload in ((1, 5, "A"), ("one", 3, "B"), (2, 2, b"c"), (3, 4, None)):
            (best,) = made.search(rows[row], k=1)
            assert (best.id, best.payload) == (row_id, payload)
        for reader in (made, client.open_collection("c", key=key)):
            assert contents(reader, rows[:1])[0].keys() == {1, "one", 2, 3}
        assert made.delete(["one"]) == 1
        assert made.upsert(["one"], rows[6:7]) == 1, "a deleted id comes back"
        (best,) = made.search(rows[6], k=1)
        assert (best.id, best.payload) == ("one", None)


def test_a_segment_without_live_rows_goes(key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 6, DIM)
    with Client(":memory:") as client:
        made = make(client, key)
        made.insert([1, 2], rows[:2])
        made.upsert([2, 3], rows[2:4])
        assert segments(made) == [(2, 0), (2, 1)]
        made.upsert([1], rows[4:5])
        assert segments(made) == [(1, 0), (2, 0)]
        assert made.count() == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1, 1], np.eye(2, DIM)), DuplicateIdError),
        (([1], np.eye(1, DIM - 1)), DimensionError),
        (([1], np.full((1, DIM), np.nan)), NormError),
        (([], np.eye(0, DIM)), InvalidInput),
        (([1.5], np.eye(1, DIM)), InvalidInput),
        (([1], np.eye(1, DIM), ["a", "b"]), DimensionError),
    ],
)
def test_bad_upserts_change_nothing(key: CollectionKey, arguments: Any, error: type[Exception]) -> None:
    with Client(":memory:") as client:
        made = make(client, key)
        made.insert([1], np.eye(1, DIM), ["kept"])
        with pytest.raises(error):
            made.upsert(*arguments)
        assert (made.count(), made.version, made.search(np.eye(1, DIM), k=1)[0][0].payload) == (1, 2, "kept")


def test_an_upsert_on_top_of_other_writers(key: CollectionKey, rng: np.random.Generator) -> None:
    """What they did between its upload and its commit: its ids inserted, replaced or deleted by them. The last wins."""
    rows = unit_rows(rng, 8, DIM)
    with Client(":memory:") as client:
        one = make(client, key)
        two = client.open_collection("c", key=key)
        one.insert([1, 2, 3], rows[:3])

        def others() -> None:
            two.insert([4, 9], rows[3:5])
            two.upsert([1], rows[5:6])
            two.delete([2])

        one._state.commit = before(one._state.commit, others)  # type: ignore[method-assign]
        one.upsert([1, 2, 4], unit_rows(rng, 3, DIM), ["ours"] * 3)
        for reader in (one, two):
            found = contents(reader, rows[:1])[0]
            assert {i: p for i, (_, p) in found.items()} == {1: "ours", 2: "ours", 4: "ours", 3: None, 9: None}

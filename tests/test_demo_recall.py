"""recall@k and hit@k on cases small enough to count by hand, ties above all."""

from __future__ import annotations

import numpy as np
import pytest

from he_client.demo.plaintext import PlaintextSearch
from he_client.demo.recall import CHUNK, hit_share, inner_products, kth_best, recall

# Inner products with (1, 0): 1, .8, .8, .6, 0. Rows 1 and 2 tie.
ROWS = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6], [0.6, 0.8], [0, 1]], np.float32)
QUERY = np.array([[1, 0]], np.float32)


@pytest.mark.parametrize(
    ("found", "k", "expected"),
    [
        ([0, 1], 2, 1.0),
        ([0, 2], 2, 1.0),  # the other one of the tie
        ([1, 2], 2, 1.0),  # both of the tie, not the best: each is as good as the second best
        ([0, 3], 2, 0.5),
        ([3, 4], 2, 0.0),
        ([0, 0], 2, 0.5),  # the same row twice
        ([1], 1, 0.0),
        ([0, 1, 3], 3, 2 / 3),
        ([0, 1, 2], 2, 1.0),  # what follows the first k is not looked at
        ([3, 4, 0], 2, 0.0),
        ([4, 3, 2, 1, 0], 5, 1.0),
        ([4, 3, 2, 1, 0], 10, 1.0),  # fewer rows than k: all are wanted
        ([], 2, 0.0),
    ],
)
def test_recall(found: list[int], k: int, expected: float) -> None:
    assert recall(ROWS, QUERY, [found], k) == [pytest.approx(expected)]


def test_a_difference_that_float32_can_show_is_not_a_tie() -> None:
    rows = np.array([[1, 0], [1 - 2.0**-22, 0], [1 - 2.0**-20, 0]], np.float32)
    assert recall(rows, QUERY, [[1]], 1) == [0.0]
    assert recall(rows, QUERY, [[2]], 1) == [0.0]


def test_kth_best_across_chunks(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((2 * CHUNK + 5, 3)).astype(np.float32)
    queries = rng.standard_normal((4, 3)).astype(np.float32)
    scores = np.sort(queries.astype(np.float64) @ rows.astype(np.float64).T, axis=1)
    assert np.allclose(kth_best(rows, queries, 10), scores[:, -10], rtol=0, atol=1e-12)


def test_inner_products_are_in_the_order_asked_for() -> None:
    assert np.allclose(inner_products(ROWS, QUERY[0], [3, 0]), [0.6, 1])


def test_hit_share() -> None:
    found = [["a", "b"], ["c", "a"], ["c", "d"]]
    assert hit_share(found, ["a", "a", "a"], 1) == pytest.approx(1 / 3)
    assert hit_share(found, ["a", "a", "a"], 2) == pytest.approx(2 / 3)


def test_the_plaintext_search_has_full_recall(rng: np.random.Generator) -> None:
    pytest.importorskip("faiss", reason="needs the extra [demo]")
    rows = rng.standard_normal((500, 16)).astype(np.float32)
    rows[100:200] = rows[:100]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = PlaintextSearch(rows, threads=1).search(rows[:50], 10)
    assert recall(rows, rows[:50], found, 10) == [1.0] * 50
    assert [len(f) for f in PlaintextSearch(rows[:3], threads=1).search(rows[:2], 10)] == [3, 3]

"""Scores that are released: those of `exact` are functions of integers alone, also where the noise is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_client import Client, CollectionKey, Hit
from he_engine.params import ETA, TAIL, Parameters
from tests.conftest import unit_rows
from tests.noise_fixture import Crafted, at_positions, greedy
from tests.test_hint_engine import integer_scores

SHAPES = [(512, None), (64, None), (100, 8), (33, 256)]


def proven(p: Parameters) -> int:
    """13.5·n, the largest noise that docs/scheme.md, 3.1, admits."""
    return int(TAIL * p.noise_bound(p.index_scale * p.integer_norm, p.query_scale * p.integer_norm))


def rows_and_query(p: Parameters, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One full block; its first rows give the largest and the smallest score that there is."""
    rows = unit_rows(rng, p.rows_per_block, p.dim)
    rows[1] = -rows[0]
    return rows, rows[0]


@pytest.mark.parametrize(("dim", "stride"), SHAPES)
@pytest.mark.parametrize("beyond", [False, True])
def test_noise_at_the_bound_in_every_row(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    dim: int,
    stride: int | None,
    beyond: bool,
) -> None:
    """e along y, upwards in one row and downwards in the next: all rows at once. Within the bound nothing changes;
    at half a step, a little beyond it, every score is wrong by one, so the noise is what it is said to be."""
    crafted = Crafted(tmp_path, dim, stride, monkeypatch)
    p = crafted.parameters
    rows, vector = rows_and_query(p, rng)
    v, y = crafted.rows_polys(rows), crafted.query_polys(vector)
    e_query = rng.binomial(2 * ETA, 0.5, v.shape) - ETA
    coordinates = crafted.client._encoding.query(vector)
    slack = int(np.min(np.abs(coordinates[coordinates != 0]))) + 2 * p.query_scale  # what `greedy` and e·e' leave
    reach = p.index_scale * p.query_scale // 2 + slack if beyond else proven(p) - slack
    sign = 1 - 2 * (np.arange(p.rows_per_block) % 2)
    left = sign * reach - at_positions(p, v, e_query)
    chosen = np.array([greedy(int(target), coordinates, ETA) for target in left])
    e = np.swapaxes(chosen.reshape(-1, p.planes, p.stride), 0, 1).reshape(p.planes, -1)
    noise = at_positions(p, e, y + e_query) + at_positions(p, v, e_query)
    assert np.all(np.abs(noise - sign * reach) < slack) and slack < reach / 5000

    _, segment, index = crafted.setup_with(rows, e)
    query = crafted.query_with(vector, np.zeros(p.ring.degree, np.int64), e_query)
    released = crafted.client.recover(query, [segment], [crafted.answer(query, index)])[0]
    wrong = sign if beyond else 0
    integers = np.rint(integer_scores(p, rows, vector) * p.quantiser**2) + wrong
    np.testing.assert_array_equal(released, integers / float(p.quantiser**2))


@pytest.mark.parametrize(("dim", "stride"), SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_term_of_the_noise_against_one_row(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dim: int, stride: int | None, sign: int
) -> None:
    """e' along v, e along y and t along the rounding of the hint, together to the bound of one row."""
    crafted = Crafted(tmp_path, dim, stride, monkeypatch)
    p = crafted.parameters
    rows, vector = rows_and_query(p, rng)
    v, y = crafted.rows_polys(rows), crafted.query_polys(vector)
    r = int(rng.integers(p.rows_per_block))
    bound = proven(p)

    from_here = r * p.stride - np.arange(p.ring.degree)
    mirrored = v[:, from_here] * np.where(from_here < 0, -1, 1)  # what e' meets in this row
    e_query = greedy(sign * bound // 3, mirrored.reshape(-1), ETA).reshape(v.shape)
    reached = int(at_positions(p, v, e_query)[r])
    e = rng.binomial(2 * ETA, 0.5, v.shape) - ETA
    e[:, r * p.stride : (r + 1) * p.stride] = greedy(
        sign * bound * 2 // 3 - reached, crafted.client._encoding.query(vector), ETA
    ).reshape(p.planes, -1)
    noise = at_positions(p, e, y + e_query) + at_positions(p, v, e_query)
    encrypted, segment, index = crafted.setup_with(rows, e)
    delta = crafted.rounding(encrypted, segment)
    assert 0 < np.max(np.abs(delta)) <= 2 ** (p.hint_drop_bits - 1)
    mirrored_delta = delta[from_here] * np.where(from_here < 0, -1, 1)
    t = greedy(int(noise[r]) - sign * bound, mirrored_delta, 1)
    noise = noise - at_positions(p, t, delta)
    assert 0.999 * bound < sign * noise[r] <= bound

    query = crafted.query_with(vector, t, e_query)
    released = crafted.client.recover(query, [segment], [crafted.answer(query, index)])[0]
    right = np.abs(noise) <= bound  # t and e' were chosen for row r: in others they fall as they may
    assert right[r]
    np.testing.assert_array_equal(released[right], integer_scores(p, rows, vector)[right])


def test_hits_of_exact_are_the_same_under_any_key(rng: np.random.Generator) -> None:
    """Two collections with other keys, secrets and errors give the same bits, whatever the metric; others do not."""
    rows, queries = unit_rows(rng, 300, 24), unit_rows(rng, 5, 24)

    def hits(profile: str, metric: str) -> list[list[Hit]]:
        bound = None if metric == "cosine" else 1.0
        with Client(":memory:") as client:
            made = client.create_collection(
                "c", dim=24, key=CollectionKey.generate(), profile=profile, metric=metric, norm_bound=bound
            )
            made.insert(range(300), rows, progress=False)
            found: list[list[Hit]] = made.search(queries, k=300)
            return found

    for metric in ("cosine", "ip", "l2"):
        assert hits("exact", metric) == hits("exact", metric)
    for profile in ("compact", "precise"):
        assert hits(profile, "cosine") != hits(profile, "cosine")

"""Scores that are released: those of `exact` are functions of integers alone, also where the noise is chosen."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    HesearchError,
    Hit,
    InvalidInput,
    ScoreReleaseWarning,
    TamperedAnswerError,
)
from he_engine.encoding import Encoding
from he_engine.params import ETA, TAIL, Parameters
from tests.conftest import unit_rows
from tests.engine_fixture import Both
from tests.lying_fixture import lying_client
from tests.noise_fixture import Crafted, at_positions, greedy
from tests.test_hint_engine import integer_scores

SHAPES = [(512, None), (64, 16), (100, 32), (33, 256)]


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


@pytest.mark.parametrize("profile", ["compact", "exact"])
def test_a_chosen_query_gives_a_block_of_the_real_ring_away(
    tmp_path: Path, rng: np.random.Generator, profile: str
) -> None:
    """Every digit of one unit vector's scores, 1500 times, gives x̂ + e in a whole plane of b, so s by a division, and
    with s the planes that no score depended on. `exact` scores give the plane without e, and s not at all."""
    both = Both(tmp_path, profile, 3, 1)
    p = both.parameters
    n, q = p.ring.degree, p.ring.primes[0]
    rows = unit_rows(rng, n, 3)
    encrypted, segment, index = both.setup(rows)
    unit = np.array([1.0, 0, 0])
    total = np.zeros(n)
    answers = 1500 if profile == "compact" else 30
    for _ in range(answers):
        query = both.client.query(unit)
        total += both.client.recover(query, [segment], [both.answer(query, index)])[0]
    scale = p.index_scale * max(1, p.quantiser)
    plane = np.rint(total / answers * scale).astype(np.int64) % q  # Δx·score, y having the one coordinate 1

    kernel = both.client._kernel
    polys = np.stack([plane % prime for prime in p.ring.primes]).astype(np.uint32)[None]
    kernel.forward(polys)
    public = both.client._index_public[0].astype(np.int64)  # modulo q_0: (N/16, I, 16)
    blocks = np.frombuffer(encrypted.index, "<u4").reshape(both.client._stack)[0].astype(np.int64)
    a, b = (np.swapaxes(stack, 0, 1).reshape(p.planes, n) for stack in (public, blocks))
    inverse = np.array([pow(int(slot), -1, q) for slot in a[0]])
    s = (b[0] - polys[0, 0]) % q * inverse % q
    true = both.client._block_secrets(segment.seed, 0, 1)[0, 0]

    hidden = np.zeros((2, len(p.ring.primes), n), np.uint32)
    hidden[:, 0] = (b[1:] - a[1:] * s % q) % q
    kernel.inverse(hidden)
    found = hidden[:, 0].astype(np.int64)
    found = np.where(found > q // 2, found - q, found) / scale
    if profile == "compact":
        assert np.array_equal(s, true)
        assert np.max(np.abs(found.T - rows[:, 1:])) <= (ETA + 0.5) / scale
    else:
        assert np.mean(s == true) < 0.01
        assert abs(np.corrcoef(found[0], rows[:, 1])[0, 1]) < 0.1


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


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_nothing_that_the_client_says_has_a_score(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    profile: str,
) -> None:
    """Errors of every kind, with what caused them, warnings, logs, streams and reports, beside searches that work."""
    rows = unit_rows(rng, 40, 8)
    said: list[str] = []

    def fails(kind: type[HesearchError], collection: Collection, *arguments: Any, **named: Any) -> None:
        with pytest.raises(kind) as raised:
            collection.search(*arguments, **named)
        error: BaseException | None = raised.value
        while error is not None:
            said.append(f"{error!r} {error.args}")
            error = error.__cause__ or error.__context__

    with lying_client() as (client, transport), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        caplog.set_level(logging.DEBUG)
        collection = client.create_collection("c", dim=8, key=CollectionKey.generate(), profile=profile)
        collection.insert(range(40), rows, progress=False)
        found = collection.search(rows[:9], k=40)
        scores = {f"{abs(hit.score):.4f}" for hits in found for hit in hits}
        said += [repr(collection), repr(client)]
        report = repr(collection.last_search)  # it has times, in which any four digits may occur
        assert not any(str(abs(hit.score))[:12] in report for hits in found for hit in hits)
        fails(InvalidInput, collection, rows[0], k=0)
        fails(InvalidInput, collection, rows[0, :7])
        fails(InvalidInput, collection, rows[0] * np.nan)

        def lie(pieces: list[Any]) -> list[Any]:
            pieces[0].residues = bytes([pieces[0].residues[0] ^ 1]) + pieces[0].residues[1:]
            return pieces

        transport.lies["Answer"] = lie
        fails(TamperedAnswerError, collection, rows[0])
        transport.lies.clear()
        with monkeypatch.context() as patch:
            honest = Encoding.scores

            def outside(self: Encoding, decoded: Any) -> Any:
                self._largest = 0
                return honest(self, decoded)

            patch.setattr(Encoding, "scores", outside)
            fails(TamperedAnswerError, collection, rows[0])
        collection.close()
        fails(InvalidInput, collection, rows[0])
    assert [w.category for w in caught] == ([] if profile == "exact" else [ScoreReleaseWarning])
    said += [str(w.message) for w in caught] + [caplog.text, *capfd.readouterr()]
    everything = " ".join(said)
    assert "outside the bound" in everything and "fail verification" in everything
    assert len(scores) > 200 and any(score in repr(found) for score in scores), "the form that they would have"
    assert [score for score in scores if score in everything] == []

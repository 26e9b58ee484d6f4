"""The hint engine end to end, on every instruction set: exact scores are exact, noise is as derived, lies are seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from he_engine.errors import DimensionError, NormError, ResidueError, TamperedAnswerError
from he_engine.hint_client import HintClient, HintQuery, HintSegment
from he_engine.kernels._answer import AnswerKernel
from he_engine.kernels._client import targets
from he_engine.params import TAIL, Parameters, Profile
from tests.conftest import unit_rows
from tests.engine_fixture import Both


def integer_scores(p: Parameters, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The plaintext integer search that `exact` must equal bit for bit."""
    s = p.quantiser
    x, y = np.rint(rows * s).astype(np.int64), np.rint(vector * s).astype(np.int64)
    return (x @ y) / float(s * s)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(
    ("dim", "stride", "n"), [(512, None, 200), (256, None, 300), (7, 1, 10), (100, 8, 600), (33, 256, 40)]
)
def test_exact_equals_the_integer_search(
    tmp_path: Path, rng: np.random.Generator, target: str, dim: int, stride: int | None, n: int
) -> None:
    both = Both(tmp_path, "exact", dim, stride, target)
    rows = unit_rows(rng, n, dim)
    for vector in (*unit_rows(rng, 2, dim), rows[3], -rows[n - 1]):
        assert np.array_equal(both.scores(rows, vector), integer_scores(both.parameters, rows, vector))


def test_exact_at_the_largest_norms(tmp_path: Path) -> None:
    """Every row and the query at norm exactly 1, all parallel: the largest scores of either sign."""
    dim = 64
    rows = np.tile(np.ones(dim) / 8, (300, 1))
    rows[1::2] *= -1
    both = Both(tmp_path, "exact", dim)
    assert np.array_equal(both.scores(rows, rows[0]), integer_scores(both.parameters, rows, rows[0]))


@pytest.mark.large
def test_ten_million_exact_scores(tmp_path: Path, rng: np.random.Generator) -> None:
    """≥ 10,000,000 scores, bit-identical to the integer search."""
    both = Both(tmp_path, "exact", 256)
    rows = unit_rows(rng, 50_000, 256)
    _, segment, index = both.setup(rows)
    compared = 0
    for vector in unit_rows(rng, 201, 256):
        query = both.client.query(vector)
        scores = both.client.recover(query, [segment], [both.answer(query, index)])[0]
        assert np.array_equal(scores, integer_scores(both.parameters, rows, vector))
        compared += len(scores)
    assert compared >= 10_000_000


@pytest.mark.parametrize(
    ("profile", "dim", "stride"),
    [
        ("compact", 512, 16),
        ("compact", 128, 1),
        ("compact", 384, 8),
        ("precise", 256, 16),
        ("precise", 512, 32),
        ("precise", 64, 1),
    ],
)
def test_score_error_is_as_derived(
    tmp_path: Path, rng: np.random.Generator, profile: str, dim: int, stride: int
) -> None:
    """Measured standard deviation within 5 % of the formula: about 20,000 scores, so 5 % is over 8 sigma."""
    both = Both(tmp_path, profile, dim, stride)
    rows = unit_rows(rng, 4096, dim)
    _, segment, index = both.setup(rows)
    errors = []
    for vector in unit_rows(rng, 5, dim):
        query = both.client.query(vector)
        scores = both.client.recover(query, [segment], [both.answer(query, index)])[0]
        errors.append(scores - rows @ vector)
    error = np.concatenate(errors)
    expected = both.parameters.score_error_std
    assert abs(error.std() / expected - 1) < 0.05
    assert abs(error.mean()) < 6 * expected / np.sqrt(len(error)) * 3, "unbiased (rows share the query's noise)"
    assert np.abs(error).max() < 8 * expected


@pytest.mark.parametrize("profile", list(Profile))
def test_what_rounding_the_hint_adds(tmp_path: Path, rng: np.random.Generator, profile: Profile) -> None:
    """The scores without rounding minus those with it are t·δ/ΔxΔy: standard deviation within 3 % of √(N·(2/3)·4^κ/12)
    (4 sigma: 5 secrets, 20,000 scores), and far within the bound; nothing at all for `exact`."""
    both = Both(tmp_path, profile, 512)
    p = both.parameters
    _, segment, index = both.setup(unit_rows(rng, 4096, 512))
    ring = p.ring
    product = AnswerKernel(ring.log_n, ring.primes, 1, p.planes)  # stride 1 folds nothing: Σ b·a' itself
    full = np.empty((1, index.blocks, len(ring.primes), ring.degree), np.uint32)
    blocks = np.fromfile(index.path, "<u4").reshape(index.blocks, *both.client._stack)
    product.answer(blocks, both.client._query_public[None], full)
    unrounded = HintSegment(segment.rows, segment.blocks, full[0], segment.seed, segment.fingerprint)
    differences = []
    for vector in unit_rows(rng, 5, 512):
        query = both.client.query(vector)
        answer = both.answer(query, index)
        rounded, exact = (both.client.recover(query, [s], [answer])[0] for s in (segment, unrounded))
        differences.append(rounded - exact)
    difference = np.concatenate(differences)
    if profile is Profile.EXACT:
        assert not difference.any()
        return
    spread = np.sqrt(ring.degree * 2 / 3) * 2.0**p.hint_drop_bits  # of t·2^κ
    scale = float(p.index_scale * p.query_scale)
    assert difference.std() * scale == pytest.approx(spread / np.sqrt(12), rel=0.03)
    assert np.abs(difference).max() * scale < 6 * spread / np.sqrt(12) < TAIL * spread / 2


@pytest.mark.parametrize("profile", list(Profile))
def test_a_changed_answer_is_seen_before_decryption(
    tmp_path: Path, rng: np.random.Generator, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any single residue, by any amount, and structured lies: q multiples, swaps, zeros, another query's answer."""
    both = Both(tmp_path, profile, 64)
    rows = unit_rows(rng, 2 * both.parameters.rows_per_block + 5, 64)
    _, segment, index = both.setup(rows)
    query, other = both.client.query(rows[0]), both.client.query(rows[1])
    honest = both.answer(query, index)
    both.client.recover(query, [segment], [honest])
    primes = np.array(both.parameters.ring.primes, np.int64)
    words = np.frombuffer(honest, "<u4").reshape(index.blocks, len(primes), -1)

    def never(*_: object) -> None:
        raise AssertionError("decrypted before it was verified")

    monkeypatch.setattr(both.client, "_recover_one", never)
    lies = [
        np.zeros_like(words),
        words[::-1].copy(),
        np.frombuffer(both.answer(other, index), "<u4").reshape(words.shape),
    ]
    for _ in range(300):
        lie = words.copy()
        k, p, r = (int(rng.integers(0, size)) for size in words.shape)
        amount = int(rng.choice([1, 2, primes[p] - 1, rng.integers(1, primes[p])]))
        lie[k, p, r] = (int(lie[k, p, r]) + amount) % int(primes[p])
        lies.append(lie)
    for lie in lies:
        with pytest.raises(TamperedAnswerError, match="nothing was decrypted"):
            both.client.recover(query, [segment], [lie.tobytes()])
    above = words.astype(np.int64).copy()
    above[0, 0, 0] += primes[0]
    if above[0, 0, 0] < 1 << 32:
        with pytest.raises(TamperedAnswerError, match="not canonical"):
            both.client.recover(query, [segment], [above.astype("<u4").tobytes()])
    for length in (0, 1, len(honest) - 4, len(honest) + 4):
        with pytest.raises(TamperedAnswerError, match=r"got \d+ bytes, expected \d+"):
            both.client.recover(query, [segment], [(honest + bytes(4))[:length]])


def test_a_lie_in_one_segment_stops_all(tmp_path: Path, rng: np.random.Generator) -> None:
    both = Both(tmp_path, "exact", 32)
    made = [both.setup(unit_rows(rng, 20, 32)) for _ in range(3)]
    query = both.client.query(unit_rows(rng, 1, 32)[0])
    answers = [both.answer(query, index) for _, _, index in made]
    segments = [segment for _, segment, _ in made]
    both.client.recover(query, segments, answers)
    bad = bytearray(answers[1])
    bad[0] ^= 1
    with pytest.raises(TamperedAnswerError, match=r"1 of 3 segments .*\[1\]"):
        both.client.recover(query, segments, [answers[0], bad, answers[2]])
    swapped = [answers[1], answers[0], answers[2]]
    with pytest.raises(TamperedAnswerError, match="2 of 3"):
        both.client.recover(query, segments, swapped)


def test_sums_of_fingerprints_are_kept_for_one_grouping(tmp_path: Path, rng: np.random.Generator) -> None:
    """Each segment is in one sum at most, which is overwritten when the segment is released or is in another."""
    both = Both(tmp_path, "exact", 32)
    segments = [both.setup(unit_rows(rng, 5, 32))[1] for _ in range(5)]
    client, q = both.client, np.array(both.parameters.ring.primes, np.uint64)[:, None, None, None]

    def summed(*numbers: int) -> np.ndarray:
        members = [segments[i] for i in numbers]
        with client._total_fingerprint(members) as total:
            expected = sum(s.fingerprint.sums.astype(np.uint64) for s in members) % q
            np.testing.assert_array_equal(total, expected)
        return total

    first, second = summed(0, 1), summed(2, 3, 4)
    assert summed(0, 1) is first and summed(2, 3, 4) is second, "kept"
    third = summed(1, 2)
    assert not first.any() and not second.any() and third.any()
    with client._total_fingerprint([segments[1], segments[2]]) as total:
        client.release(segments[1])
        assert total is third and total.any(), "in use"
    assert not third.any()
    last = summed(0, 2)
    client.close()
    assert not last.any()


def test_recovery_beside_releases(tmp_path: Path, rng: np.random.Generator) -> None:
    """Threads that share a query, group its segments in different ways and forget them: the answers stay honest."""
    both = Both(tmp_path, "exact", 32)
    rows = unit_rows(rng, 60, 32)
    made = [both.setup(rows[i : i + 10]) for i in range(0, 60, 10)]
    query = both.client.query(rows[0])
    answers = [both.answer(query, index) for _, _, index in made]
    expected = [integer_scores(both.parameters, rows[i : i + 10], rows[0]) for i in range(0, 60, 10)]

    def recover(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(60):
            first, end = sorted(own.choice(7, 2, replace=False).tolist())
            scores = both.client.recover(query, [s for _, s, _ in made[first:end]], answers[first:end])
            np.testing.assert_array_equal(scores, expected[first:end])
            both.client.release(made[int(own.integers(6))][1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(recover, range(4)))


def test_forging_succeeds_with_the_fingerprint(tmp_path: Path, rng: np.random.Generator) -> None:
    """The check rests on F and w being secret: with w known, a lie passes. So the tests above would notice."""
    both = Both(tmp_path, "exact", 32)
    _, segment, index = both.setup(unit_rows(rng, 20, 32))
    query = both.client.query(unit_rows(rng, 1, 32)[0])
    words = np.frombuffer(both.answer(query, index), "<u4").reshape(1, 2, -1).copy()
    from he_engine import verify

    p = both.parameters
    w = verify.weights(
        both.client._key, both.client._kernel, p, both.client._id, segment.seed, segment.fingerprint.salt, 0, 1
    )
    q = p.ring.primes[0]
    # four unknown changes, three linear equations mod q: one solution is enough
    a = [[int(w[0, c, 0, r]) for r in range(4)] for c in range(3)]

    def det(m: list[list[int]]) -> int:
        return (
            m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
            - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
        )

    delta = [(-1) ** r * det([[row[c] for c in range(4) if c != r] for row in a]) % q for r in range(4)]
    assert any(delta)
    for r in range(4):
        words[0, 0, r] = (int(words[0, 0, r]) + delta[r]) % q
    try:
        both.client.recover(query, [segment], [words.tobytes()])
    except TamperedAnswerError as error:
        assert "outside the bound" in str(error), "verification passed; only the decoder's bound may still object"


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.zeros((0, 16)), DimensionError),
        (np.zeros((2, 15)), DimensionError),
        (np.zeros(16), DimensionError),
        (np.full((1, 16), np.nan), NormError),
        (np.full((1, 16), np.inf), NormError),
        (np.full((3, 16), 0.26), NormError),
    ],
)
def test_bad_rows(tmp_path: Path, rows: np.ndarray, error: type[Exception]) -> None:
    both = Both(tmp_path, "exact", 16)
    with pytest.raises(error):
        both.client.setup(rows)
    if rows.ndim == 2 and len(rows):
        with pytest.raises(error):
            both.client.query(rows[0])


def test_hints_and_fingerprints_are_checked_when_loaded(tmp_path: Path, rng: np.random.Generator) -> None:
    both = Both(tmp_path, "compact", 16)
    encrypted, _, _ = both.setup(unit_rows(rng, 5, 16))
    bad_fingerprint = bytearray(encrypted.fingerprint)
    bad_fingerprint[-4:] = b"\xff" * 4
    for change in (
        {"hint": encrypted.hint[:-1]}, {"hint": bytes(encrypted.hint) + b"\0"}, {"hint": b""},
        {"fingerprint": bytes(bad_fingerprint)}, {"fingerprint": encrypted.fingerprint[:-1]},
    ):  # fmt: skip
        with pytest.raises(ResidueError):
            both.client.load(replace(encrypted, **change))


@pytest.mark.parametrize("profile", list(Profile))
def test_hints_have_one_form(tmp_path: Path, rng: np.random.Generator, profile: Profile) -> None:
    """A value of a packed hint that is at least ⌈q/2^κ⌉, anywhere, is refused; the largest one below is not."""
    both = Both(tmp_path, profile, 64)
    p = both.parameters
    encrypted, _, _ = both.setup(unit_rows(rng, p.rows_per_block + 1, 64))
    assert len(encrypted.hint) == 2 * p.hint_bytes_per_block
    width = p.ring.modulus.bit_length() - p.hint_drop_bits
    limit = -(-p.ring.modulus >> p.hint_drop_bits)
    mask = (1 << width) - 1

    def with_value(place: int, value: int) -> bytes:
        bits = int.from_bytes(encrypted.hint, "little")
        return (bits & ~(mask << place * width) | value << place * width).to_bytes(len(encrypted.hint), "little")

    for place in 0, 1, p.ring.degree - 1, p.ring.degree, 2 * p.ring.degree - 1:
        both.client.load(replace(encrypted, hint=with_value(place, limit - 1)))
        for value in limit, mask:
            if limit <= value <= mask:
                with pytest.raises(ResidueError, match=f"hint: .*value {place} is not canonical"):
                    both.client.load(replace(encrypted, hint=with_value(place, value)))


@pytest.mark.parametrize("profile", list(Profile))
def test_a_cold_reader_has_the_writers_scores(tmp_path: Path, rng: np.random.Generator, profile: Profile) -> None:
    """Bit for bit, also the approximate ones: writer and reader hold the same rounded hint, and no other."""
    both = Both(tmp_path, profile, 96)
    rows = unit_rows(rng, 2 * both.parameters.rows_per_block + 3, 96)
    encrypted, segment, index = both.setup(rows)
    stored = replace(encrypted, index=b"", hint=bytes(encrypted.hint))  # what comes from the server
    cold = HintClient(both.parameters, both.key, bytes(16), both.state, threads=1, target=targets()[-1])
    loaded = cold.load(stored)
    query = both.client.query(rows[0])
    answer = both.answer(query, index)
    ours = both.client.recover(query, [segment], [answer])[0]
    secret, mask = query._open(both.client)
    theirs = HintQuery(cold, np.frombuffer(query.ciphertext, np.uint32).copy(), secret.copy(), mask.copy())
    np.testing.assert_array_equal(cold.recover(theirs, [loaded], [answer])[0], ours)
    np.testing.assert_array_equal(loaded.hint, segment.hint)

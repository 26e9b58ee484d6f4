"""What is encrypted can be decrypted, exactly, and encrypted again under another seed; nothing else decrypts."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.engine import nothing
from he_engine.errors import DimensionError, NormError, ResidueError, TamperedDataError
from he_engine.hint_client import HintClient
from he_engine.hint_rows import RowCipher
from he_engine.kernels import _client
from he_engine.kernels.naive import NaiveKernel
from he_engine.keys import RootKey
from tests.conftest import unit_rows
from tests.engine_fixture import Both
from tests.test_kernels import ring

KEY = bytes(range(32))


def cipher(primes: int, log_n: int, stride: int, planes: int, target: str) -> RowCipher:
    """Of a small ring with the real primes, on one instruction set or on the oracle."""
    small = ring(primes, log_n)
    shape = (small.log_n, small.primes, small.roots, stride, planes)
    kernel: Any = NaiveKernel(*shape) if target == "naive" else _client.ClientKernel(*shape, target)
    parameters: Any = SimpleNamespace(
        ring=small, stride=stride, planes=planes, rows_per_block=small.degree // stride, digest=bytes(32),
        hint_drop_bits=5, hint_bytes_per_block=small.degree * (small.modulus.bit_length() - 5) // 8,
    )  # fmt: skip
    rng = np.random.default_rng([primes, log_n])
    shape = (small.degree // 16, planes, 16)
    publics = [np.stack([rng.integers(0, q, shape, np.uint32) for q in small.primes]) for _ in range(2)]
    return RowCipher(parameters, RootKey(KEY), b"id", kernel, *publics, threads=2)


@pytest.mark.parametrize("target", _client.targets())
@pytest.mark.parametrize("fill", ["random", "edges"])
@pytest.mark.parametrize("layout", [(1, 4, 1, 1), (2, 5, 2, 3), (1, 6, 4, 2), (2, 6, 1, 2)], ids=str)
def test_kernels_and_oracle_decrypt_each_others_blocks(
    layout: tuple[int, int, int, int], fill: str, target: str, rng: np.random.Generator
) -> None:
    fast, naive = cipher(*layout, target), cipher(*layout, "naive")
    primes, log_n, stride, planes = layout
    shape = (6, (1 << log_n) // stride, planes * stride)
    largest = ring(primes, log_n).primes[0] // 2  # the real layouts stay below 2^29.6
    edges = np.array([-largest, -1, 0, 1, largest])
    rows = (rng.choice(edges, shape) if fill == "edges" else rng.integers(-largest, largest + 1, shape)).astype(
        np.int32
    )
    for one, other in (fast, naive), (naive, fast):
        made = one.encrypt(rows.copy(), 6 * shape[1], nothing)
        blocks = np.frombuffer(made.index, np.uint32).reshape(6, primes, (1 << log_n) // 16, planes, 16)
        np.testing.assert_array_equal(other.decrypt(made.seed, blocks), rows)


def encoded(client: HintClient, rows: NDArray[np.float64]) -> NDArray[np.int32]:
    p = client.parameters
    return client._encoding.rows(rows).reshape(-1, p.planes * p.stride)[: len(rows), : p.dim]


@pytest.mark.parametrize("dim", [1, 3, 17, 100, 512])
@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_rows_come_back_exactly(tmp_path: Path, rng: np.random.Generator, profile: str, dim: int) -> None:
    both = Both(tmp_path, profile, dim, None if dim < 100 else 64)
    client = both.client
    for count in 1, both.parameters.rows_per_block, 5 * both.parameters.rows_per_block + 1:
        rows = unit_rows(rng, count, dim)
        rows[0] = np.eye(dim)[dim - 1] * -1
        want = encoded(client, rows)
        first, segment, _ = both.setup(rows)
        found = client.decrypt(segment, first.index)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, want)

        again = client.setup_encoded(found)
        assert again.seed != first.seed
        assert (np.frombuffer(again.index, "<u4") == np.frombuffer(first.index, "<u4")).mean() < 1e-3
        np.testing.assert_array_equal(client.decrypt(client.load(again), again.index), want)
        np.testing.assert_array_equal(found, want, err_msg="the argument is not overwritten")


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_rows_encrypted_again_have_the_same_scores(tmp_path: Path, rng: np.random.Generator, profile: str) -> None:
    """`exact`: to the bit. The others have new noise around the same value."""
    both = Both(tmp_path, profile, 64, 16)
    rows, vector = unit_rows(rng, 700, 64), unit_rows(rng, 1, 64)[0]
    scores = []
    encrypted, segment, index = both.setup(rows)
    for _ in range(3):
        query = both.client.query(vector)
        scores.append(both.client.recover(query, [segment], [both.answer(query, index)])[0])
        encrypted = both.client.setup_encoded(both.client.decrypt(segment, encrypted.index))
        segment = both.client.load(encrypted)
        index.path.write_bytes(encrypted.index)
    tolerance = 0 if profile == "exact" else 12 * both.parameters.score_error_std
    assert max(np.abs(s - scores[0]).max() for s in scores[1:]) <= tolerance


def test_rows_that_rounding_made_longer(tmp_path: Path) -> None:
    """Their norm is over S: `rows` made them, so they must go in again."""
    both = Both(tmp_path, "exact", 512, 64)
    p, client = both.parameters, both.client
    step = next(x for x in np.linspace(0.999, 1, 10_000)[::-1] if (p.quantiser * x / np.sqrt(512)) % 1 > 0.5)
    rows = np.full((2, 512), step / np.sqrt(512))
    encrypted, segment, _ = both.setup(rows)
    found = client.decrypt(segment, encrypted.index)
    assert np.linalg.norm(found[0] / p.index_scale) > p.quantiser
    again = client.setup_encoded(found)
    np.testing.assert_array_equal(client.decrypt(client.load(again), again.index), found)


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_nothing_else_decrypts(tmp_path: Path, rng: np.random.Generator, profile: str) -> None:
    both = Both(tmp_path, profile, 20, 4)
    client, rows = both.client, unit_rows(rng, 50, 20)
    one, segment, _ = both.setup(rows)
    other, other_segment, _ = both.setup(rows)
    index = np.frombuffer(one.index, "<u4")
    for position in (0, index.size // 2, index.size - 1):
        changed = index.copy()
        changed[position] ^= 1
        with pytest.raises(TamperedDataError):
            client.decrypt(segment, changed.tobytes())
    for position in range(8):  # the same residues, written as r + q
        alias = index.copy()
        alias[position] += both.parameters.ring.primes[0]
        with pytest.raises(TamperedDataError, match="not canonical"):
            client.decrypt(segment, alias.tobytes())
    large = index.copy()
    large[7] = 2**32 - 1
    for bad in (large.tobytes(), one.index[:-4], bytes(one.index) + bytes(4), other.index):
        with pytest.raises(TamperedDataError):
            client.decrypt(segment, bad)
    stranger = HintClient(both.parameters, RootKey(KEY), bytes(16), both.state, threads=1)
    with pytest.raises(TamperedDataError):
        stranger.decrypt(segment, one.index)
    np.testing.assert_array_equal(
        client.decrypt(segment, one.index), client.decrypt(other_segment, other.index), err_msg="the right ones do"
    )


@pytest.mark.parametrize("where", ["a row after the last", "a coordinate after the last", "no multiple", "too long"])
def test_ranges_are_checked(tmp_path: Path, rng: np.random.Generator, where: str) -> None:
    """Only a key holder could have made these; they would break correctness or hide something all the same."""
    both = Both(tmp_path, "exact", 20, 16)
    p, client = both.parameters, both.client
    blocks = client._encoding.rows(unit_rows(rng, 50, 20))
    flat, scale = blocks.reshape(-1, p.planes * p.stride), p.index_scale
    row, column, value = {
        "a row after the last": (50, 0, scale),
        "a coordinate after the last": (3, 20, scale),
        "no multiple": (3, 0, scale + 1),
        "too long": (3, 0, scale * (p.integer_norm + 10)),
    }[where]
    flat[row, column] = value
    made = client._cipher.encrypt(blocks, 50, nothing)
    with pytest.raises(TamperedDataError, match="does not decrypt"):
        client.decrypt(client.load(made), made.index)


def test_only_encoded_rows_are_taken(tmp_path: Path, rng: np.random.Generator) -> None:
    client = Both(tmp_path, "exact", 20, 16).client
    good = encoded(client, unit_rows(rng, 5, 20))
    bad: list[Any] = [good.astype(np.int64), good.astype(float), good[:, :19], good[0], good[:0]]
    for rows in bad:
        with pytest.raises(DimensionError):
            client.setup_encoded(rows)
    for rows in (good + 1, good * 2):
        with pytest.raises(NormError):
            client.setup_encoded(rows.astype(np.int32))


def test_no_pair_a_s_serves_twice(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1, also where the random generator repeats itself: other rows, other seed; equal ones, equal bytes."""
    assert set(inspect.signature(HintClient.setup_encoded).parameters) == {"self", "rows", "advance"}
    both = Both(tmp_path, "compact", 16)
    rows = unit_rows(rng, 60, 16)
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    first, segment, _ = both.setup(rows)
    found = both.client.decrypt(segment, first.index)
    fewer = both.client.setup_encoded(found[:59])
    assert fewer.seed != first.seed
    assert (np.frombuffer(fewer.index, "<u4") == np.frombuffer(first.index, "<u4")).mean() < 1e-4
    same = both.client.setup_encoded(found)
    assert bytes(same.index) == bytes(first.index), "nothing new"


def test_progress_counts_rows(tmp_path: Path, rng: np.random.Generator) -> None:
    client = Both(tmp_path, "compact", 16, 16).client
    done: list[int] = []
    client.setup_encoded(encoded(client, unit_rows(rng, 1000, 16)), done.append)
    assert sum(done) == 1000 and len(done) > 1


# ---- tenseal ----------------------------------------------------------------------------------------------------
def test_tenseal_rows_come_back_nearly(rng: np.random.Generator) -> None:
    """Each pass adds an error of the documented standard deviation."""
    pytest.importorskip("tenseal.sealapi")
    from he_engine import tenseal_client

    client = tenseal_client.TensealClient(3, tenseal_client.generate_state())
    rows = unit_rows(rng, 4100, 3)
    encrypted = client.setup(rows)
    for passes in 1, 2, 3:
        found = client.decrypt(client.load(encrypted), encrypted.index)
        assert found.shape == rows.shape
        assert (found - rows).std() == pytest.approx(2.74e-7 * np.sqrt(passes), rel=0.05)
        encrypted = client.setup_encoded(found)
    assert (np.linalg.norm(found, axis=1) > 1).any(), "taken as they are"
    segment = client.load(encrypted)
    other = tenseal_client.TensealClient(3, tenseal_client.generate_state())
    with pytest.raises(TamperedDataError):
        other.decrypt(segment, encrypted.index)
    with pytest.raises(ResidueError):
        client.decrypt(segment, encrypted.index[:-8])
    for bad, error in ((found[:, :2], DimensionError), (found * 1.01, NormError)):
        with pytest.raises(error):
            client.setup_encoded(np.ascontiguousarray(bad))

"""The rules that keep the scheme secure (docs/scheme.md): each has a test that fails without it."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from he_engine import hint_client
from he_engine.errors import SecretReuseError
from he_engine.params import Parameters
from tests.conftest import unit_rows
from tests.engine_fixture import Both


def test_no_block_secret_repeats(tmp_path: Path, rng: np.random.Generator) -> None:
    """Rule 1. The same rows twice, and different rows under a repeated random generator (a restored snapshot)."""
    both = Both(tmp_path, "compact", 16)
    rows = unit_rows(rng, 400, 16)
    first, second = both.client.setup(rows), both.client.setup(rows)
    assert first.seed != second.seed
    same = np.frombuffer(first.index, "<u4") == np.frombuffer(second.index, "<u4")
    assert same.mean() < 1e-4, "fresh s and e for every block, also for equal rows"


def test_a_restored_snapshot_encrypts_other_rows_under_other_secrets(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1, hedge. b − b' under one (a, s) would be v − v' + small: here it must look uniform."""
    both = Both(tmp_path, "compact", 16)
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    rows = unit_rows(rng, 100, 16)
    changed = rows.copy()
    changed[99, 15] += 1e-3
    changed /= np.maximum(1, np.linalg.norm(changed, axis=1))[:, None]
    first, second = both.client.setup(rows), both.client.setup(changed)
    assert first.seed != second.seed
    repeated = both.client.setup(rows)
    assert repeated.seed == first.seed
    assert bytes(repeated.index) == bytes(first.index), "equal randomness and equal rows: equal bytes, nothing new"
    assert (np.frombuffer(first.index, "<u4") == np.frombuffer(second.index, "<u4")).mean() < 1e-4


def test_no_query_secret_repeats(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1 for queries: equal queries, also with the generator stuck, get new t and e' from the counter."""
    both = Both(tmp_path, "compact", 16)
    vector = unit_rows(rng, 1, 16)[0]
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    queries = [both.client.query(vector) for _ in range(20)]
    assert len({bytes(q.ciphertext) for q in queries}) == 20
    assert len({q._open(both.client)[0].tobytes() for q in queries}) == 20


@pytest.mark.parametrize("action", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secrets_cannot_be_copied(tmp_path: Path, rng: np.random.Generator, action: object) -> None:
    both = Both(tmp_path, "compact", 16)
    _, segment, _ = both.setup(unit_rows(rng, 5, 16))
    query = both.client.query(unit_rows(rng, 1, 16)[0])
    for secret in (query, segment, segment.fingerprint, both.client, both.key):
        with pytest.raises(SecretReuseError):
            action(secret)  # type: ignore[operator]
        assert repr(secret) == f"<{type(secret).__name__}>"


def test_a_closed_query_recovers_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    both = Both(tmp_path, "compact", 16)
    _, segment, index = both.setup(unit_rows(rng, 5, 16))
    query = both.client.query(unit_rows(rng, 1, 16)[0])
    secret, mask = query._open(both.client)
    answer = both.answer(query, index)
    query.close()
    assert not secret.any() and not mask.any(), "overwritten in place"
    with pytest.raises(SecretReuseError):
        both.client.recover(query, [segment], [answer])


def test_no_interface_takes_a_seed_a_secret_or_a_nonce() -> None:
    """Rule 1: misuse is not expressible."""
    for function in (hint_client.HintClient.setup, hint_client.HintClient.query):
        parameters = set(inspect.signature(function).parameters)
        assert parameters in ({"self", "rows", "advance"}, {"self", "vector"})


def test_index_and_query_polynomials_are_unrelated(tmp_path: Path) -> None:
    """Rule 2: roles and collections have their own a."""
    one, two = Both(tmp_path, "compact", 16), Both(tmp_path, "compact", 16)
    stacks = [one.client._index_public, one.client._query_public, two.client._index_public, two.client._query_public]
    for i, a in enumerate(stacks):
        for b in stacks[i + 1 :]:
            assert (a == b).mean() < 1e-3


def test_ciphertexts_are_uniform(tmp_path: Path) -> None:
    """Index and query residues of extreme messages: flat over 64 bins (chi-square), for each prime."""
    both = Both(tmp_path, "precise", 64)
    p: Parameters = both.parameters
    encrypted, _, _ = both.setup(np.tile(np.eye(64)[:1], (p.rows_per_block * 2, 1)))
    query = both.client.query(np.eye(64)[0])
    for raw in (encrypted.index, query.ciphertext):
        words = np.frombuffer(raw, "<u4").reshape(-1, len(p.ring.primes), p.block_words // len(p.ring.primes))
        for j, q in enumerate(p.ring.primes):
            counts = np.bincount((words[:, j].astype(np.int64) * 64 // q).ravel(), minlength=64)
            expected = counts.sum() / 64
            chi_square = float(((counts - expected) ** 2 / expected).sum())
            assert chi_square < 63 + 6 * np.sqrt(2 * 63)


def test_a_segment_counts_once(tmp_path: Path, rng: np.random.Generator) -> None:
    """Named twice it would have equal weights twice, and +δ on one with −δ on the other would pass."""
    both = Both(tmp_path, "compact", 16)
    _, segment, index = both.setup(unit_rows(rng, 5, 16))
    query = both.client.query(unit_rows(rng, 1, 16)[0])
    answer = both.answer(query, index)
    with pytest.raises(SecretReuseError, match="twice"):
        both.client.recover(query, [segment, segment], [answer, answer])


def test_a_query_recovers_for_its_own_collection_only(tmp_path: Path, rng: np.random.Generator) -> None:
    one, two = Both(tmp_path, "exact", 16), Both(tmp_path, "exact", 16)
    _, segment, index = two.setup(unit_rows(rng, 5, 16))
    query = one.client.query(unit_rows(rng, 1, 16)[0])
    with pytest.raises(SecretReuseError, match="another collection"):
        two.client.recover(query, [segment], [two.answer(query, index)])


def test_descriptions_of_encrypted_rows_hide_secrets(tmp_path: Path, rng: np.random.Generator) -> None:
    encrypted = Both(tmp_path, "compact", 16).client.setup(unit_rows(rng, 5, 16))
    assert repr(encrypted) == "EncryptedRows(rows=5, blocks=1)"

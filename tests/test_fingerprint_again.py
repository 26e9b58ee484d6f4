"""A new fingerprint of ciphertexts that are stored already: the right sums, fresh weights, and nothing else changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine import verify
from he_engine.engine import EncryptedRows, IndexFile
from he_engine.errors import TamperedAnswerError, TamperedDataError
from he_engine.hint_client import HintSegment
from he_engine.hint_rows import RowCipher
from he_engine.keys import RootKey
from he_engine.params import Parameters
from tests.conftest import unit_rows
from tests.engine_fixture import Both
from tests.lying_fixture import forbid_decryption
from tests.malicious.forging import unseen_by

LAYOUTS = [("exact", 64, None), ("exact", 7, 1), ("compact", 100, 8), ("compact", 33, 128), ("precise", 64, 16)]


def renewed(both: Both, encrypted: EncryptedRows) -> tuple[EncryptedRows, HintSegment]:
    again = both.client.fingerprint_again(both.client.load(encrypted), encrypted.index)
    changed = replace(encrypted, fingerprint=again)
    return changed, both.client.load(changed)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("profile", "dim", "stride"), LAYOUTS)
def test_the_sums_are_those_of_encryption(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    dim: int,
    stride: int | None,
    threads: int,
) -> None:
    """With the same salt, it is the fingerprint that the kernel made while it encrypted, byte for byte."""
    both = Both(tmp_path, profile, dim, stride)
    both.client._cipher._threads = threads
    for count in (1, 9 * both.parameters.rows_per_block + 1):
        encrypted, segment, _ = both.setup(unit_rows(rng, count, dim))
        with monkeypatch.context() as patched:
            patched.setattr(RootKey, "hedged_seed", lambda *_, salt=segment.fingerprint.salt: salt)
            assert both.client.fingerprint_again(segment, encrypted.index) == encrypted.fingerprint
        assert renewed(both, encrypted)[0].fingerprint[:32] != encrypted.fingerprint[:32]


@pytest.mark.parametrize("profile", ["exact", "compact"])
def test_sums_of_extremes(rng: np.random.Generator, profile: str) -> None:
    """Against Python's integers, with 0, 1 and q − 1 in every place."""
    p = Parameters.choose(profile, 16, 128)
    primes = p.ring.primes
    stack = (len(primes), p.ring.degree // 16, p.planes, 16)
    edges = np.array([[0, 1, q - 1] for q in primes], np.uint32)
    blocks = np.stack([edges[i][rng.integers(3, size=(3, *stack[1:]))] for i in range(len(primes))], axis=1)
    blocks[0] = edges[:, 2].reshape(-1, 1, 1, 1)
    w = np.stack([edges[i][rng.integers(3, size=(3, verify.CHECKS, p.rows_per_block))] for i in range(len(primes))], 2)
    w[0] = edges[:, 2].reshape(1, -1, 1)
    found = verify.sums_of(blocks, w, p)
    for _ in range(300):
        c, i, t, plane, lane = (int(rng.integers(n)) for n in (verify.CHECKS, *stack))
        slot = (16 * t + lane) // p.stride
        expected = sum(int(blocks[k, i, t, plane, lane]) * int(w[k, c, i, slot]) for k in range(3)) % primes[i]
        assert int(found[c, i, t, plane, lane]) == expected


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_answers_verify_and_scores_stay_to_the_bit(tmp_path: Path, rng: np.random.Generator, profile: str) -> None:
    both = Both(tmp_path, profile, 64, 16)
    encrypted, segment, index = both.setup(unit_rows(rng, 700, 64))
    other, another = both.setup(unit_rows(rng, 100, 64))[1:]
    query = both.client.query(unit_rows(rng, 1, 64)[0])
    answers = [both.answer(query, index), both.answer(query, another)]
    want = both.client.recover(query, [segment, other], answers)
    for _ in range(3):
        encrypted, segment = renewed(both, encrypted)
        for mine, theirs in zip(both.client.recover(query, [segment, other], answers), want, strict=True):
            assert mine.tobytes() == theirs.tobytes()


def with_leaked_sums(both: Both, segment: HintSegment, index: IndexFile, query: Any) -> bytes:
    """An answer to c + γ, where the fingerprint does not see γ."""
    p = both.parameters
    words = np.frombuffer(query.ciphertext, "<u4").reshape(len(p.ring.primes), -1).copy()
    change = unseen_by(segment.fingerprint.sums.reshape(verify.CHECKS, len(p.ring.primes), -1)[:, 0], p.ring.primes[0])
    for slot, value in enumerate(change):
        words[0, slot] = (int(words[0, slot]) + value) % p.ring.primes[0]
    return both.server.answer(index, 0, index.blocks, [words.tobytes()])[0]


def with_leaked_weights(both: Both, segment: HintSegment, index: IndexFile, query: Any) -> bytes:
    """The honest answer + δ, where the weights do not see δ."""
    p, client = both.parameters, both.client
    salt = segment.fingerprint.salt
    w = verify.weights(client._key, client._kernel, p, client._id, segment.seed, salt, 0, 1)
    shape = index.blocks, len(p.ring.primes), p.rows_per_block
    words = np.frombuffer(both.answer(query, index), "<u4").reshape(shape).copy()
    for slot, value in enumerate(unseen_by(w[0, :, 0], p.ring.primes[0])):
        words[0, 0, slot] = (int(words[0, 0, slot]) + value) % p.ring.primes[0]
    return words.tobytes()


@pytest.mark.parametrize("forge", [with_leaked_sums, with_leaked_weights])
def test_what_was_forged_with_the_old_one_is_rejected(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, forge: Any
) -> None:
    """Until then it passes: only a score that is none, after decryption, may give it away."""
    both = Both(tmp_path, "exact", 7, 1)
    encrypted, segment, index = both.setup(unit_rows(rng, 20, 7))
    query = both.client.query(unit_rows(rng, 1, 7)[0])
    forged = forge(both, segment, index, query)
    assert forged != both.answer(query, index)
    try:
        both.client.recover(query, [segment], [forged])
    except TamperedAnswerError as error:
        assert "outside the bound" in str(error)
    _, again = renewed(both, encrypted)
    forbid_decryption(monkeypatch)
    with pytest.raises(TamperedAnswerError, match="fail verification"):
        both.client.recover(query, [again], [forged])
    with pytest.raises(TamperedAnswerError, match="fail verification"):
        both.client.recover(query, [again], [forge(both, segment, index, query)])


def test_weights_are_others_whatever_the_generator_does(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old salt enters the new one: a chain of rebuilds repeats no salt, nor do two segments share one."""
    monkeypatch.setattr(os, "urandom", bytes)
    both = Both(tmp_path, "compact", 16)
    salts = set()
    for first in (0, 10):
        encrypted, segment, _ = both.setup(unit_rows(rng, 20, 16)[first : first + 10])
        salts.add(segment.fingerprint.salt)
        for _ in range(20):
            encrypted, segment = renewed(both, encrypted)
            salts.add(segment.fingerprint.salt)
    assert len(salts) == 42


def test_nothing_is_encrypted_or_decrypted(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block secret is derived: no value that could hide rows twice exists in the call."""
    both = Both(tmp_path, "compact", 16)
    encrypted, segment, _ = both.setup(unit_rows(rng, 20, 16))

    def never(*_: Any) -> Any:
        raise AssertionError("a secret of encryption was derived")

    for name in ("block_secrets", "_noise", "encrypt", "decrypt"):
        monkeypatch.setattr(RowCipher, name, never)
    both.client.fingerprint_again(segment, encrypted.index)


def test_bytes_that_are_no_index_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    both = Both(tmp_path, "compact", 16)
    encrypted, segment, _ = both.setup(unit_rows(rng, 300, 16))
    index = bytes(encrypted.index)
    largest = both.parameters.ring.primes[0].to_bytes(4, "little")
    for wrong in (b"", index[:-1], index[:-4], index + bytes(4), largest + index[4:], index[:-4] + largest):
        with pytest.raises(TamperedDataError, match="index"):
            both.client.fingerprint_again(segment, wrong)

"""Keys and sealing: derivations are separate, seals open only as sealed, secrets refuse to be copied."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from he_engine.errors import InvalidInput, SecretReuseError, TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_engine.params import RINGS, Profile
from he_engine.public import expand_public, keystream
from he_engine.sealing import OVERHEAD_BYTES, seal, seal_records, unseal, unseal_record

KEY = RootKey(bytes(range(32)))


def test_length_prefixed_is_injective() -> None:
    assert length_prefixed(b"ab", b"c") != length_prefixed(b"a", b"bc")
    assert length_prefixed(b"", b"a") != length_prefixed(b"a", b"")
    assert length_prefixed(1, b"") != length_prefixed(b"", 1)


def test_derivations_differ_by_label_and_context() -> None:
    derived = {KEY.derive("a"), KEY.derive("b"), KEY.derive("a", b""), KEY.derive("a", b"b"), KEY.derive("ab")}
    assert len(derived) == 5
    assert KEY.derive("a") == RootKey(bytes(range(32))).derive("a")


def test_seal_round_trip_and_every_mismatch() -> None:
    sealed = seal(KEY, "rows", b"here", b"content")
    assert len(sealed) == len(b"content") + OVERHEAD_BYTES
    assert unseal(KEY, "rows", b"here", sealed) == b"content"
    for key, purpose, aad in ((RootKey(bytes(32)), "rows", b"here"), (KEY, "row", b"here"), (KEY, "rows", b"there")):
        with pytest.raises(TamperedDataError):
            unseal(key, purpose, aad, sealed)
    for position in range(len(sealed)):
        bad = bytearray(sealed)
        bad[position] ^= 1
        with pytest.raises(TamperedDataError):
            unseal(KEY, "rows", b"here", bad)
    for length in range(len(sealed)):
        with pytest.raises(TamperedDataError):
            unseal(KEY, "rows", b"here", sealed[:length])


def test_a_repeated_generator_state_does_not_repeat_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a snapshot the random bytes repeat: different plaintexts must still get different salts, so keys."""
    monkeypatch.setattr(os, "urandom", bytes)
    one, two = seal(KEY, "rows", b"", b"one"), seal(KEY, "rows", b"", b"two")
    assert one[:32] != two[:32]
    assert seal(KEY, "rows", b"", b"one") == one


def test_records_are_bound_to_number_and_column() -> None:
    salt, records = seal_records(KEY, "payloads", b"collection", [b"zero", None, b"two"])
    assert records[1] == b""
    assert unseal_record(KEY, "payloads", b"collection", salt, 0, records[0]) == b"zero"
    for aad, column, number in ((b"collection", salt, 1), (b"other", salt, 0), (b"collection", bytes(32), 0)):
        with pytest.raises(TamperedDataError, match=f"record {number}"):
            unseal_record(KEY, "payloads", aad, column, number, records[0])


def test_two_columns_never_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    assert seal_records(KEY, "payloads", b"", [b"a"])[0] != seal_records(KEY, "payloads", b"", [b"b"])[0]


@pytest.mark.parametrize("action", [pickle.dumps, copy.copy, copy.deepcopy])
def test_keys_refuse_copies(action: object) -> None:
    with pytest.raises(SecretReuseError):
        action(KEY)  # type: ignore[operator]


def test_key_hides_itself_and_closes() -> None:
    key = RootKey(b"s" * 32)
    assert repr(key) == str(key) == "<RootKey>"
    assert key != RootKey(b"s" * 32), "identity comparison only"
    key.close()
    with pytest.raises(SecretReuseError):
        key.derive("x")
    with pytest.raises(InvalidInput, match="got 3 bytes"):
        RootKey(b"abc")


def test_keystream_is_aes_ctr() -> None:
    reference = Cipher(AES(b"k" * 32), CTR(bytes(16))).encryptor().update(bytes(800))
    assert keystream(b"k" * 32, 100).tobytes() == reference
    assert keystream(b"k" * 32, 40, 60).tobytes() == reference[480:]


def test_public_polynomials_depend_on_everything_that_names_them() -> None:
    ring = RINGS[Profile.EXACT]
    base = expand_public(b"n" * 32, 0, "index", ring, 2)
    assert base.shape == (2, 256, 2, 16)
    for p, q in enumerate(ring.primes):
        assert base[p].max() < q
    others = [
        expand_public(b"m" * 32, 0, "index", ring, 2),
        expand_public(b"n" * 32, 1, "index", ring, 2),
        expand_public(b"n" * 32, 0, "query", ring, 2),
    ]
    for other in others:
        assert np.mean(other == base) < 1e-3
    assert np.mean(base[0] == base[1]) < 1e-3, "the two primes have independent polynomials"
    assert np.mean(base[:, :, 0] == base[:, :, 1]) < 1e-3, "so have the planes"
    assert np.array_equal(expand_public(b"n" * 32, 0, "index", ring, 3)[:, :, :2], base)

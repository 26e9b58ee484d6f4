"""Pseudonyms, format-preserving ones and salted hashes: equal where they must be, unrelated where they must not."""

from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
import string
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from he_client import FormatVersionError, InvalidInput, SecretReuseError, WrongKeyError
from he_client.protect.text import IdCipher, PseudonymKey, Pseudonyms, SaltedHash, VaultKey, collision_bound
from he_client.protect.text.values import LETTERS, as_letters, normalised
from he_engine.keys import length_prefixed

KEY = PseudonymKey(bytes(range(32)))


def hkdf_expand(root: bytes, info: bytes) -> bytes:
    """The first block of RFC 5869, section 2.3."""
    return hmac.new(root, info + b"\1", hashlib.sha256).digest()


def test_a_pseudonym_is_an_hmac_under_the_key_of_its_field() -> None:
    derived = hkdf_expand(bytes(range(32)), length_prefixed("hesearch 1", "pseudonym", b"mrn"))
    expected = hmac.new(derived, b"ab-12 34", hashlib.sha256).hexdigest()
    letters = "".join(LETTERS[int(digit, 16)] for digit in expected)
    assert Pseudonyms(KEY, "mrn", 64).of(" AB-12   34") == letters
    assert Pseudonyms(KEY, "mrn").of("ab-12 34") == letters[:20]
    assert Pseudonyms(KEY, "mrn").in_text("MRN", "ab-12 34") == f"[MRN#{letters[:20]}]"


def test_keys_and_fields_separate() -> None:
    ciphers = [Pseudonyms(KEY, "mrn"), Pseudonyms(KEY, "phone"), Pseudonyms(PseudonymKey(bytes(32)), "mrn")]
    assert len({pseudonyms.of("12345678") for pseudonyms in ciphers}) == 3
    ids = [IdCipher(KEY, "mrn"), IdCipher(KEY, "case"), IdCipher(PseudonymKey(bytes(32)), "mrn")]
    assert len({cipher.of("1234567890123456") for cipher in ids}) == 3
    assert len({cipher.of(f"{prefix}1234567890") for cipher in ids[:1] for prefix in ("", "A-", "B-")}) == 3


@given(st.text(min_size=1))
def test_normalising_is_idempotent_and_is_all_that_counts(value: str) -> None:
    try:
        once = normalised(value)
    except InvalidInput:
        assert not value.split()
        return
    pseudonyms = Pseudonyms(KEY, "f")
    assert normalised(once) == once
    assert pseudonyms.of(value) == pseudonyms.of(once) == pseudonyms.of(f" {value}\t")


def test_what_is_one_identifier_and_what_are_two() -> None:
    of = Pseudonyms(KEY, "name").of
    assert of("Müller") == of("MÜLLER") == of("Mu\u0308ller") and of("ＡＢ１２") == of("ab12")
    assert len({of(value) for value in ("12-34", "1234", "12 34", "Muller", "Müller")}) == 5


@pytest.mark.parametrize("empty", ["", " ", "\n\t\u3000"])
def test_an_empty_identifier_is_none(empty: str) -> None:
    for how in (Pseudonyms(KEY, "f"), SaltedHash.generate("f"), IdCipher(KEY, "f")):
        with pytest.raises(InvalidInput):
            how.of(empty)


@pytest.mark.parametrize("field", ["", "a b", "ä", ".x", "x" * 65])
def test_fields_have_plain_names(field: str) -> None:
    for make in (lambda: Pseudonyms(KEY, field), lambda: IdCipher(KEY, field), lambda: SaltedHash(bytes(16), field)):
        with pytest.raises(InvalidInput, match="field"):
            make()


def test_lengths() -> None:
    assert [len(Pseudonyms(KEY, "f", n).of("x")) for n in (12, 20, 64)] == [12, 20, 64]
    for letters in (11, 65):
        with pytest.raises(InvalidInput, match="12 to 64"):
            Pseudonyms(KEY, "f", letters)
        with pytest.raises(InvalidInput, match="12 to 64"):
            SaltedHash(bytes(16), "f", letters)


def test_collisions_are_as_rare_as_the_bound_says() -> None:
    assert collision_bound(0) == collision_bound(1) == 0
    assert collision_bound(2, 12) == 2**-48
    assert collision_bound(10**6) == pytest.approx(4.1e-13, rel=0.02)
    assert collision_bound(10**9, 12) == 1
    of, n = Pseudonyms(KEY, "f").of, 20_000
    every = [of(str(i)) for i in range(n)]
    assert len(set(every)) == n, "at 80 bits: fails once in 10^16 runs"
    pairs = n * (n - 1) / 2 / 16**6  # 11.9 expected at 24 bits; 6 standard deviations on either side
    assert abs(n - len({pseudonym[:6] for pseudonym in every}) - pairs) < 6 * pairs**0.5


# ---- format-preserving -----------------------------------------------------------------------------------
@given(st.text("0123456789-AB ", min_size=6, max_size=40))
def test_the_format_stays_and_the_key_inverts(value: str) -> None:
    cipher = IdCipher(KEY, "mrn")
    if sum(c.isdigit() for c in value) < 6:
        with pytest.raises(InvalidInput, match="expected 1000000"):
            cipher.of(value)
        return
    pseudonym = cipher.of(value)
    assert ["0" if c.isdigit() else c for c in pseudonym] == ["0" if c.isdigit() else c for c in value]
    assert cipher.invert(pseudonym) == value


def test_no_two_ids_share_one() -> None:
    cipher = IdCipher(KEY, "mrn")
    assert len({cipher.of(f"{i:06}") for i in range(5000)}) == 5000


def test_other_alphabets() -> None:
    cipher = IdCipher(KEY, "id", string.ascii_uppercase + string.digits)
    pseudonym = cipher.of("AB-1234/x")
    assert pseudonym[2] == "-" and pseudonym[-2:] == "/x" and cipher.invert(pseudonym) == "AB-1234/x"
    for alphabet in ("", "a", "aba"):
        with pytest.raises(InvalidInput, match="alphabet"):
            IdCipher(KEY, "id", alphabet)


# ---- salted hashes ---------------------------------------------------------------------------------------
def test_a_salted_hash_is_argon2id_of_the_salt() -> None:
    ours = SaltedHash(bytes(range(16)), "mrn")
    derived = Argon2id(salt=ours.salt, length=32, iterations=3, lanes=4, memory_cost=65536).derive(
        length_prefixed("salted hash", "mrn", b"ab-12")
    )
    assert ours.of(" AB-12 ") == as_letters(derived)[:20]
    others = (SaltedHash(bytes(16), "mrn"), SaltedHash(ours.salt, "case"))
    assert all(other.of("AB-12") != ours.of("AB-12") for other in others)
    with pytest.raises(InvalidInput, match="16 or more"):
        SaltedHash(bytes(15), "mrn")
    assert SaltedHash.generate("mrn").salt != SaltedHash.generate("mrn").salt


# ---- secrets ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secrets_are_not_copied_or_shown(action: object) -> None:
    for secret in (KEY, Pseudonyms(KEY, "mrn"), IdCipher(KEY, "mrn")):
        with pytest.raises(SecretReuseError):
            action(secret)  # type: ignore[operator]
        assert repr(secret) == f"<{type(secret).__name__}>"


def test_a_closed_key_makes_no_more() -> None:
    key = PseudonymKey.generate()
    key.close()
    for make in (Pseudonyms, IdCipher):
        with pytest.raises(SecretReuseError):
            make(key, "mrn")


def test_key_files_are_of_their_kind(tmp_path: Path) -> None:
    KEY.save(tmp_path / "p.key", "words")
    assert Pseudonyms(PseudonymKey.load(tmp_path / "p.key", "words"), "f").of("x") == Pseudonyms(KEY, "f").of("x")
    with pytest.raises(WrongKeyError):
        PseudonymKey.load(tmp_path / "p.key", "other words")
    with pytest.raises(FormatVersionError, match="hesearch vault key"):
        VaultKey.load(tmp_path / "p.key", "words")

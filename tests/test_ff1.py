"""FF1 against NIST's samples, and as what it is: a permutation of the strings of one length, for each tweak."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_client import InvalidInput
from he_client.protect.text.ff1 import FF1, MAX_LENGTH

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
KEY = bytes.fromhex("2B7E151628AED2A6ABF7158809CF4F3CEF4359D8D580AA4F7F036D6F04FC6A94")
NONE, TEN, ELEVEN = b"", bytes.fromhex("39383736353433323130"), bytes.fromhex("3737373770717273373737")
DIGITS, LONG = "0123456789", "0123456789abcdefghi"
#: NIST, Block Cipher Modes examples, "FF1 Samples" 1 to 9: (key bytes, radix, tweak, plaintext, ciphertext).
SAMPLES = [
    (16, 10, NONE, DIGITS, "2433477484"),
    (16, 10, TEN, DIGITS, "6124200773"),
    (16, 36, ELEVEN, LONG, "a9tv40mll9kdu509eum"),
    (24, 10, NONE, DIGITS, "2830668132"),
    (24, 10, TEN, DIGITS, "2496655549"),
    (24, 36, ELEVEN, LONG, "xbj3kv35jrawxv32ysr"),
    (32, 10, NONE, DIGITS, "6657667009"),
    (32, 10, TEN, DIGITS, "1001623463"),
    (32, 36, ELEVEN, LONG, "xs8a0azh2avyalyzuwd"),
]


@pytest.mark.parametrize(("key_bytes", "radix", "tweak", "plain", "encrypted"), SAMPLES)
def test_samples_of_nist(key_bytes: int, radix: int, tweak: bytes, plain: str, encrypted: str) -> None:
    ff1 = FF1(KEY[:key_bytes], radix)
    numerals = [CHARACTERS.index(c) for c in plain]
    assert "".join(CHARACTERS[n] for n in ff1.encrypt(numerals, tweak)) == encrypted
    assert ff1.decrypt([CHARACTERS.index(c) for c in encrypted], tweak) == numerals


@st.composite
def strings(draw: st.DrawFn) -> tuple[int, list[int], bytes]:
    radix = draw(st.sampled_from([2, 3, 10, 36, 255, 256, 257, 65536]))
    shortest = next(n for n in range(1, 21) if radix**n >= 10**6)
    numeral = st.one_of(st.sampled_from([0, radix - 1]), st.integers(0, radix - 1))
    return radix, draw(st.lists(numeral, min_size=shortest, max_size=200)), draw(st.binary(max_size=40))


@given(strings(), st.sampled_from([16, 24, 32]))
def test_decryption_inverts_encryption(given_: tuple[int, list[int], bytes], key_bytes: int) -> None:
    radix, numerals, tweak = given_
    ff1 = FF1(KEY[:key_bytes], radix)
    encrypted = ff1.encrypt(numerals, tweak)
    assert len(encrypted) == len(numerals) and all(0 <= n < radix for n in encrypted)
    assert ff1.decrypt(encrypted, tweak) == numerals
    assert ff1.encrypt(ff1.decrypt(numerals, tweak), tweak) == numerals


def test_tweaks_and_keys_give_other_permutations() -> None:
    numerals = list(range(10))
    ciphers = [(FF1(KEY, 10), b""), (FF1(KEY, 10), b"\0"), (FF1(KEY[::-1], 10), b""), (FF1(KEY, 11), b"")]
    assert len({tuple(ff1.encrypt(numerals, tweak)) for ff1, tweak in ciphers}) == 4


@pytest.mark.parametrize(
    ("radix", "numerals"), [(10, [0] * 5), (2, [1] * 19), (1000, [0]), (10, []), (10, [0] * (MAX_LENGTH + 1)),
                            (10, [0] * 5 + [10]), (10, [-1] + [0] * 5)],
)  # fmt: skip
def test_what_is_refused(radix: int, numerals: list[int]) -> None:
    for function in (FF1(KEY, radix).encrypt, FF1(KEY, radix).decrypt):
        with pytest.raises(InvalidInput, match="expected"):
            function(numerals, b"")


@pytest.mark.parametrize("radix", [0, 1, 65537])
def test_radixes_that_are_none(radix: int) -> None:
    with pytest.raises(InvalidInput, match="2 to 65536"):
        FF1(KEY, radix)

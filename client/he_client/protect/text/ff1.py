"""FF1: format-preserving encryption over AES (NIST SP 800-38G Rev. 1, algorithms 7 and 8).

Ten Feistel rounds over strings of n numerals in [0, radix). It is here because what libraries offer to Python is young,
or FF3-1, which NIST has withdrawn; tests have NIST's samples. The deviation: n is at most 1024.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from he_engine.errors import InvalidInput
from he_engine.keys import Secret

MIN_DOMAIN = 10**6  #: strings of one length: with fewer, the attacks on small domains that NIST names are practical
MAX_LENGTH = 1024
MAX_RADIX = 1 << 16
_ROUNDS = range(10)


class FF1(Secret):
    """One permutation of the strings of each length, for each tweak."""

    __slots__ = ("_cipher", "_radix")

    def __init__(self, key: bytes, radix: int) -> None:
        """key: 16, 24 or 32 bytes. radix: 2 to 65536."""
        if not 2 <= radix <= MAX_RADIX:
            raise InvalidInput(f"radix: got {radix}, expected 2 to {MAX_RADIX}")
        self._cipher = Cipher(
            AES(key), ECB()
        )  # the raw block cipher, which CBC-MAC and the expansion below are made of
        self._radix = radix

    def encrypt(self, numerals: Sequence[int], tweak: bytes) -> list[int]:
        """As many numerals. Raises InvalidInput where radix^n < 10^6 or n > 1024, or for a numeral out of range."""
        a, b, u, v = self._halves(numerals)
        rounds = self._rounds(u, v, tweak)
        for i in _ROUNDS:
            modulus = self._radix ** (v if i % 2 else u)
            a, b = b, (a + rounds(i, b)) % modulus
        return [*self._string(a, u), *self._string(b, v)]

    def decrypt(self, numerals: Sequence[int], tweak: bytes) -> list[int]:
        """What `encrypt` was given. Raises as it does."""
        a, b, u, v = self._halves(numerals)
        rounds = self._rounds(u, v, tweak)
        for i in reversed(_ROUNDS):
            modulus = self._radix ** (v if i % 2 else u)
            a, b = (b - rounds(i, a)) % modulus, a
        return [*self._string(a, u), *self._string(b, v)]

    def _halves(self, numerals: Sequence[int]) -> tuple[int, int, int, int]:
        """NUM of both halves, and their lengths."""
        n = len(numerals)
        if n > MAX_LENGTH or self._radix**n < MIN_DOMAIN:
            raise InvalidInput(
                f"FF1: got {n} characters of {self._radix}, expected {MIN_DOMAIN} possible strings or more"
            )
        if not all(0 <= numeral < self._radix for numeral in numerals):
            raise InvalidInput(f"FF1: got a numeral out of range, expected 0 to {self._radix - 1}")
        u = n // 2
        return self._number(numerals[:u]), self._number(numerals[u:]), u, n - u

    def _rounds(self, u: int, v: int, tweak: bytes) -> _Rounds:
        return _Rounds(self._cipher, self._radix, u, v, tweak)

    def _number(self, numerals: Sequence[int]) -> int:
        number = 0
        for numeral in numerals:
            number = number * self._radix + numeral
        return number

    def _string(self, number: int, length: int) -> list[int]:
        numerals = [0] * length
        for at in reversed(range(length)):
            number, numerals[at] = divmod(number, self._radix)
        return numerals


class _Rounds:
    """y of round i, from NUM(B): steps 6.i to 6.iv."""

    __slots__ = ("_bytes", "_d", "_encrypt", "_first", "_tweak")

    def __init__(self, cipher: Cipher[ECB], radix: int, u: int, v: int, tweak: bytes) -> None:
        self._encrypt = cipher.encryptor().update  # one for each call: threads must not share it
        self._bytes = ((radix**v - 1).bit_length() + 7) // 8  # b = ⌈⌈v·log2(radix)⌉ / 8⌉, in integers
        self._d = 4 * ((self._bytes + 3) // 4) + 4
        p = b"\x01\x02\x01" + radix.to_bytes(3, "big") + b"\x0a" + bytes([u % 256])
        self._first = self._encrypt(p + (u + v).to_bytes(4, "big") + len(tweak).to_bytes(4, "big"))
        self._tweak = tweak + bytes(-(len(tweak) + self._bytes + 1) % 16)

    def __call__(self, i: int, number: int) -> int:
        q = self._tweak + bytes([i]) + number.to_bytes(self._bytes, "big")
        r = self._first
        for at in range(0, len(q), 16):
            r = self._encrypt(_xor(r, q[at : at + 16]))
        s = r
        for j in range(1, (self._d + 15) // 16):
            s += self._encrypt(_xor(r, j.to_bytes(16, "big")))
        return int.from_bytes(s[: self._d], "big")


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(16, "big")

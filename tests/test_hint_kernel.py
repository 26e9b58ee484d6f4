"""Stored hints: packing against its oracle, the bound on what rounding changes, and which bytes are accepted."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.kernels._client import ClientKernel, targets
from he_engine.kernels.naive import NaiveKernel
from he_engine.params import RINGS, Profile, Ring
from tests.test_kernels import ring, wrong_versions

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
BITS = {1: 31, 2: 62}
EVERY = [(primes, b) for primes in (1, 2) for b in range(BITS[primes])]


def made(r: Ring, target: str) -> Any:
    shape = (r.log_n, r.primes, r.roots, 1, 1)
    return NaiveKernel(*shape) if target == "naive" else ClientKernel(*shape, target)


def edges(q: int, b: int) -> list[int]:
    """Coefficients in [0, q): the ends, multiples of 2^κ, ties, and their neighbours; the last multiple and above."""
    last = (q - 1) >> b
    centres = [0, q - 1] + [m << b for m in {1, 2, last // 2, last - 1, last, last + 1} if m >= 0]
    centres += [c + (1 << b >> 1) for c in centres]
    return sorted({c + d for c in centres for d in (-1, 0, 1) if 0 <= c + d < q})


def polys(r: Ring, coefficients: list[int]) -> U32:
    """(K, P, N) residues, as many blocks as it takes, random coefficients at the end."""
    n, rng = r.degree, np.random.default_rng(len(coefficients))
    more = -len(coefficients) % n
    coefficients = coefficients + [int(rng.integers(0, r.modulus)) for _ in range(more)]
    columns = [np.array([c % q for c in coefficients], np.uint32).reshape(-1, n) for q in r.primes]
    return np.ascontiguousarray(np.stack(columns, axis=1))


def integers(r: Ring, residues: U32) -> list[int]:
    """The inverse of `polys`, by CRT."""
    rests = [r.modulus // q for q in r.primes]
    factors = [rest * pow(rest, -1, q) for rest, q in zip(rests, r.primes, strict=True)]
    columns = [residues[:, p].reshape(-1).tolist() for p in range(len(r.primes))]
    return [sum(v * f for v, f in zip(row, factors, strict=True)) % r.modulus for row in zip(*columns, strict=True)]


def distance(r: Ring, got: list[int], want: list[int]) -> int:
    """The largest |got − want| modulo q."""
    return max(min((g - w) % r.modulus, (w - g) % r.modulus) for g, w in zip(got, want, strict=True))


def stored(packed: U8, width: int) -> list[int]:
    """The values of packed blocks, read in the order of bits."""
    bits = [int.from_bytes(row.tobytes(), "little") for row in packed]
    return [row >> at & (1 << width) - 1 for row in bits for at in range(0, 8 * packed.shape[1], width)]


def packed_from(values: list[int], n: int, width: int) -> U8:
    rows = [values[at : at + n] for at in range(0, len(values), n)]
    raw = [sum(v << j * width for j, v in enumerate(row)).to_bytes(n * width // 8, "little") for row in rows]
    return np.frombuffer(b"".join(raw), np.uint8).reshape(len(rows), -1)


@pytest.mark.parametrize(("primes", "b"), EVERY)
def test_packing_is_the_oracle(primes: int, b: int) -> None:
    """Bytes and polynomials, at the edges, for every number of bits; and rounding changes at most 2^(κ−1)."""
    r = ring(primes, 4)
    q, width = r.modulus, BITS[primes] - b
    assert q.bit_length() == BITS[primes]
    coefficients = edges(q, b)
    hint = polys(r, coefficients)
    naive = made(r, "naive")
    naive.forward(hint)
    packed = naive.pack_hint(hint, b)
    unpacked = naive.unpack_hint(packed, b)
    assert packed.shape == (len(hint), r.degree * width // 8)
    want = [(c + (1 << b >> 1)) >> b for c in coefficients]
    assert stored(packed, width)[: len(want)] == [0 if v << b >= q else v for v in want]
    rounded = unpacked.copy()
    naive.inverse(rounded)
    assert distance(r, integers(r, rounded)[: len(want)], coefficients) <= 1 << b >> 1
    for target in targets():
        client = made(r, target)
        before = hint.copy()
        np.testing.assert_array_equal(client.pack_hint(hint, b), packed)
        np.testing.assert_array_equal(client.unpack_hint(packed, b), unpacked)
        np.testing.assert_array_equal(hint, before)
        np.testing.assert_array_equal(client.pack_hint(unpacked, b), packed)
        assert client.pack_hint(hint[:0], b).shape == (0, packed.shape[1])
        assert client.unpack_hint(packed[:0], b).shape == (0, primes, r.degree)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("log_n", [5, 6, 9])
@pytest.mark.parametrize("primes", [1, 2])
def test_packing_of_other_sizes(primes: int, log_n: int, target: str) -> None:
    """Degrees with other tails of the last word; in NumPy alone, by the definition."""
    r = ring(primes, log_n)
    client = made(r, target)
    for b in (0, 1, 3, 4, 5, 6, 13, 28, BITS[primes] - 1):
        if b >= BITS[primes]:
            continue
        hint = polys(r, edges(r.modulus, b))
        coefficients = integers(r, hint)
        client.forward(hint)
        packed = client.pack_hint(hint, b)
        want = [(c + (1 << b >> 1)) >> b for c in coefficients]
        want = [0 if v << b >= r.modulus else v for v in want]
        assert stored(packed, BITS[primes] - b) == want
        unpacked = client.unpack_hint(packed, b)
        client.inverse(unpacked)
        assert integers(r, unpacked) == [v << b for v in want]


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(("profile", "b"), [(Profile.COMPACT, 13), (Profile.EXACT, 28), (Profile.EXACT, 3)])
def test_rounding_on_the_real_rings(profile: Profile, b: int, target: str, rng: np.random.Generator) -> None:
    """|δ| ≤ 2^(κ−1), uniform: variance (4^κ + 2)/12 within 6 %, 5 sigma at 3·2048 coefficients."""
    r = RINGS[profile]
    client = made(r, target)
    hint = np.stack([rng.integers(0, q, (3, r.degree), np.uint32) for q in r.primes], axis=1)
    packed = client.pack_hint(hint, b)
    assert packed.shape == (3, r.degree * (r.modulus.bit_length() - b) // 8)
    rounded = client.unpack_hint(packed, b)
    for k in range(3):
        np.testing.assert_array_equal(client.unpack_hint(packed[k : k + 1], b)[0], rounded[k])
    client.inverse(rounded)
    client.inverse(hint)
    got, want = integers(r, rounded), integers(r, hint)
    assert all(v % (1 << b) == 0 for v in got)
    assert distance(r, got, want) <= 1 << (b - 1)
    delta = np.array([(g - w + r.modulus // 2) % r.modulus - r.modulus // 2 for g, w in zip(got, want, strict=True)])
    assert np.var(delta.astype(np.float64)) == pytest.approx((4**b + 2) / 12, rel=0.06)


@pytest.mark.parametrize(("primes", "b"), EVERY)
def test_every_packed_value_is_accepted_or_refused(primes: int, b: int) -> None:
    """Below ⌈q/2^κ⌉: accepted, and packed again to the same bytes. Any other: ValueError that names its place."""
    r = ring(primes, 4)
    n, width = r.degree, BITS[primes] - b
    limit = -(-r.modulus >> b)
    rng = np.random.default_rng([primes, b])
    good = [int(rng.integers(0, limit)) for _ in range(3 * n - 3)] + [0, limit // 2, limit - 1]
    for target in [*targets(), "naive"] if b % 8 == 0 else targets():
        client = made(r, target)
        packed = packed_from(good, n, width)
        np.testing.assert_array_equal(client.pack_hint(client.unpack_hint(packed, b), b), packed)
        for value in {limit, (1 << width) - 1}:
            if value >= 1 << width or value < limit:
                continue  # every value of w bits is canonical
            for place in (0, n - 1, n, 3 * n - 1):
                bad = [*good]
                bad[place] = bad[-1] = value
                want = re.escape(f"packed: value {place} is not canonical (expected < {limit})")
                with pytest.raises(ValueError, match=want):
                    client.unpack_hint(packed_from(bad, n, width), b)


@pytest.mark.parametrize("method", ["pack_hint", "unpack_hint"])
def test_wrong_arguments_are_refused(method: str) -> None:
    r = ring(2, 5)
    client = made(r, "")
    hint = polys(r, edges(r.modulus, 9) * 3)
    call = getattr(client, method)
    argument = hint if method == "pack_hint" else client.pack_hint(hint, 9)
    same = set() if method == "pack_hint" else {"unaligned", "byte-swapped"}  # bytes have neither
    name = "hint" if method == "pack_hint" else "packed"
    for what, wrong in wrong_versions(argument, False).items():
        if what not in same:
            with pytest.raises((TypeError, ValueError), match=rf"{name}: |incompatible function arguments"):
                call(wrong, 9)
    for bits in (-1, 62, 63, 64, 2**31, -(2**40)):
        with pytest.raises(ValueError, match=r"drop_bits: got -?\d+, expected 0 to 61"):
            call(argument, bits)
    with pytest.raises(TypeError):
        call(argument, 9.5)
    small = ring(1, 4)
    three = ClientKernel(4, small.primes * 3, small.roots * 3, 1, 1)
    with pytest.raises(ValueError, match="primes: got 3, expected one or two"):
        getattr(three, method)(np.zeros((1, 3, 16), np.uint32), 9)

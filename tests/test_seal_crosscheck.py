"""The hint engine's arithmetic, checked by Microsoft SEAL's: its parser, decryptor, encoder and evaluator.

A textbook ciphertext of ours, (c0, c1) = (b, −a) with b = a·s + e + v, is handed to SEAL in SEAL's own format with
SEAL's own form of the key s. Both sides put NTT slots in bit-reversed order and take the smallest primitive 2N-th
root of unity, so residues must agree exactly, and the decoded slots as far as floating point goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_engine.kernels.naive import TILE, NaiveKernel, bit_reverse
from he_engine.params import RINGS, Profile, Ring

pytest.importorskip("tenseal")

from he_engine.tenseal_ring import SealRing, sealapi

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
SPECIAL_PRIME = 2147295233  #: ≡ 1 mod 8192; SEAL sets the last of several primes aside for key switching


def evaluate(poly: I64, root: int, q: int) -> I64:
    """Slot j: the value at root^(2·brv(j) + 1), by the definition, O(N²)."""
    n = len(poly)
    powers = np.ones(2 * n, np.int64)
    for k in range(1, 2 * n):
        powers[k] = powers[k - 1] * root % q
    exponents = np.arange(n)
    odd = [2 * bit_reverse(j, n.bit_length() - 1) + 1 for j in range(n)]
    return np.array([int((poly % q * powers[o * exponents % (2 * n)] % q).sum()) % q for o in odd], np.int64)


def smallest_root(order: int, q: int) -> int:
    """The smallest primitive `order`-th root of unity mod q (a power of two)."""
    root = next(r for g in range(2, q) if pow(r := pow(g, (q - 1) // order, q), order // 2, q) == q - 1)
    square = root * root % q
    smallest = root
    for _ in range(order // 2):
        root = root * square % q
        smallest = min(smallest, root)
    return smallest


class Seal:
    """SEAL's view of a ring of ours, with a key of ours."""

    def __init__(self, degree: int, primes: tuple[int, ...], secret: I64) -> None:
        """secret: coefficients in {−1, 0, 1}."""
        self.primes, self.degree = primes, degree
        chain = primes if len(primes) == 1 else (*primes, SPECIAL_PRIME)
        self.ring = SealRing(degree, chain, insecure=True)
        key = np.array([evaluate(secret, smallest_root(2 * degree, q), q) for q in chain], "<u8")
        context = self.ring.context
        self._decryptor = sealapi().Decryptor(context, self.ring.load_secret_key(key.tobytes()))
        self._encoder = sealapi().CKKSEncoder(context)
        self.evaluator = sealapi().Evaluator(context)

    def ciphertext(self, b: NDArray[Any], a: NDArray[Any], scale: float = 1.0) -> Any:
        """(b, −a), each (P, N) residues in the NTT domain."""
        q = np.array(self.primes, np.int64)[:, None]
        both = np.array([b.astype(np.int64), -a.astype(np.int64) % q], "<u8")
        return self.ring.load_ciphertext(both.tobytes(), 2, scale)

    def residues(self, source: Any, polys: int) -> NDArray[np.uint64]:
        """(polys, P, N)."""
        shape = polys, len(self.primes), self.degree
        return np.frombuffer(self.ring.residues(source, polys * len(self.primes) * self.degree), "<u8").reshape(shape)

    def decrypted(self, ciphertext: Any) -> tuple[NDArray[np.uint64], NDArray[np.complex128]]:
        """(residues (P, N), decoded slots (N/2,))."""
        plaintext = sealapi().Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        return self.residues(plaintext, 1)[0], np.array(self._encoder.decode_complex(plaintext))


@pytest.mark.parametrize("profile", [Profile.COMPACT, Profile.EXACT])
def test_special_prime_and_roots(profile: Profile) -> None:
    """The roots in he_engine.params are the smallest: what SEAL computes for itself."""
    ring = RINGS[profile]
    assert sealapi().Modulus(SPECIAL_PRIME).is_prime()
    assert SPECIAL_PRIME % 8192 == 1
    assert SPECIAL_PRIME not in ring.primes
    assert ring.roots == tuple(smallest_root(2 * ring.degree, q) for q in ring.primes)


@pytest.mark.parametrize("profile", [Profile.COMPACT, Profile.EXACT])
def test_seal_decrypts_our_ciphertext(profile: Profile, rng: np.random.Generator) -> None:
    """At full size: SEAL's plaintext is v + e modulo every prime, and its slots are v + e at the roots of unity."""
    ring = RINGS[profile]
    n = ring.degree
    secret = rng.integers(-1, 2, n)
    message = rng.integers(-(2**24), 2**24, n) + rng.binomial(42, 0.5, n) - 21
    a = np.array([rng.integers(0, q, n) for q in ring.primes])
    q = np.array(ring.primes, np.int64)[:, None]
    s, m = (
        np.array([evaluate(poly, root, q) for q, root in zip(ring.primes, ring.roots, strict=True)])
        for poly in (secret, message)
    )
    seal = Seal(n, ring.primes, secret)
    scale = 2.0**20
    residues, slots = seal.decrypted(seal.ciphertext((a * s + m) % q, a, scale))
    assert (residues == m).all()
    checked = 64
    exponents = np.outer([pow(3, j, 2 * n) for j in range(checked)], np.arange(n)) % (2 * n)
    expected = np.exp(1j * np.pi * exponents / n) @ (message / scale)
    assert np.abs(slots[:checked] - expected).max() < 1e-9 * np.abs(expected).max()


def naive(ring: Ring, stride: int, planes: int) -> tuple[Any, Any]:
    """The oracle at N = 64, with the engine's primes: (client's kernel, server's kernel)."""
    roots = tuple(smallest_root(128, q) for q in ring.primes)
    kernel = NaiveKernel(6, ring.primes, roots, stride, planes)
    return kernel, kernel


def compiled(ring: Ring, stride: int, planes: int) -> tuple[Any, Any]:
    """The C++ kernels at full size."""
    client = pytest.importorskip("he_engine.kernels._client", exc_type=ImportError)
    server = pytest.importorskip("he_engine.kernels._answer", exc_type=ImportError)
    return (
        client.ClientKernel(ring.log_n, ring.primes, ring.roots, stride, planes, ""),
        server.AnswerKernel(ring.log_n, ring.primes, stride, planes, ""),
    )


@pytest.mark.parametrize("profile", [Profile.COMPACT, Profile.EXACT])
@pytest.mark.parametrize(("kernels", "log_n", "stride"), [(naive, 6, 4), (compiled, None, 16)])
def test_seal_multiplies_and_decrypts_as_recover_does(
    profile: Profile, kernels: Any, log_n: int | None, stride: int, rng: np.random.Generator
) -> None:
    """Σ_i Enc(v_i)·Enc(y_i) by SEAL, under one key s = t, against T − s·z − t·H: the whole protocol, exactly.

    The engine never uses one key for both (a query's t is its own): only so does its product become a textbook one,
    (Σ b·c, −Σ(a·c + a'·b), Σ a·a'), that SEAL can decrypt with a single key.
    """
    ring, planes = RINGS[profile], 3
    client, server = kernels(ring, stride, planes)
    n, p = 1 << (log_n or ring.log_n), len(ring.primes)
    rows_per_block = n // stride
    stack = (p, n // TILE, planes, TILE)

    def uniform() -> U32:
        return np.array([rng.integers(0, q, stack[1:]) for q in ring.primes], np.uint32)

    def polys(stacked: U32, plane: int) -> U32:
        return np.ascontiguousarray(stacked[:, :, plane, :]).reshape(p, n)

    words = rng.integers(0, 2**64, n // 4 + planes * n, np.uint64)
    noise = rng.integers(0, 2**64, (1, planes, n), np.uint64)
    rows = rng.integers(-500, 500, (1, rows_per_block, planes * stride), np.int32)
    query = rng.integers(-500, 500, planes * stride, np.int64)
    a, a2 = uniform(), uniform()
    s = client.expand_secrets(words[None, : n // 4])
    b, hint = np.zeros((1, *stack), np.uint32), np.zeros((1, p, n), np.uint32)
    no_weights = np.zeros((1, 1, p, rows_per_block), np.uint32)
    client.encrypt_blocks(rows, noise, s, a, a2, no_weights, b, hint, np.zeros((1, *stack), np.uint32))
    c, t, z = np.zeros(stack, np.uint32), np.zeros((p, n), np.uint32), np.zeros((p, n), np.uint32)
    client.encrypt_query(query, words, a, a2, c, t, z)
    assert (t == s[0]).all()
    answer = np.zeros((1, 1, p, rows_per_block), np.uint32)
    server.answer(b, c[None], answer)
    recovered = client.recover(answer[0], hint, s, t, z)[0]

    coefficients = s.copy()
    client.inverse(coefficients)
    lifted = coefficients[0, 0].astype(np.int64)
    seal = Seal(n, ring.primes, np.where(lifted == ring.primes[0] - 1, -1, lifted))
    total, product = sealapi().Ciphertext(), sealapi().Ciphertext()
    for i in range(planes):
        x, y = seal.ciphertext(polys(b[0], i), polys(a, i)), seal.ciphertext(polys(c, i), polys(a2, i))
        seal.evaluator.multiply(x, y, product if i else total)
        if i:
            seal.evaluator.add_inplace(total, product)
    first = seal.residues(total, 3)[0]
    assert (client.fold(first[None].astype(np.uint32))[0] == answer[0, 0]).all(), "c0, folded, is T"
    plaintext = seal.decrypted(total)[0][None].astype(np.uint32)
    client.inverse(plaintext)
    positions = plaintext[0, :, ::stride]
    for j, q in enumerate(ring.primes):
        assert (positions[j] == recovered % q).all()
    exact = rows[0].astype(np.int64) @ query
    assert np.abs(recovered - exact).max() < 2**21, "the scores, but for noise Σ e·y + v·e' + e·e'"

"""The oracle: every kernel in plain Python integers, one line of mathematics at a time.

Same names, arguments and results as the C++ kernels, hundreds of times slower, and with nothing clever in it.
Shapes: K blocks, Q queries, P primes, N = 2^log_n, I planes, g = stride, B = N/g rows a block, m checks.

A *stack* holds one polynomial for each plane, in the NTT domain and in tiles of 16 coefficients:
stack[p, t, i, l] is slot 16·t + l of plane i mod q_p; shape (P, N/16, I, 16), dtype uint32.
NTT slots are in bit-reversed order: slot j holds the value at ψ^(2·brv(j) + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

TILE = 16
ETA = 21


def bit_reverse(value: int, bits: int) -> int:
    return int(format(value, f"0{bits}b")[::-1], 2) if bits else 0


def ternary(keystream: list[int]) -> list[int]:
    """Four coefficients in {−1, 0, 1} from each 64-bit word w: four times the digit ⌊3w/2^64⌋ − 1, then
    w ← 3w mod 2^64. Statistical distance from uniform ≤ 3^4·2^-64 a word."""
    digits = []
    for word in keystream:
        for _ in range(4):
            digits.append((3 * word >> 64) - 1)
            word = 3 * word & (2**64 - 1)
    return digits


def centred_binomial(keystream: list[int]) -> list[int]:
    """One coefficient from each 64-bit word: popcount(bits 0..20) − popcount(bits 21..41)."""
    mask = 2**ETA - 1
    return [(word & mask).bit_count() - (word >> ETA & mask).bit_count() for word in keystream]


@dataclass(frozen=True)
class NaiveKernel:
    """One ring and one layout; see the module for shapes."""

    log_n: int
    primes: tuple[int, ...]
    roots: tuple[int, ...]
    stride: int
    planes: int

    @property
    def degree(self) -> int:
        return 1 << self.log_n

    @property
    def rows(self) -> int:
        return self.degree // self.stride

    # ---- transforms ------------------------------------------------------------------------------------
    def _evaluate(self, poly: list[int], root: int, q: int) -> list[int]:
        size = len(poly)
        bits = size.bit_length() - 1
        points = [pow(root, 2 * bit_reverse(j, bits) + 1, q) for j in range(size)]
        return [sum(c * pow(x, k, q) for k, c in enumerate(poly)) % q for x in points]

    def _interpolate(self, values: list[int], root: int, q: int, divisor: int) -> list[int]:
        size = len(values)
        bits = size.bit_length() - 1
        points = [pow(root, -(2 * bit_reverse(j, bits) + 1), q) for j in range(size)]
        scale = pow(divisor, -1, q)
        return [scale * sum(v * pow(x, k, q) for v, x in zip(values, points, strict=True)) % q for k in range(size)]

    def forward(self, polys: U32) -> None:
        """In place, (K, P, N): coefficients → NTT slots."""
        for poly in polys:
            for p, (q, root) in enumerate(zip(self.primes, self.roots, strict=True)):
                poly[p] = self._evaluate(poly[p].tolist(), root, q)

    def inverse(self, polys: U32) -> None:
        """In place, (K, P, N): NTT slots → coefficients."""
        for poly in polys:
            for p, (q, root) in enumerate(zip(self.primes, self.roots, strict=True)):
                poly[p] = self._interpolate(poly[p].tolist(), root, q, self.degree)

    def fold(self, polys: U32) -> U32:
        """(K, P, N) → (K, P, B): the sum of the g adjacent slots that share x^g, mod q_p."""
        out = np.zeros((*polys.shape[:2], self.rows), np.uint32)
        for k in range(polys.shape[0]):
            for p, q in enumerate(self.primes):
                for r in range(self.rows):
                    out[k, p, r] = sum(polys[k, p, r * self.stride : (r + 1) * self.stride].tolist()) % q
        return out

    def inverse_decimated(self, folded: U32) -> None:
        """In place, (K, P, B): folded slots → the coefficients at X^(r·g), r < B.

        A size-B inverse transform with root ψ^g and the factor 1/N = 1/(g·B): `inverse` would give the same
        numbers at those positions."""
        for block in folded:
            for p, (q, root) in enumerate(zip(self.primes, self.roots, strict=True)):
                root_g = pow(root, self.stride, q)
                block[p] = self._interpolate(block[p].tolist(), root_g, q, self.degree)

    # ---- encryption ------------------------------------------------------------------------------------
    def _slots(self, coefficients: list[int], p: int) -> list[int]:
        q = self.primes[p]
        return self._evaluate([c % q for c in coefficients], self.roots[p], q)

    def _plane(self, stack: U32, p: int, i: int) -> list[int]:
        return [int(v) for v in stack[p, :, i, :].reshape(-1)]

    def _set_plane(self, stack: U32, p: int, i: int, slots: list[int]) -> None:
        stack[p, :, i, :] = np.array(slots, np.uint32).reshape(-1, TILE)

    def expand_secrets(self, keystream: U64) -> U32:
        """(K, N/4) words → (K, P, N): uniform ternary polynomials in the NTT domain."""
        out = np.zeros((keystream.shape[0], len(self.primes), self.degree), np.uint32)
        for k, words in enumerate(keystream):
            for p in range(len(self.primes)):
                out[k, p] = self._slots(ternary(words.tolist()), p)
        return out

    def expand_weights(self, keystream: U64) -> U32:
        """(K, m, P, B) words → residues ⌊w·q_p/2^64⌋, same shape: each value has probability ≤ 1/q + 2^-64."""
        out = np.zeros(keystream.shape, np.uint32)
        for k, c, p, r in np.ndindex(*keystream.shape):
            out[k, c, p, r] = int(keystream[k, c, p, r]) * self.primes[p] >> 64
        return out

    def encrypt_blocks(
        self,
        rows: NDArray[np.int32],  # (K, B, I·g) scaled integers
        noise: U64,  # (K, I, N) keystream
        secrets: U32,  # (K, P, N) NTT domain
        index_public: U32,  # a, stack
        query_public: U32,  # a', stack
        weights: U32,  # (K, m, P, B)
        blocks: U32,  # out (K, P, N/16, I, 16): b = a·s + e + v
        hint: U32,  # out (K, P, N): H = Σ_i b_i·a'_i
        fingerprint: U32,  # in and out (m, P, N/16, I, 16): F_i[j] += b_i[j]·w[⌊j/g⌋]
    ) -> None:
        g = self.stride
        for k in range(rows.shape[0]):
            for i in range(self.planes):
                values = rows[k, :, i * g : (i + 1) * g].reshape(-1).tolist()
                errors = centred_binomial(noise[k, i].tolist())
                message = [v + e for v, e in zip(values, errors, strict=True)]
                for p, q in enumerate(self.primes):
                    a = self._plane(index_public, p, i)
                    s = secrets[k, p].tolist()
                    m = self._slots(message, p)
                    b = [(x * y + z) % q for x, y, z in zip(a, s, m, strict=True)]
                    self._set_plane(blocks[k], p, i, b)
                    for c in range(fingerprint.shape[0]):
                        f = self._plane(fingerprint[c], p, i)
                        w = weights[k, c, p].tolist()
                        f = [(f[j] + b[j] * w[j // g]) % q for j in range(self.degree)]
                        self._set_plane(fingerprint[c], p, i, f)
            hint[k] = self._dot(blocks[k], query_public)

    def encrypt_query(
        self,
        query: NDArray[np.int64],  # (I·g,) scaled integers, |·| < 2^40
        keystream: U64,  # (N/4 + I·N,): the secret t, then the errors e'
        index_public: U32,
        query_public: U32,
        ciphertext: U32,  # out, stack: c = a'·t + e' + y
        secret: U32,  # out (P, N): t
        mask: U32,  # out (P, N): z = Σ_i a_i·(c_i − a'_i·t)
    ) -> None:
        n, g = self.degree, self.stride
        secret[:] = self.expand_secrets(keystream[None, : n // 4])[0]
        words = keystream[n // 4 :].reshape(self.planes, n)
        inner = np.zeros_like(ciphertext)
        for i in range(self.planes):
            y = [0] * n
            y[0] = int(query[i * g])
            for u in range(1, g):
                y[n - u] = -int(query[i * g + u])
            message = [v + e for v, e in zip(y, centred_binomial(words[i].tolist()), strict=True)]
            for p, q in enumerate(self.primes):
                m = self._slots(message, p)
                self._set_plane(inner, p, i, m)
                a = self._plane(query_public, p, i)
                t = secret[p].tolist()
                c = [(x * y_ + z) % q for x, y_, z in zip(a, t, m, strict=True)]
                self._set_plane(ciphertext, p, i, c)
        mask[:] = self._dot(index_public, inner)

    # ---- hints as they are stored ------------------------------------------------------------------------
    def pack_hint(self, hint: U32, drop_bits: int) -> NDArray[np.uint8]:
        """(K, P, N) NTT domain → (K, N·L/8), L = bits(q) − κ: the coefficients h of H in [0, q), each as
        v = (h + 2^(κ−1)) >> κ or, where that is ⌈q/2^κ⌉, as 0; L bits each, little-endian.

        |v·2^κ − h| ≤ 2^(κ−1) modulo q; κ = 0 keeps h as it is."""
        b, (modulus, width, limit) = drop_bits, self._hint_format(drop_bits)
        coefficients = hint.copy()
        self.inverse(coefficients)
        rows = []
        for block in coefficients:
            packed = 0
            for j, residues in enumerate(block.T.tolist()):
                h = self._crt(residues, modulus)
                v = (h + (1 << b >> 1)) >> b
                packed |= (0 if v == limit else v) << j * width
            rows.append(packed.to_bytes(self.degree * width // 8, "little"))
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(hint), self.degree * width // 8)

    def unpack_hint(self, packed: NDArray[np.uint8], drop_bits: int) -> U32:
        """(K, N·L/8) → (K, P, N), NTT domain: the coefficients v·2^κ. Raises ValueError where v ≥ ⌈q/2^κ⌉."""
        _, width, limit = self._hint_format(drop_bits)
        out = np.zeros((len(packed), len(self.primes), self.degree), np.uint32)
        for k, row in enumerate(packed):
            bits = int.from_bytes(row.tobytes(), "little")
            for j in range(self.degree):
                v = bits >> j * width & (1 << width) - 1
                if v >= limit:
                    raise ValueError(f"packed: value {k * self.degree + j} is not canonical (expected < {limit})")
                out[k, :, j] = [(v << drop_bits) % q for q in self.primes]
        self.forward(out)
        return out

    def _hint_format(self, drop_bits: int) -> tuple[int, int, int]:
        """q, L = bits(q) − κ, and ⌈q/2^κ⌉."""
        modulus = math.prod(self.primes)
        return modulus, modulus.bit_length() - drop_bits, -(-modulus >> drop_bits)

    def _crt(self, residues: list[int], modulus: int) -> int:
        """The integer in [0, q) with these residues."""
        rests = [(r, modulus // q, q) for r, q in zip(residues, self.primes, strict=True)]
        return sum(r * rest * pow(rest, -1, q) for r, rest, q in rests) % modulus

    # ---- answering and recovering ----------------------------------------------------------------------
    def _dot(self, x: U32, y: U32) -> U32:
        """Σ_i x_i·y_i of two stacks → (P, N)."""
        out = np.zeros((len(self.primes), self.degree), np.uint32)
        for p, q in enumerate(self.primes):
            for j in range(self.degree):
                t, lane = divmod(j, TILE)
                pairs = zip(x[p, t, :, lane].tolist(), y[p, t, :, lane].tolist(), strict=True)
                out[p, j] = sum(u * v for u, v in pairs) % q
        return out

    def answer(self, blocks: U32, queries: U32, out: U32) -> None:
        """blocks (K, P, N/16, I, 16), queries (Q, P, N/16, I, 16) → out (Q, K, P, B): fold(Σ_i b_i·c_i)."""
        for a, query in enumerate(queries):
            for k, block in enumerate(blocks):
                out[a, k] = self.fold(self._dot(block, query)[None])[0]

    def first_noncanonical(self, words: U32) -> int:
        """words (K, P, M): the flat index of the first residue ≥ q_p, or −1."""
        primes = np.array(self.primes, np.uint32)[None, :, None]
        bad = np.flatnonzero(words >= primes)
        return int(bad[0]) if bad.size else -1

    def weighted_sum(self, weights: U32, values: U32) -> U32:
        """weights (K, m, P, L), values (K, P, L) → (m, P): Σ_k Σ_l w[k,c,p,l]·x[k,p,l] mod q_p."""
        out = np.zeros(weights.shape[1:3], np.uint32)
        for c, p in np.ndindex(*out.shape):
            w, x = weights[:, c, p].reshape(-1).tolist(), values[:, p].reshape(-1).tolist()
            out[c, p] = sum(u * v for u, v in zip(w, x, strict=True)) % self.primes[p]
        return out

    def recover(self, answers: U32, hints: U32, secrets: U32, secret: U32, mask: U32) -> NDArray[np.int64]:
        """answers (K, P, B), hints (K, P, N), secrets s (K, P, N), t (P, N), z (P, N) → (K, B).

        T − s·z − t·H at the score positions, lifted by CRT to [−q/2, q/2)."""
        product = np.zeros_like(hints)
        for k in range(hints.shape[0]):
            for p, q in enumerate(self.primes):
                rows = (secrets[k, p], mask[p], secret[p], hints[k, p])
                s, z, t, h = (row.tolist() for row in rows)
                product[k, p] = [(s[j] * z[j] + t[j] * h[j]) % q for j in range(self.degree)]
        folded = self.fold(product)
        for p, q in enumerate(self.primes):
            folded[:, p] = (answers[:, p].astype(np.int64) - folded[:, p].astype(np.int64)) % q
        self.inverse_decimated(folded)
        modulus = math.prod(self.primes)
        out = np.zeros((answers.shape[0], self.rows), np.int64)
        for k, r in np.ndindex(*out.shape):
            lifted = self._crt(folded[k, :, r].tolist(), modulus)
            out[k, r] = lifted - modulus if lifted >= (modulus + 1) // 2 else lifted
        return out

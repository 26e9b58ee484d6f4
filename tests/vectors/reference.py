"""The hint engine once more, from docs/scheme.md and docs/format.md, in Python integers; imports nothing of hesearch.

What another implementation would have to do, in the plainest form: polynomials are lists of residues, one for each
prime; a stack is [prime][plane] → N slots. Slot j holds the value at ψ^(2·brv(j) + 1).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

ETA, TILE, CHECKS = 21, 16, 3
Poly = list[int]
Stack = list[list[Poly]]  #: [prime][plane]


# ---- derivations -----------------------------------------------------------------------------------------
def lp(*fields: bytes | str | int) -> bytes:
    raws = [f.encode() if isinstance(f, str) else f.to_bytes(8, "big") if isinstance(f, int) else f for f in fields]
    return b"".join(len(raw).to_bytes(8, "big") + raw for raw in raws)


def kdf(root: bytes, label: str, *context: bytes | int) -> bytes:
    """HKDF-Expand-SHA256 (RFC 5869, 2.3), its first block: 32 bytes."""
    return hmac.digest(root, lp("hesearch 1", label, *context) + b"\x01", "sha256")


def hedged_seed(root: bytes, label: str, random: bytes, *content: bytes | int) -> bytes:
    return hmac.digest(kdf(root, "hedge", label.encode()), random + lp(*content), "sha256")


def keystream(key: bytes, words: int, offset_words: int = 0) -> list[int]:
    """Little-endian 64-bit words of AES-256-CTR from a zero counter, an even number of words skipped."""
    counter = (offset_words // 2).to_bytes(16, "big")
    raw = Cipher(AES(key), CTR(counter)).encryptor().update(bytes(8 * words))
    return [int.from_bytes(raw[i : i + 8], "little") for i in range(0, 8 * words, 8)]


def ternary(words: Sequence[int]) -> Poly:
    """The base-3 digits of ⌊81·w/2^64⌋, less one."""
    return [(81 * w >> 64) // 3**k % 3 - 1 for w in words for k in (3, 2, 1, 0)]


def centred_binomial(words: Sequence[int]) -> Poly:
    low = (1 << ETA) - 1
    return [(w & low).bit_count() - (w >> ETA & low).bit_count() for w in words]


# ---- one ring and one layout -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Scheme:
    """log_n, primes, roots, stride g, planes I, dropped bits κ."""

    log_n: int
    primes: tuple[int, ...]
    roots: tuple[int, ...]
    stride: int
    planes: int
    drop_bits: int

    @property
    def n(self) -> int:
        return 1 << self.log_n

    @property
    def rows(self) -> int:
        """B."""
        return self.n // self.stride

    def transform(self, poly: Poly, p: int) -> Poly:
        """Coefficients (any integers) → slots: Cooley and Tukey's butterflies, bit-reversed output."""
        q, psi = self.primes[p], self.roots[p]
        out, length, k = [c % q for c in poly], self.n // 2, 1
        while length:
            for start in range(0, self.n, 2 * length):
                zeta = pow(psi, reversed_bits(k, self.log_n), q)
                k += 1
                for j in range(start, start + length):
                    u, v = out[j], zeta * out[j + length] % q
                    out[j], out[j + length] = (u + v) % q, (u - v) % q
            length //= 2
        return out

    def coefficients(self, slots: Poly, p: int, root: int | None = None, divisor: int | None = None) -> Poly:
        """Slots → coefficients in [0, q_p): the same butterflies backwards. Any power of two of slots."""
        q, psi = self.primes[p], self.roots[p] if root is None else root
        size = len(slots)
        bits = size.bit_length() - 1
        out, length, k = list(slots), 1, size - 1
        while length < size:
            for start in reversed(range(0, size, 2 * length)):
                inverse = pow(pow(psi, reversed_bits(k, bits), q), -1, q)
                k -= 1
                for j in range(start, start + length):
                    u, v = out[j], out[j + length]
                    out[j], out[j + length] = (u + v) % q, (u - v) * inverse % q
            length *= 2
        scale = pow(size if divisor is None else divisor, -1, q)
        return [c * scale % q for c in out]

    def public(self, nonce: bytes, role: str, epoch: int = 0) -> Stack:
        """a ("index") or a' ("query")."""
        return [[self._uniform(nonce, role, epoch, q, i) for i in range(self.planes)] for q in self.primes]

    def _uniform(self, nonce: bytes, role: str, epoch: int, q: int, plane: int) -> Poly:
        suite = lp("hesearch public polynomials 1", nonce, epoch, role, self.log_n, q, plane)
        words = keystream(hashlib.sha256(suite).digest(), self.n)
        halves = [half & 0x7FFFFFFF for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        return [half for half in halves if half < q][: self.n]

    # ---- the four verbs ------------------------------------------------------------------------------------
    def row_planes(self, rows: Sequence[Sequence[int]]) -> list[Poly]:
        """v_i of one block: coordinate i·g + u of row r at X^(r·g + u)."""
        g, planes = self.stride, [[0] * self.n for _ in range(self.planes)]
        for r, row in enumerate(rows):
            for coordinate, value in enumerate(row):
                i, u = divmod(coordinate, g)
                planes[i][r * g + u] = value
        return planes

    def query_planes(self, vector: Sequence[int]) -> list[Poly]:
        """y_i: coordinate i·g + u at X^(−u) = −X^(N−u)."""
        g, planes = self.stride, [[0] * self.n for _ in range(self.planes)]
        for coordinate, value in enumerate(vector):
            i, u = divmod(coordinate, g)
            planes[i][(-u) % self.n] = -value if u else value
        return planes

    def encrypt(self, public: Stack, secret: Poly, errors: Sequence[Poly], planes: Sequence[Poly]) -> Stack:
        """public·secret + error + plane, for each plane: b of one block, or c."""
        out: Stack = []
        for p, q in enumerate(self.primes):
            s = self.transform(secret, p)
            messages = [self.transform([x + y for x, y in zip(e, v, strict=True)], p)
                        for e, v in zip(errors, planes, strict=True)]  # fmt: skip
            out.append([[(x * y + z) % q for x, y, z in zip(a, s, m, strict=True)]
                        for a, m in zip(public[p], messages, strict=True)])  # fmt: skip
        return out

    def dot(self, left: Stack, right: Stack) -> list[Poly]:
        """Σ_i left_i·right_i, in slots, for each prime."""
        return [[sum(x[j] * y[j] for x, y in zip(left[p], right[p], strict=True)) % q for j in range(self.n)]
                for p, q in enumerate(self.primes)]  # fmt: skip

    def fold(self, slots: list[Poly]) -> list[Poly]:
        g = self.stride
        return [[sum(poly[r * g : r * g + g]) % q for r in range(self.rows)]
                for poly, q in zip(slots, self.primes, strict=True)]  # fmt: skip

    def answer(self, block: Stack, query: Stack) -> list[Poly]:
        """T of one block, [prime] → B."""
        return self.fold(self.dot(block, query))

    def stored_hint(self, block: Stack, query_public: Stack) -> list[int]:
        """v of each coefficient of H = Σ b·a' (docs/scheme.md, 2.4)."""
        q, kappa = prod(self.primes), self.drop_bits
        slots = self.dot(block, query_public)
        residues = [self.coefficients(poly, p) for p, poly in enumerate(slots)]
        values = [(self._crt(list(column)) + (1 << kappa >> 1)) >> kappa for column in zip(*residues, strict=True)]
        return [0 if value == -(-q >> kappa) else value for value in values]

    def packed_hint(self, values: Sequence[int]) -> bytes:
        width = prod(self.primes).bit_length() - self.drop_bits
        return sum(v << j * width for j, v in enumerate(values)).to_bytes(self.n * width // 8, "little")

    def recover(
        self, answer: list[Poly], hint: Sequence[int], secret: Poly, query_secret: Poly, index_public: Stack,
        query_public: Stack, query: Stack,
    ) -> list[int]:  # fmt: skip
        """T − s·z − t·H at the score positions of one block, in [−q/2, q/2)."""
        modulus, folded = prod(self.primes), []
        for p in range(len(self.primes)):
            s, t = self.transform(secret, p), self.transform(query_secret, p)
            h = self.transform([v << self.drop_bits for v in hint], p)
            planes = range(self.planes)
            z = [sum(index_public[p][i][j] * (query[p][i][j] - query_public[p][i][j] * t[j]) for i in planes)
                 for j in range(self.n)]  # fmt: skip
            folded.append([s[j] * z[j] + t[j] * h[j] for j in range(self.n)])
        rest = [[(x - y) % q for x, y in zip(a, b, strict=True)]
                for a, b, q in zip(answer, self.fold(folded), self.primes, strict=True)]  # fmt: skip
        scores = [self.coefficients(slots, p, pow(self.roots[p], self.stride, self.primes[p]), self.n)
                  for p, slots in enumerate(rest)]  # fmt: skip
        lifted = [self._crt(list(column)) for column in zip(*scores, strict=True)]
        return [value - modulus if 2 * value >= modulus else value for value in lifted]

    def _crt(self, residues: list[int]) -> int:
        q = prod(self.primes)
        return sum(r * (q // m) * pow(q // m, -1, m) for r, m in zip(residues, self.primes, strict=True)) % q

    # ---- verification --------------------------------------------------------------------------------------
    def weights(self, key: bytes, blocks: int) -> list[list[list[Poly]]]:
        """w[block][check][prime] → B residues ⌊W·q/2^64⌋."""
        words = iter(keystream(key, blocks * CHECKS * len(self.primes) * self.rows))
        return [[[[next(words) * q >> 64 for _ in range(self.rows)] for q in self.primes] for _ in range(CHECKS)]
                for _ in range(blocks)]  # fmt: skip

    def fingerprint(self, blocks: Sequence[Stack], weights: list[list[list[Poly]]]) -> list[Stack]:
        """F[check]: Σ_k b[k,i][j]·w[k][⌊j/g⌋]."""
        return [[[[sum(b[p][i][j] * w[c][p][j // self.stride] for b, w in zip(blocks, weights, strict=True)) % q
                   for j in range(self.n)] for i in range(self.planes)] for p, q in enumerate(self.primes)]
                for c in range(CHECKS)]  # fmt: skip

    def verifies(
        self, fingerprint: list[Stack], query: Stack, weights: list[list[list[Poly]]], answers: Sequence[list[Poly]]
    ) -> bool:
        for c in range(CHECKS):
            for p, q in enumerate(self.primes):
                left = sum(f * x for plane, slots in zip(fingerprint[c][p], query[p], strict=True)
                           for f, x in zip(plane, slots, strict=True))  # fmt: skip
                right = sum(x * y for w, t in zip(weights, answers, strict=True)
                            for x, y in zip(w[c][p], t[p], strict=True))  # fmt: skip
                if (left - right) % q:
                    return False
        return True

    # ---- bytes ---------------------------------------------------------------------------------------------
    def stack_bytes(self, stack: Stack) -> bytes:
        """u32 residues in the order (prime, N/16, plane, 16)."""
        words = [v for planes in stack for t in range(0, self.n, TILE) for slots in planes for v in slots[t : t + TILE]]
        return b"".join(v.to_bytes(4, "little") for v in words)

    def stack(self, raw: bytes) -> Stack:
        """Its inverse."""
        words = u32(raw)
        at = [[p * self.planes * self.n + t * self.planes * TILE + i * TILE for t in range(self.n // TILE)]
              for p in range(len(self.primes)) for i in range(self.planes)]  # fmt: skip
        polys = [[v for start in starts for v in words[start : start + TILE]] for starts in at]
        return [polys[p * self.planes : (p + 1) * self.planes] for p in range(len(self.primes))]


def u32(raw: bytes) -> list[int]:
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]


def reversed_bits(value: int, bits: int) -> int:
    return int(format(value, f"0{bits}b")[::-1], 2) if bits else 0

"""Why scores of `compact` and `precise` are key material: a block decrypted from scores that were released.

Somebody has the index (the server, a stolen disk) and sees scores of queries that they know. They have no key. Least
squares over the scores of N/d rows and rounding give N linear equations for the block's secret s; with s they read
every row of the block, also those whose scores nobody saw. Rounding the scores to their noise stops nothing. The same
attack on `exact` scores finds nothing. docs/score-release.md has the mathematics, with the same letters.

The client is hesearch's own (`HintClient`, with its keys, errors, hints and verification), on a ring of N = 128
coefficients instead of 2048, so that this takes seconds. The attacker is NumPy, and ends as soon as linear algebra
does: a ring that is this small would fall to other attacks, without any score.

    python examples/score_release.py
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.hint_client import EPOCH, HintClient, generate_state
from he_engine.kernels._answer import AnswerKernel
from he_engine.kernels._client import ClientKernel
from he_engine.keys import RootKey
from he_engine.params import RINGS, Parameters, Profile, Ring
from he_engine.public import expand_public

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LOG_N, DIM, STRIDE = 7, 4, 2  #: N = 128, d = 4, g = 2: 2 planes, 64 rows in a block
SHOWN = (1 << LOG_N) // DIM  #: rows whose scores are released: N/d, which give N equations


def small(large: Ring) -> Ring:
    """The same primes; each root to the power that makes it one of 2N."""
    roots = tuple(pow(psi, large.degree >> LOG_N, q) for psi, q in zip(large.roots, large.primes, strict=True))
    return Ring(log_n=LOG_N, primes=large.primes, roots=roots)


SMALL_RINGS = {profile: small(ring) for profile, ring in RINGS.items()}


class SmallParameters(Parameters):
    """The scheme's own scales and bounds on a ring that is far too small to be secure."""

    @property
    def ring(self) -> Ring:
        return SMALL_RINGS[self.profile]

    @property
    def security(self) -> Any:  # the gate, which would refuse this ring
        return None


@dataclass(frozen=True)
class View:
    """What the attacker has: the index, what is public, the queries, and the scores that were released."""

    parameters: Parameters
    nonce: bytes
    index: bytes
    queries: F64  #: (n, d)
    scores: F64  #: (n, SHOWN): of the first rows of the block


@dataclass(frozen=True)
class Truth:
    """What only the key holder has, to compare with."""

    rows: F64
    secret: I64  #: s mod q_0, (N,)


@dataclass(frozen=True)
class Guess:
    """What the attacker found."""

    sums: I64  #: x̂_r + e_r of the rows whose scores were released, (SHOWN, d)
    secret: I64  #: s mod q_0
    rows: F64  #: of the whole block


# ---- the key holder, and the server ------------------------------------------------------------------------
def publish(profile: Profile, rows: F64, queries: F64) -> tuple[View, Truth]:
    """Encrypt one block, search it, and release the scores of its first rows."""
    p = SmallParameters(profile=profile, dim=DIM, stride=STRIDE)
    nonce = generate_state()
    client = HintClient(p, RootKey(os.urandom(32)), bytes(16), nonce, threads=1)
    encrypted = client.setup(rows)
    segment = client.load(encrypted)
    server = AnswerKernel(LOG_N, p.ring.primes, p.stride, p.planes)
    stack = (len(p.ring.primes), -1, p.planes, 16)
    index = bytes(encrypted.index)
    blocks = np.frombuffer(index, np.uint32).reshape(1, *stack)
    answer = np.empty((1, 1, len(p.ring.primes), p.rows_per_block), np.uint32)
    scores = np.empty((len(queries), SHOWN))
    for number, vector in enumerate(queries):
        query = client.query(vector)
        server.answer(blocks, np.frombuffer(query.ciphertext, np.uint32).reshape(1, *stack), answer)
        scores[number] = client.recover(query, [segment], [answer.tobytes()])[0][:SHOWN]
        query.close()
    secret = client._block_secrets(segment.seed, 0, 1)
    _kernel(p).inverse(secret)
    return View(p, nonce, index, queries, scores), Truth(rows, secret[0, 0].astype(np.int64))


# ---- the attacker ------------------------------------------------------------------------------------------
def attack(view: View) -> Guess:
    """x̂ + e of the shown rows, then s, then every row."""
    p = view.parameters
    q = p.ring.primes[0]
    a = _coefficients(p, expand_public(view.nonce, EPOCH, "index", p.ring, p.planes))
    b = _coefficients(p, np.frombuffer(view.index, np.uint32))
    sums = least_squares(view)

    released = sums.reshape(SHOWN, p.planes, p.stride)
    matrix, right = [], []
    for r in range(SHOWN):
        for i in range(p.planes):
            for u in range(p.stride):
                place = r * p.stride + u
                matrix.append(product_row(a[i], place))  # (a_i·s) at this place …
                right.append((b[i, place] - released[r, i, u]) % q)  # … is b_i less x̂ + e there
    secret = solve(np.array(matrix) % q, np.array(right), q)

    products = [[_dot(product_row(a[i], place), secret, q) for place in range(p.ring.degree)] for i in range(p.planes)]
    everything = (b - np.array(products)) % q
    everything = np.where(everything > q // 2, everything - q, everything)  # v + e, all of it
    scale = p.index_scale * max(1, p.quantiser)
    rows = np.swapaxes(everything.reshape(p.planes, p.rows_per_block, p.stride), 0, 1).reshape(-1, p.dim) / scale
    return Guess(sums, secret, rows)


def least_squares(view: View) -> I64:
    """A score times Δx·Δy is ⟨x̂_r + e_r, ŷ⟩ and noise that does not depend on ŷ: d unknowns for each row."""
    p = view.parameters
    s = p.quantiser  # 0 but for `exact`
    encoded = p.query_scale * np.rint(s * view.queries) if s else np.rint(p.query_scale * view.queries)
    unit = p.index_scale * p.query_scale * max(1, s) ** 2
    found, *_ = np.linalg.lstsq(encoded, view.scores * unit, rcond=None)
    return np.rint(found.T).astype(np.int64)


def product_row(poly: I64, place: int) -> I64:
    """The row m with m·s = (poly·s) at X^place: X^N = −1."""
    n = len(poly)
    from_here = place - np.arange(n)
    return np.where(from_here < 0, -poly[from_here], poly[from_here])


def solve(matrix: I64, right: I64, q: int) -> I64:
    """Gauss and Jordan modulo the prime q < 2^31: products stay below 2^62."""
    system = np.column_stack([matrix, right]) % q
    for column in range(len(matrix)):
        pivot = column + int(np.argmax(system[column:, column] != 0))
        system[[column, pivot]] = system[[pivot, column]]
        system[column] = system[column] * pow(int(system[column, column]), -1, q) % q
        factors = system[:, column].copy()
        factors[column] = 0
        system = (system - factors[:, None] * system[column] % q) % q
    return system[:, -1]


def _dot(x: I64, y: I64, q: int) -> int:
    return int(np.sum(x % q * y % q) % q)


def _kernel(p: Parameters) -> ClientKernel:
    return ClientKernel(LOG_N, p.ring.primes, p.ring.roots, p.stride, p.planes)


def _coefficients(p: Parameters, stack: NDArray[np.uint32]) -> I64:
    """A stack in the NTT domain → the coefficients of its planes modulo q_0, (I, N)."""
    planes = stack.reshape(len(p.ring.primes), -1, p.planes, 16).transpose(2, 0, 1, 3)
    polys = np.ascontiguousarray(planes).reshape(p.planes, len(p.ring.primes), -1)
    _kernel(p).inverse(polys)
    return polys[:, 0].astype(np.int64)


# ---- what came of it -----------------------------------------------------------------------------------------
def judge(guess: Guess, truth: Truth) -> tuple[int, int]:
    """(coefficients of s found, of N; rows read whose scores were never released)."""
    right = int(np.sum(guess.secret == truth.secret))
    close = np.max(np.abs(guess.rows[SHOWN:] - truth.rows[SHOWN:]), axis=1) < 0.01
    return right, int(close.sum())


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Find a block's secret from released scores, and fail to, under `exact`.",
        epilog="example:\n  python examples/score_release.py --answers 400",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--answers", type=int, default=1500, help="released for each row, in multiples of d (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of rows and queries; keys are never seeded")
    arguments = parser.parse_args()
    if arguments.answers < 1:
        parser.error(f"--answers: got {arguments.answers}, expected at least 1")
    rng = np.random.default_rng(arguments.seed)

    def unit(count: int) -> F64:
        vectors = rng.standard_normal((count, DIM))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    n = 1 << LOG_N
    rows, queries = unit(n // STRIDE), unit(arguments.answers * DIM)
    hidden = len(rows) - SHOWN
    print(f"N = {n}, d = {DIM}, g = {STRIDE}: a block of {len(rows)} rows under one secret s.")
    print(f"Scores of {SHOWN} rows are released, for {len(queries)} known queries; of {hidden} rows, none ever.")
    print()
    print("released                                 answers   x̂ + e right   s right   hidden rows read")

    def report(name: str, view: View, truth: Truth) -> tuple[int, int]:
        guess = attack(view)
        right, read = judge(guess, truth)
        sums = int(np.sum(guess.sums == _true_sums(view, truth)))
        print(f"{name:38} {len(view.queries):9}  {sums:4} of {n:4}  {right:4} of {n:3}  {read:6} of {hidden}")
        return right, read

    view, truth = publish(Profile.COMPACT, rows, queries)
    noise = view.parameters.score_error_std
    coarse = View(view.parameters, view.nonce, view.index, queries, np.rint(view.scores / noise) * noise)
    few = View(view.parameters, view.nonce, view.index, queries[:DIM], view.scores[:DIM])
    broken = [
        report("compact, every digit", view, truth),
        report("compact, rounded to its noise", coarse, truth),
    ]
    report("compact, d answers (the budget)", few, truth)
    view, truth = publish(Profile.EXACT, rows, queries)
    safe = report("exact, every digit", view, truth)
    again, _ = publish(Profile.EXACT, rows, queries[:DIM])
    same = np.array_equal(again.scores, view.scores[:DIM])
    print()
    print(f"exact, the same rows under another key: scores {'equal to the last bit' if same else 'differ'}")

    won = all(found == (n, hidden) for found in broken)
    held = safe[0] < n // 10 and safe[1] == 0 and same
    print()
    print("compact: " + ("the secret was found, and with it every row" if won else "not found: try more answers"))
    print("exact:   " + ("nothing was found: its scores have no part of s, e, t or e' in them" if held else "BROKEN"))
    return 0 if won and held else 1


def _true_sums(view: View, truth: Truth) -> I64:
    """x̂_r + e_r = b − a·s at the places of the shown rows."""
    p = view.parameters
    q = p.ring.primes[0]
    a = _coefficients(p, expand_public(view.nonce, EPOCH, "index", p.ring, p.planes))
    b = _coefficients(p, np.frombuffer(view.index, np.uint32))
    places = range(SHOWN * p.stride)
    sums = [[(b[i, m] - _dot(product_row(a[i], m), truth.secret, q)) % q for m in places] for i in range(p.planes)]
    found = np.array(sums)
    found = np.where(found > q // 2, found - q, found).reshape(p.planes, SHOWN, p.stride)
    return np.swapaxes(found, 0, 1).reshape(SHOWN, p.dim)


if __name__ == "__main__":
    sys.exit(main())

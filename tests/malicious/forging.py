"""What a server could do that knows the fingerprint F: change a query so that the check does not see it.

The check compares Σ F·c with weights of the answer (docs/scheme.md, section 4). Where Σ F·γ = 0 in all three sums, the
honest answer to c + γ passes for the one to c.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client import Collection
from he_engine import verify
from tests.malicious.answers import with_query
from tests.malicious.server import Call, Tell
from tests.malicious.world import PARAMETERS

SLOTS = 4  #: one more than there are sums


def leaked(reader: Collection) -> NDArray[np.uint32]:
    """F of all live segments together, (m, P, slots): what no server ever sees."""
    sums = verify.add([s.engine.fingerprint.sums for s in reader._state.current[1]], PARAMETERS)
    return sums.reshape(verify.CHECKS, len(PARAMETERS.ring.primes), -1)


def unseen(sums: NDArray[np.uint32], first: int = 0) -> list[int]:
    """γ ≠ 0 at slots that are folded into the four from `first` on, modulo the first prime: Σ F·γ = 0 in each sum.

    At slots that are folded into one, three sums over up to three blocks leave only changes that no answer shows."""
    return unseen_by(sums[:, 0, first * PARAMETERS.stride :: PARAMETERS.stride], PARAMETERS.ring.primes[0])


def unseen_by(factors: NDArray[np.uint32], prime: int) -> list[int]:
    """x ≠ 0 of four places: Σ factors·x = 0 modulo the prime for each of three rows of them, by Cramer's rule."""
    rows = [[int(value) for value in row[:SLOTS]] for row in factors]
    minors = [_determinant([[*row[:i], *row[i + 1 :]] for row in rows]) for i in range(SLOTS)]
    return [(-1) ** i * minor % prime for i, minor in enumerate(minors)]


def _determinant(m: list[list[int]]) -> int:
    a, b, c = m[0]
    return (
        a * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - b * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + c * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )


def adding(change: list[int], first: int = 0) -> Tell:
    """The honest answer to the query with `change` added to it, as `unseen` gave it."""

    def altered(query: NDArray[np.uint64]) -> NDArray[np.uint64]:
        slots = query[0, first * PARAMETERS.stride :: PARAMETERS.stride]
        slots[: len(change)] += np.array(change, np.uint64)  # one plane: slots lie in order
        return query

    def tell(call: Call) -> Iterable[Any]:
        return call.ask(call.world.main, with_query(call, altered, 0))

    return tell

"""How long the slowest of n shards takes, in units of the least time of a pass.

A pass takes 1 + c·E, E exponential of mean 1: `spread` is c, as measured from repeated passes on one machine. That
nodes of a cluster vary as one machine does from pass to pass is an assumption, and that they do so independently.
"""

from __future__ import annotations

import math

import numpy as np

from he_engine.errors import InvalidInput

_STEPS = 20_000  #: of the integral; its error is far below that of any c


def expected_maximum(shards: int, spread: float, hedge: float | None = None) -> float:
    """E of the maximum over n shards: 1 + c·(1 + 1/2 + … + 1/n). Raises InvalidInput for n < 1 or c < 0.

    With `hedge` = p, a shard that has not answered after the quantile p of a pass, t(p) = 1 − c·ln(1 − p), is asked
    again at another copy, and the first answer counts. With S(t) = P(a pass takes longer than t) it takes longer than
    t with S(t) before t(p) and S(t)·S(t − t(p)) after, and E = ∫ 1 − (1 − …)ⁿ dt. A copy needs a whole pass, too: it
    wins only where one takes longer than two, so hedging gains nothing while c is small.
    """
    if shards < 1:
        raise InvalidInput(f"shards: got {shards}, expected at least 1")
    if not 0 <= spread < math.inf:
        raise InvalidInput(f"spread: got {spread:g}, expected at least 0")
    if hedge is None or spread == 0:
        return 1 + spread * _harmonic(shards)
    asked_again = hedged_after(spread, hedge)
    end = 1 + asked_again + spread * (math.log(shards) + 40)  # beyond it, e⁻⁴⁰ is left of the integral
    times = np.linspace(1.0, end, _STEPS)
    longer = np.exp(-(times - 1) / spread)
    again = np.exp(-np.maximum(0.0, times - asked_again - 1) / spread)
    some = -np.expm1(shards * np.log1p(-np.minimum(longer * again, 1 - 1e-16)))
    step = (end - 1) / (_STEPS - 1)
    return 1 + step * float(some.sum() - (some[0] + some[-1]) / 2)


def _harmonic(n: int) -> float:
    """1 + 1/2 + … + 1/n; beyond 1,000 by Euler's expansion, which leaves less than n⁻⁴/120."""
    exact = min(n, 1000)
    found = math.fsum(1 / i for i in range(1, exact + 1))
    if n > exact:
        found += math.log(n / exact) + (1 / n - 1 / exact) / 2 - (n**-2 - exact**-2) / 12
    return found


def hedged_after(spread: float, hedge: float) -> float:
    """The quantile p of a pass, 1 − c·ln(1 − p). Raises InvalidInput unless 0 < p < 1."""
    if not 0 < hedge < 1:
        raise InvalidInput(f"hedge: got {hedge:g}, expected a quantile between 0 and 1")
    return 1 - spread * math.log1p(-hedge)

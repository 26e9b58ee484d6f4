"""What queries gain by sharing a pass over an index, and how many share it where queries come at random.

A pass for b queries at once takes b/f(b) times as long as one for a query alone: f(b) is how many times faster a query
passes. 1 ≤ f(b) ≤ b, and f is measured (benchmarks.concurrency). Above `batch` queries the server takes turns, and f
stays what it is at `batch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from he_engine.errors import InvalidInput


@dataclass(frozen=True)
class Sharing:
    """f, through measured points with straight lines in log b between them; f(1) = 1.

    Raises InvalidInput for a batch < 1, and for f(b) that is below 1 or above b.
    """

    points: Mapping[int, float]  #: b → f(b)
    batch: int  #: queries that share a pass, at most

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InvalidInput(f"batch: got {self.batch}, expected at least 1")
        if wrong := [(b, f) for b, f in self.points.items() if not 1 <= f <= b]:
            raise InvalidInput(f"sharing: got {wrong[0][1]:g} for {wrong[0][0]} queries, expected 1 to that many")

    @cached_property
    def _gains(self) -> list[float]:
        """f(0) = 0, f(1), … f(batch)."""
        return [0.0, *(self._between(b) for b in range(1, self.batch + 1))]

    def _between(self, queries: int) -> float:
        known = {1: 1.0, **self.points}
        if queries >= max(known):
            return known[max(known)]
        low, high = max(b for b in known if b <= queries), min(b for b in known if b > queries)
        share = math.log(queries / low) / math.log(high / low)
        return known[low] + share * (known[high] - known[low])

    def gain(self, queries: int) -> float:
        """f(b), b ≥ 0."""
        return self._gains[min(queries, self.batch)]

    def riders(self, offered: float) -> float:
        """E[b], queries under way where a = `offered` come, at random, in the time of a pass alone; ∞ from f(batch) on.

        Each of b queries advances at the rate f(b)/b: a processor-sharing queue whose rate depends on its state. Its
        distribution is π(b) ∝ aᵇ / (f(1)·…·f(b)), whatever the distribution of the work (Kelly, Reversibility and
        Stochastic Networks, 1979, section 3.3; Cohen, Acta Informatica 12, 1979). By Little's law a query takes E[b]/a
        passes. With f = 1 that is M/G/1 under processor sharing, 1/(1 − a); with f(b) = b nobody delays anybody.
        """
        top = self.gain(self.batch)
        if offered >= top:
            return math.inf
        weight, total, mean = 1.0, 1.0, 0.0
        for b in range(1, self.batch + 1):
            weight *= offered / self.gain(b)
            total, mean = total + weight, mean + b * weight
        # From `batch` on weights fall by r = a/f(batch): Σ rⁱ = r/(1 − r) and Σ i·rⁱ = r/(1 − r)², i ≥ 1.
        r = offered / top
        rest = weight * r / (1 - r)
        return (mean + rest * self.batch + rest / (1 - r)) / (total + rest)

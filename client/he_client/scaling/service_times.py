"""How long a pass takes, drawn at random: by the model's law, or from passes that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from he_client.scaling.stragglers import hedged_after
from he_engine.errors import InvalidInput


class ServiceTimes(Protocol):
    def draw(self, random: Random) -> float:
        """Seconds of a pass for a query alone."""

    def quantile(self, share: float) -> float:
        """Seconds, 0 < share < 1."""


@dataclass(frozen=True, slots=True)
class ShiftedExponential:
    """m·(1 + c·E) of the given mean m·(1 + c), E exponential of mean 1. Raises InvalidInput for m ≤ 0 or c < 0."""

    mean_s: float
    spread: float  #: c

    def __post_init__(self) -> None:
        if not (0 < self.mean_s < math.inf and 0 <= self.spread < math.inf):
            raise InvalidInput(f"pass: got {self.mean_s:g} s with a spread of {self.spread:g}, expected more than 0 s")

    def draw(self, random: Random) -> float:
        return self.mean_s / (1 + self.spread) * (1 + self.spread * random.expovariate(1.0))

    def quantile(self, share: float) -> float:
        return self.mean_s / (1 + self.spread) * hedged_after(self.spread, share)


class MeasuredTimes:
    """One of the given seconds, each as likely. Raises InvalidInput without any, or for one that is not above 0."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._sorted = sorted(seconds)
        if not self._sorted or self._sorted[0] <= 0:
            raise InvalidInput(f"measured passes: got {self._sorted[:1]}, expected seconds above 0")

    def draw(self, random: Random) -> float:
        return random.choice(self._sorted)

    def quantile(self, share: float) -> float:
        return self._sorted[min(int(share * len(self._sorted)), len(self._sorted) - 1)]

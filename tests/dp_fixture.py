"""Differential privacy: the oracle of its calibration, and a budget for statistics of many releases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from he_client.protect.dp import GaussianMechanism, PrivacyBudget
from he_client.protect.dp.calibration import largest_mu

_mu = cache(largest_mu)


def delta_of(epsilon: float, mu: float) -> float:
    """The least δ of a Gaussian mechanism [Balle and Wang 2018, Theorem 8]."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@dataclass(frozen=True, slots=True)
class Unlimited(PrivacyBudget):
    """Thousands of releases without a file, for audits; `wrong` divides their noise."""

    path: Path = Path("unlimited")
    wrong: float = 1.0

    def spend(self, *, epsilon: float, delta: float, what: str, releases: int = 1) -> GaussianMechanism:
        assert what
        return GaussianMechanism(_mu(epsilon, delta) * self.wrong, releases)


def certain_delta(epsilon: float, hits: int, false_alarms: int, tries: int) -> float:
    """A lower bound on δ at ε that is wrong with probability 2e-9: who attacks was right `hits` times of `tries`, and
    wrong `false_alarms` times (Hoeffding)."""
    off = math.sqrt(math.log(1e9) / (2 * tries))
    return hits / tries - off - math.exp(epsilon) * (false_alarms / tries + off)

"""(ε, δ) ↔ noise of the Gaussian mechanism, exactly [Balle and Wang 2018, Theorem 8], by dp-accounting.

With noise of standard deviation σ on what one person changes by at most Δ, the mechanism is (ε, δ)-private just when

    δ ≥ Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ),   μ = Δ/σ.

μ is all that matters of a release: those with μ_1, …, μ_k, each chosen after seeing the ones before, are together as
private as one with μ² = μ_1² + … + μ_k² [Dong, Roth, Su 2019, Corollary 3.3]. So budgets here are sums of squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from he_client.protect.dp.checks import number
from he_engine.errors import InvalidInput, MissingExtra

SLACK = 2.0**-20  #: relative, on σ: more than what rounding adds to δ and ε (gaussian.py; dp-accounting: 3e-9 of δ)
LEAST_EPSILON, MOST_EPSILON = 1e-4, 1e4  #: the range in which dp-accounting was compared with 60-digit arithmetic
LEAST_DELTA, MOST_DELTA = 1e-30, 0.4


def largest_mu(epsilon: float, delta: float) -> float:
    """μ of the least noise that is (ε, δ)-private. Raises InvalidInput, MissingExtra."""
    require_privacy(epsilon, delta)
    accounting = _accounting()
    with np.errstate(divide="ignore"):
        return 1 / (float(accounting.get_sigma_gaussian(epsilon, delta)) * (1 + SLACK))


def epsilon_of(mu: float, delta: float) -> float:
    """The least ε with which releases of this μ together are (ε, δ)-private; 0 where they always are."""
    accounting = _accounting()
    with np.errstate(divide="ignore"):
        return float(accounting.get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0


def require_privacy(epsilon: float, delta: float) -> None:
    """Raises InvalidInput where one is no number, or outside of what is supported."""
    for name, value, least, most in (
        ("epsilon", epsilon, LEAST_EPSILON, MOST_EPSILON),
        ("delta", delta, LEAST_DELTA, MOST_DELTA),
    ):
        if not number(value) or not least <= value <= most:
            raise InvalidInput(f"{name}: got {value!r}, expected a number from {least:g} to {most:g}")


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install '.[protect]'") from None
    return dp_accounting

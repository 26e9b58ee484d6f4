"""The Gaussian mechanism: values plus noise that only a paid reservation draws, sampled exactly by OpenDP.

**Grid.** Noise is discrete: integers k with probability ∝ exp(−k²/2s²) [Canonne, Kamath, Steinke 2020], times a step
that is a power of two, s ≥ 2^40. Values are rounded to the same grid and the sum is exact up to one correct rounding,
so floating point leaks nothing [Mironov 2012]. For |k| ≤ 64·s its probability is within a factor 1 ± 2^-72 of the
continuous Gaussian's mass in [k − ½, k + ½], beyond it less than e^-2000: what a rounded continuous Gaussian, with the
calibration of calibration.py, guarantees holds here up to far less than SLACK. Rounding n values moves them apart by at
most √n steps, which is added to the sensitivity.

**Randomness** is OpenSSL's, by OpenDP, seeded by the operating system, also after a fork. Nothing here takes a seed.
"""

from __future__ import annotations

import math
import os
import threading
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from he_client.protect.dp.checks import F64, require_size
from he_engine.errors import InvalidInput, MissingExtra, SecretReuseError

STEPS = 40  #: log2 of s, at least
_BATCH = 1 << 16  #: values that OpenDP draws in one call


class GaussianMechanism:
    """So many releases of one μ altogether; PrivacyBudget.spend makes it. Thread-safe; of one process.

    They may be chosen one after the other, each in view of the earlier ones. Raises MissingExtra.
    """

    def __init__(self, mu: float, releases: int = 1) -> None:
        _opendp()  # raises before anything is paid
        self.noise_multiplier = math.sqrt(releases) / mu  #: σ/Δ of each release
        self._left = releases
        self._process = os.getpid()
        self._lock = threading.Lock()

    def release(self, values: F64, *, sensitivity: float) -> F64:
        """values + noise of σ = noise_multiplier·Δ. values: any shape, each finite and below 2^500.

        sensitivity: Δ > 0, the most that `values` change by, in L2 norm over all of them, when one person's data are
        replaced by any others: of the numbers as they are computed, rounding included. Raises InvalidInput;
        SecretReuseError after as many releases as were paid for, and in another process.
        """
        values = np.asarray(values, np.float64)
        if values.size == 0 or not (np.abs(values) < 2.0**500).all():
            raise InvalidInput(f"values: got shape {values.shape}, expected finite numbers, at least one")
        require_size("sensitivity", sensitivity)
        with self._lock:
            if self._left < 1 or os.getpid() != self._process:
                raise SecretReuseError("these releases are spent, or another process's: spend again from the budget")
            self._left -= 1
        _, exponent = math.frexp(sensitivity * self.noise_multiplier)
        step = 2.0 ** (exponent - 1 - STEPS)
        scale = self.noise_multiplier * (sensitivity / step + math.sqrt(values.size))
        on_grid = np.rint(values / step) * step  # exact: powers of two; above 2^52 steps every float is on the grid
        return np.asarray(on_grid + _noise(scale, values.size).reshape(values.shape) * step)

    def __reduce__(self) -> NoReturn:
        raise SecretReuseError("releases that were paid for once are not copied")


def _noise(scale: float, count: int) -> F64:
    """Integers below 2^53, shape (count,), of the discrete Gaussian of this scale."""
    draw = _drawing(scale)
    noise = [draw([0] * min(_BATCH, count - start)) for start in range(0, count, _BATCH)]
    return np.concatenate([np.array(part, np.int64) for part in noise]).astype(np.float64)


@lru_cache(maxsize=4)  # the steps of a training have one scale, and OpenDP needs longer to begin than for some draws
def _drawing(scale: float) -> Any:
    dp = _opendp()
    return dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=scale)


def _opendp() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install '.[protect]'") from None
    dp.enable_features("contrib")
    return dp

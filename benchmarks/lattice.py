"""What the parameters are worth: the lattice estimator, and its cost formulas evaluated here.

    python -m benchmarks.lattice                        # the formulas below, some seconds
    python -m benchmarks.lattice --estimator CHECKOUT   # malb/lattice-estimator itself, some minutes

The estimator needs a part of Sage: in an environment of its own, `pip install passagemath-standard` and this project;
CHECKOUT is a clone of the estimator at COMMIT. Neither is a dependency, and no test runs either.

Formulas: the primal attack [ADPS16, BG14] under the geometric series assumption, with any number of samples; the dual
hybrid attack of [MATZOV22], Theorem 7.6, whose independence heuristic is disputed [DP23]: what attackers hope for. In
both, an SVP call costs 2^(c·β) and nothing else (core-SVP).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from he_engine.params import ETA, NOISE_VARIANCE, RINGS, TERNARY_VARIANCE, Profile, Ring
from he_engine.security import TABLE

COMMIT = "27a581b"  #: of malb/lattice-estimator, for which he_engine.security has the figures
CLASSICAL, QUANTUM, AGGRESSIVE = 0.292, 0.265, 0.257  #: bits of one SVP call for each unit of β
SIEVE = 0.2075  #: log2 of the vectors that one sieve gives, likewise
SAMPLES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)  #: of n, tried for the dual attack
RINGS_BY_NAME = {"N = 2048": RINGS[Profile.COMPACT], "N = 4096": RINGS[Profile.EXACT]}


@dataclass(frozen=True, slots=True)
class Problem:
    """LWE: dimension, modulus, variances of secret and error."""

    n: int
    q: int
    secret: float = TERNARY_VARIANCE
    error: float = NOISE_VARIANCE

    @classmethod
    def of(cls, ring: Ring) -> Problem:
        return cls(ring.degree, ring.modulus)


Attack = tuple[float, tuple[int, int, int, int, int]]  #: bits, (β, m, p, ζ, t)


def log2_delta(beta: int) -> float:
    """log2 of the root Hermite factor of BKZ-β."""
    return math.log2((math.pi * beta) ** (1 / beta) * beta / (2 * math.pi * math.e)) / (2 * (beta - 1))


# ---- the primal attack -------------------------------------------------------------------------------------
def primal(problem: Problem) -> int:
    """The smallest β with which the embedding (ξs, e, 1) is found, over every number of samples."""
    n, log2_q = problem.n, math.log2(problem.q)
    log2_error = math.log2(problem.error) / 2
    log2_xi = log2_error - math.log2(problem.secret) / 2
    for beta in range(50, 4 * n):
        step = log2_delta(beta)
        dimension = max(round(math.sqrt(((n + 1) * log2_q - n * log2_xi) / step)), n + 2)
        log2_volume = (dimension - n - 1) * log2_q + n * log2_xi
        if log2_error + math.log2(beta) / 2 <= (2 * beta - dimension - 1) * step + log2_volume / dimension:
            return beta
    raise AssertionError("no block size succeeds")


# ---- the dual hybrid attack --------------------------------------------------------------------------------
def dual(problem: Problem, exponent: float, samples: tuple[float, ...] = SAMPLES) -> Attack:
    """The cheapest: ζ coefficients of the secret guessed, t more modulo p by one transform."""

    def cost(beta: int, m: int, p: int, guessed: int, folded: int) -> float:
        return dual_bits(problem, exponent, beta, m, p, guessed, folded)

    def cheapest(*rest: *tuple[int, int, int, int]) -> Attack:
        low, high = 50, 2 * problem.n
        while high - low > 2:  # falls, then rises
            middle = (low + high) // 2
            low, high = (middle, high) if cost(middle + 1, *rest) < cost(middle, *rest) else (low, middle + 1)
        return min((cost(beta, *rest), (beta, *rest)) for beta in range(low, high + 1))

    best: list[Attack] = []
    for m in (round(share * problem.n) for share in samples):
        _, (_, _, p, guessed, folded) = min(
            cheapest(m, p, guessed, folded)
            for p in range(2, 8) for guessed in range(0, 80, 8) for folded in range(0, 160, 8)
        )  # fmt: skip
        near = [range(max(0, number - 8), number + 9) for number in (guessed, folded)]
        best.append(min(cheapest(m, p, guessed, folded) for guessed in near[0] for folded in near[1]))
    return min(best)


def dual_bits(problem: Problem, exponent: float, beta: int, m: int, p: int, guessed: int, folded: int) -> float:
    """[MATZOV22, Theorem 7.6], each sieve at 2^(exponent·β)."""
    rest, log2_q = problem.n - guessed - folded, math.log2(problem.q)
    log2_error, log2_secret = math.log2(problem.error) / 2, math.log2(problem.secret) / 2
    log2_length = (
        (m * log2_error + rest * (log2_secret + log2_q)) / (m + rest)
        + math.log2(4 / 3 * beta / (2 * math.pi * math.e)) / 2 + (m + rest - beta) * log2_delta(beta)
    )  # fmt: skip
    alpha = math.pi**2 * problem.secret
    entropy = (0.5 + math.log(math.sqrt(2 * math.pi * problem.secret)) - math.log(math.tanh(alpha))) / math.log(2)
    bias = 4 * math.pi**2 * 2 ** min(2 * (log2_length - log2_q), 40) + folded / 3 * alpha / p**2
    log2_vectors = bias / math.log(2) + math.log2(guessed * entropy + folded * math.log(p) + math.log(2))
    factor = math.exp(8 * alpha * math.exp(-2 * alpha) * math.tanh(alpha))
    guesses = guessed * (math.log2(2 * factor / math.sqrt(math.e)) + entropy)
    guesses -= math.log2(1 - math.exp(-1 / (2 * problem.secret)))
    transform = math.log2(1024 * folded) + (folded + 1) * math.log2(p) if folded else 0.0
    search = guesses + _log2_sum(transform, math.log2(640) + log2_vectors)
    sieves = exponent * beta + max(0.0, log2_vectors - SIEVE * beta)
    return _log2_sum(search, sieves)


def _log2_sum(x: float, y: float) -> float:
    high, low = max(x, y), min(x, y)
    return high + math.log2(1 + 2 ** max(low - high, -60))


# ---- the estimator -----------------------------------------------------------------------------------------
def estimated(checkout: Path) -> None:
    """The estimator's figures for both rings: minimum over uSVP and dual hybrid."""
    revision = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(f"lattice-estimator at {revision[:7]} (the table: {COMMIT})")
    sys.path.insert(0, str(checkout))
    from estimator import LWE, ND  # type: ignore[import-not-found]
    from estimator.reduction import ADPS16, RC, ChaLoy21  # type: ignore[import-not-found]

    models: dict[str, Any] = {
        "MATZOV": RC.MATZOV,
        "core-SVP classical": ADPS16(mode="classical"),
        "core-SVP quantum": ADPS16(mode="quantum"),
        "0.257 β": ChaLoy21(),
    }
    for name, ring in RINGS_BY_NAME.items():
        problem = LWE.Parameters(
            n=ring.degree, q=ring.modulus, Xs=ND.Uniform(-1, 1), Xe=ND.CenteredBinomial(ETA), tag=name
        )
        for model, cost in models.items():
            attacks: dict[str, Callable[[], Any]] = {
                "uSVP": partial(LWE.primal_usvp, problem, red_cost_model=cost, red_shape_model="gsa"),
                "dual hybrid": partial(LWE.dual_hybrid, problem, red_cost_model=cost),
            }
            bits = {attack: math.log2(float(run()["rop"])) for attack, run in attacks.items()}
            figures = ", ".join(f"{attack} {value:.1f}" for attack, value in bits.items())
            print(f"{name:9} {model:19} {min(bits.values()):6.1f}    {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", type=Path, metavar="CHECKOUT")
    checkout = parser.parse_args().estimator
    if checkout is not None:
        estimated(checkout)
        return
    print("ring      c      primal (β)   dual (β, m, p, ζ, t)               lower, less 52   table")
    for (name, ring), row in zip(RINGS_BY_NAME.items(), TABLE, strict=True):
        problem = Problem.of(ring)
        beta = primal(problem)
        table = {CLASSICAL: row.core_svp_classical, QUANTUM: row.core_svp_quantum}
        for c in (CLASSICAL, QUANTUM, AGGRESSIVE):
            bits, at = dual(problem, c)
            least = min(bits, c * beta)
            print(
                f"{name:9} {c:.3f}  {c * beta:.1f} ({beta})  {bits:.1f} {at!s:28} {least:6.1f}  {least - 52:.1f}   "
                f"{table.get(c, '–')}",
                flush=True,
            )


if __name__ == "__main__":
    main()

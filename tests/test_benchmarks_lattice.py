"""The attack costs of benchmarks/lattice.py: published figures come out, and the security table is near them."""

from __future__ import annotations

import pytest

from benchmarks.lattice import CLASSICAL, QUANTUM, RINGS_BY_NAME, Problem, dual, dual_bits, primal
from he_engine.security import TABLE

KYBER_512 = Problem(512, 3329, 1.5, 1.5)


def test_published_figures_come_out() -> None:
    """Those that the lattice estimator's documentation prints for Kyber-512 in the core-SVP model."""
    assert primal(KYBER_512) == 406
    assert round(dual_bits(KYBER_512, CLASSICAL, 395, 512, 6, 5, 30), 1) == 115.4
    assert 115 < dual(KYBER_512, CLASSICAL, (1.0,))[0] < 115.4, "it takes steps of five, we of one"


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_the_table_is_near_the_formulas(number: int) -> None:
    """Not above what the best attack costs by a whole bit, and not more than four bits below it."""
    problem, row = Problem.of(list(RINGS_BY_NAME.values())[number]), TABLE[number]
    for c, figure in ((CLASSICAL, row.core_svp_classical), (QUANTUM, row.core_svp_quantum)):
        least = min(c * primal(problem), dual(problem, c, (0.9, 0.95))[0])
        assert figure - 1 < least < figure + 4

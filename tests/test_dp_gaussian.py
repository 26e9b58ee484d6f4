"""The Gaussian mechanism of `he_client.protect.dp`: its calibration, its noise, how often it serves.

Noise has no seed, so statistics are tested with bounds that hold but for a chance of some 1e-8.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle
import sys
from multiprocessing.queues import SimpleQueue
from typing import Any

import numpy as np
import pytest

from he_client.protect.dp import GaussianMechanism
from he_client.protect.dp.calibration import epsilon_of, largest_mu
from he_engine.errors import InvalidInput, MissingExtra, SecretReuseError
from tests.dp_fixture import delta_of

COUNT = 40_000
SIGMAS = 6


@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 0.1, 1.0, 3.0, 8.0, 64.0])
@pytest.mark.parametrize("delta", [0.3, 1e-2, 1e-6, 1e-9])
def test_calibration_is_the_analytic_one(epsilon: float, delta: float) -> None:
    mu = largest_mu(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta < delta_of(epsilon, mu * 1.00001)
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-3, abs=1e-5)
    assert epsilon_of(mu, delta) <= epsilon


def test_known_values() -> None:
    assert delta_of(1, 1) == pytest.approx(0.126936737507)  # Φ(−1/2) − e·Φ(−3/2)
    assert largest_mu(1, 0.126936737507) == pytest.approx(1, rel=1e-6)
    classic = math.sqrt(2 * math.log(1.25e6))  # [Dwork and Roth 2014, Theorem A.1]: σ/Δ at ε = 1, δ = 1e-6
    assert 1 / largest_mu(1, 1e-6) == pytest.approx(4.22468, rel=1e-5) and classic > 5


def test_opendps_own_bound_asks_for_more() -> None:
    """Its proof, by zero-concentrated privacy, is of the very mechanism; ours is tighter, and not by too much."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    unit = 2.0**40
    noise = dp.m.make_gaussian(dp.atom_domain(T="i64"), dp.absolute_distance(T="f64"), scale=unit / largest_mu(1, 1e-6))
    more = dp.m.make_gaussian(
        dp.atom_domain(T="i64"), dp.absolute_distance(T="f64"), scale=1.0725 * unit / largest_mu(1, 1e-6)
    )
    bounds = [dp.c.make_zCDP_to_approxDP(one).map(unit).epsilon(1e-6) for one in (noise, more)]
    assert 1.05 < bounds[0] < 1.1 and bounds[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0, 1e-6), (-1, 1e-6), (math.nan, 1e-6), (math.inf, 1e-6), ("1", 1e-6), (True, 1e-6), (1e9, 1e-6),
     (1, 0), (1, 1), (1, -0.1), (1, 1.5), (1, math.nan), (1, None)],
)  # fmt: skip
def test_what_is_no_privacy(epsilon: Any, delta: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^(epsilon|delta): got .*, expected a number from"):
        largest_mu(epsilon, delta)


@pytest.mark.parametrize(("mu", "releases", "sensitivity"), [(0.5, 1, 1.0), (3.0, 4, 0.013), (1e-4, 1, 700.0)])
def test_the_noise_is_gaussian(mu: float, releases: int, sensitivity: float) -> None:
    sigma = sensitivity * math.sqrt(releases) / mu
    z = GaussianMechanism(mu, releases).release(np.zeros(COUNT), sensitivity=sensitivity) / sigma
    assert abs(z.mean()) < SIGMAS / math.sqrt(COUNT)
    assert abs(z.var() - 1) < SIGMAS * math.sqrt(2 / COUNT)
    for bound in (0.5, 1, 2, 3):
        share = math.erf(bound / math.sqrt(2))
        assert abs((np.abs(z) < bound).mean() - share) < SIGMAS * math.sqrt(share * (1 - share) / COUNT)


def test_noise_is_independent_of_values_neighbours_and_releases() -> None:
    mechanism = GaussianMechanism(1.0, 2)
    values = np.linspace(-3, 3, COUNT)
    first, second = (mechanism.release(values, sensitivity=1.0) - values for _ in range(2))
    for one, other in ((first, second), (first, values), (first[1:], first[:-1]), (first**2, second**2)):
        assert abs(np.corrcoef(one, other)[0, 1]) < SIGMAS / math.sqrt(COUNT - 1)
    assert not (first == second).any()


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12])
def test_results_are_on_the_grid(scale: float) -> None:
    """So the last bits of a result say nothing of the value under the noise."""
    values = np.array([0.1, -1 / 3, 1e-17, 0.7]) * scale
    mechanism = GaussianMechanism(1.0)
    noisy = mechanism.release(values, sensitivity=scale)
    _, exponent = math.frexp(scale * mechanism.noise_multiplier)
    step = 2.0 ** (exponent - 41)
    assert (noisy / step == np.rint(noisy / step)).all()


def test_values_far_above_the_noise() -> None:
    values = np.array([1e150, -1e150, 2.0**60])
    assert np.allclose(GaussianMechanism(1.0).release(values, sensitivity=1.0), values, rtol=1e-15)


def test_as_many_releases_as_were_paid_for() -> None:
    mechanism = GaussianMechanism(1.0, 2)
    for bad in (np.array([]), np.array([1.0, np.nan]), np.array([np.inf])):
        with pytest.raises(InvalidInput, match="values"):
            mechanism.release(bad, sensitivity=1.0)
    for sensitivity in (0, -1, math.nan, math.inf, "1"):
        with pytest.raises(InvalidInput, match="sensitivity"):
            mechanism.release(np.zeros(1), sensitivity=sensitivity)  # type: ignore[arg-type]
    for _ in range(2):
        mechanism.release(np.zeros(1), sensitivity=1.0)
    with pytest.raises(SecretReuseError, match="spend again"):
        mechanism.release(np.zeros(1), sensitivity=1.0)


def test_no_copies() -> None:
    mechanism = GaussianMechanism(1.0)
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(SecretReuseError):
            make(mechanism)


def _in_a_child(mechanism: GaussianMechanism, said: SimpleQueue[Any]) -> None:
    try:
        mechanism.release(np.zeros(1), sensitivity=1.0)
        said.put("released")
    except SecretReuseError:
        said.put(GaussianMechanism(1.0).release(np.zeros(4), sensitivity=1.0).tolist())


def test_forks_share_neither_releases_nor_noise() -> None:
    fork = multiprocessing.get_context("fork")
    paid = GaussianMechanism(1.0)
    GaussianMechanism(1.0).release(np.zeros(1), sensitivity=1.0)  # the generator has begun
    said = fork.SimpleQueue()
    children = [fork.Process(target=_in_a_child, args=(paid, said)) for _ in range(2)]
    for child in children:
        child.start()
    noise = [said.get() for _ in children]
    for child in children:
        child.join()
    noise.append(GaussianMechanism(1.0).release(np.zeros(4), sensitivity=1.0).tolist())
    assert "released" not in noise
    assert len({value for four in noise for value in four}) == 12


@pytest.mark.parametrize("package", ["opendp.prelude", "dp_accounting"])
def test_without_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[protect\]'"):
        GaussianMechanism(largest_mu(1, 1e-6))

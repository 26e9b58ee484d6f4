"""The model of a cluster: formulas against numbers worked out by hand, and the measured facts against the figures."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import scale_costs
from benchmarks.markdown import Run
from he_client import Client, CollectionKey, InvalidInput, collection
from he_client.plan import CALL_S
from he_client.scaling.cluster import ENTRY_BYTES, Between, Demand, Node, plan_cluster
from he_client.scaling.measured import measured
from he_client.scaling.sharing import Sharing
from he_client.scaling.stragglers import expected_maximum, hedged_after
from he_engine.params import Profile

DEMAND = Demand(rows=1_000_000_000, dim=768, queries_per_s=0.1)
NODE = Node(scan_bytes_per_s=40e9, memory_bytes=64e9, network_bytes_per_s=1.25e9, price_per_hour=0.3)
BETWEEN = Between(link_bytes_per_s=125e6, round_trip_s=1e-3, node_round_trip_s=2e-4, client_threads=8)


def test_measured_costs_are_those_of_the_figures() -> None:
    run = Run(scale_costs.FIGURES)
    assert scale_costs.COSTS.read_text() == scale_costs.costs(run), "run `python -m benchmarks.scale_costs`"


def test_the_spread_is_that_of_an_exponential_rest() -> None:
    """Runs of 15 rounds of 2 + 0.5·E: in the mean of many, c = 0.25 comes out again."""
    random = np.random.default_rng(1)
    found = []
    for times in 2 + 0.5 * random.exponential(size=(4000, 15)):
        figures = {"arguments": {"rounds": 15}, "times_s": {"server": {"min": times.min(), "max": times.max()}}}
        found.append(scale_costs.spread(figures))
    assert np.mean(found) == pytest.approx(0.25, rel=0.02)


# ---- sharing -------------------------------------------------------------------------------------------------
def test_sharing_goes_through_its_points_and_is_straight_in_the_logarithm() -> None:
    sharing = Sharing({1: 1.0, 2: 1.5, 8: 2.5}, 32)
    assert [sharing.gain(b) for b in (0, 1, 2, 8, 32, 100)] == [0, 1, 1.5, 2.5, 2.5, 2.5]
    assert sharing.gain(4) == pytest.approx(2.0)  # half way from 2 to 8
    assert Sharing({8: 2.5}, 2).gain(100) == pytest.approx(1.5)  # a third of the way from 1 to 8, and no more than 2


def test_riders_without_sharing_are_those_of_processor_sharing() -> None:
    """M/G/1-PS: E[b] = a/(1 − a)."""
    for batch in (1, 7, 32):
        assert Sharing({}, batch).riders(0.8) == pytest.approx(4.0)
    assert Sharing({}, 32).riders(1.0) == math.inf


def test_riders_with_perfect_sharing_are_a_poisson_number() -> None:
    """f(b) = b: M/G/∞, E[b] = a."""
    assert Sharing({b: float(b) for b in range(1, 65)}, 64).riders(3.0) == pytest.approx(3.0)


def test_riders_of_two_servers_are_those_of_erlang() -> None:
    """f(b) = min(b, 2): M/M/2 with a = 1 has E[b] = 2ρ/(1 − ρ²), ρ = 1/2: 4/3."""
    assert Sharing({1: 1.0, 2: 2.0}, 2).riders(1.0) == pytest.approx(4 / 3)


@pytest.mark.parametrize(("points", "batch"), [({2: 2.5}, 2), ({2: 0.9}, 2), ({}, 0)])
def test_sharing_that_cannot_be(points: dict[int, float], batch: int) -> None:
    with pytest.raises(InvalidInput, match="got"):
        Sharing(points, batch)


# ---- stragglers ----------------------------------------------------------------------------------------------
def test_the_slowest_of_n() -> None:
    assert expected_maximum(1, 0.1) == pytest.approx(1.1)
    assert expected_maximum(4, 0.1) == pytest.approx(1 + 0.1 * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert expected_maximum(5000, 1.0) == pytest.approx(1 + math.fsum(1 / i for i in range(1, 5001)), abs=1e-12)
    assert expected_maximum(1000, 0.0) == expected_maximum(1000, 0.0, 0.9) == 1
    assert expected_maximum(50, 0.1, 1 - 1e-12) == pytest.approx(expected_maximum(50, 0.1), rel=1e-6)
    assert hedged_after(0.1, 1 - math.exp(-2)) == pytest.approx(1.2)


@pytest.mark.parametrize(("shards", "spread"), [(1, 2.0), (20, 2.0), (200, 0.8)])
def test_hedging_is_the_first_of_two(shards: int, spread: float) -> None:
    """Against 20,000 draws: within four standard errors."""
    random, after = np.random.default_rng(5), hedged_after(spread, 0.9)
    first, second = (1 + spread * random.exponential(size=(20_000, shards)) for _ in range(2))
    slowest = np.minimum(first, after + second).max(axis=1)
    error = slowest.std() / math.sqrt(len(slowest))
    assert abs(expected_maximum(shards, spread, 0.9) - slowest.mean()) < 4 * error
    assert expected_maximum(shards, spread, 0.9) < expected_maximum(shards, spread)


def test_hedging_gains_nothing_where_no_pass_takes_two() -> None:
    assert expected_maximum(1000, 0.02, 0.95) == pytest.approx(expected_maximum(1000, 0.02), rel=1e-6)


@pytest.mark.parametrize(
    ("shards", "spread", "hedge"), [(0, 0.1, None), (1, -1, None), (1, math.nan, None), (1, 1, 1.0), (1, 1, 0.0)]
)
def test_stragglers_that_cannot_be(shards: int, spread: float, hedge: float | None) -> None:
    with pytest.raises(InvalidInput, match="got"):
        expected_maximum(shards, spread, hedge)


# ---- the plan ------------------------------------------------------------------------------------------------
def test_a_billion_rows_by_hand() -> None:
    """10⁹ × 768 at 4 bytes are 3.072 TB; a node of 64 GB holds 54.4 of them: 57 nodes, each of 53.9 GB."""
    plan, known = plan_cluster(DEMAND, NODE, BETWEEN, 0.1), measured(Profile.COMPACT)
    assert plan.index_bytes == pytest.approx(3.072e12, rel=1e-6)
    assert (plan.shards, plan.replicas, plan.nodes, plan.nodes_limit) == (57, 1, 57, "memory")
    assert plan.pass_s == pytest.approx(3.072e12 / 57 / 40e9, rel=1e-6)  # 1.35 s
    assert plan.answer_bytes == pytest.approx(4e9, rel=1e-6)
    assert plan.fan_out_bytes == 57 * 196_608
    harmonic = sum(1 / i for i in range(1, 58))
    assert plan.straggling == pytest.approx((1 + 0.1 * harmonic) / 1.1)
    assert plan.capacity_per_s == pytest.approx(known.sharing[32] / plan.pass_s)
    assert plan.batch_pass_s == pytest.approx(32 * plan.pass_s / known.sharing[32])
    stages = plan.stages_s
    assert stages["client's link"] == pytest.approx(1e-3 + (4e9 + 196_608) / 125e6, rel=1e-6)  # 32 s
    assert stages["front end's answers"] == pytest.approx(4e9 / 491e6, rel=1e-6)  # gRPC is slower than the network
    assert stages["client's work"] == pytest.approx(known.query_s + 1e9 * known.recover_row_s / 8)
    before_s = known.query_s + 2 * CALL_S + 1.2e-3 + 196_608 / 125e6 + stages["front end's calls"]
    assert plan.latency_s == pytest.approx(before_s + 4e9 / 125e6, rel=1e-6)
    assert plan.front_ends == math.ceil(0.1 * (4e9 + 57 * 196_608) / (0.7 * 491e6)) == 2
    assert plan.price_per_hour == pytest.approx(59 * 0.3)
    assert plan.price_per_million == pytest.approx(59 * 0.3 / 360 * 1e6 + 4 * 0.05 * 1e6, rel=1e-6)
    assert plan.limit == "client's memory" and plan.client_memory_bytes > BETWEEN.client_memory_bytes


QUICK_CLIENT = {"client_memory_bytes": 1e12, "link_bytes_per_s": 1e12}


@pytest.mark.parametrize(
    ("between", "node", "rows", "limit"),
    [
        ({}, {}, 1_000_000_000, "client's memory"),
        ({"client_memory_bytes": 1e12}, {}, 1_000_000_000, "client's link"),
        (QUICK_CLIENT, {}, 1_000_000_000, "front end's answers"),
        ({}, {}, 10_000_000, "shards' memory"),
        (QUICK_CLIENT, {"memory_bytes": 1e8}, 20_000_000, "front end's calls"),
        (QUICK_CLIENT | {"client_threads": 1}, {}, 1_000_000_000, "client's work"),
    ],
)
def test_what_limits(between: dict[str, float], node: dict[str, float], rows: int, limit: str) -> None:
    assert plan_cluster(replace(DEMAND, rows=rows), replace(NODE, **node), replace(BETWEEN, **between)).limit == limit


def test_more_queries_than_a_copy_carries_want_more_copies() -> None:
    one = plan_cluster(DEMAND, NODE, BETWEEN)
    asked = 3 * one.capacity_per_s
    plan = plan_cluster(replace(DEMAND, queries_per_s=asked), NODE, BETWEEN)
    assert plan.replicas == math.ceil(3 / 0.7) == 5 and plan.nodes == 5 * 57 and plan.nodes_limit == "queries"
    assert asked <= 0.7 * plan.capacity_per_s
    sharing = Sharing(measured(Profile.COMPACT).sharing, 32)
    offered = asked / 5 * plan.pass_s
    assert plan.loaded_pass_s == pytest.approx(plan.pass_s * sharing.riders(offered) / offered)


def test_rows_grow() -> None:
    grown = replace(DEMAND, rows=1000, growth=0.5, years=2)
    assert grown.planned_rows == 2250
    assert plan_cluster(grown, NODE, BETWEEN) == plan_cluster(replace(DEMAND, rows=2250), NODE, BETWEEN)


def test_given_nodes_are_taken_if_they_suffice() -> None:
    plan = plan_cluster(replace(DEMAND, shards=120), NODE, BETWEEN)
    assert (plan.shards, plan.shards_for_memory, plan.nodes_limit) == (120, 57, "given")
    assert plan.pass_s == pytest.approx(3.072e12 / 120 / 40e9, rel=1e-6)
    with pytest.raises(InvalidInput, match=r"nodes: got 56 .* expected at least 57"):
        plan_cluster(replace(DEMAND, shards=56), NODE, BETWEEN)


def test_more_rows_never_cost_less() -> None:
    plans = [plan_cluster(replace(DEMAND, rows=10**n), NODE, BETWEEN) for n in range(11)]
    names = ("index_bytes", "nodes", "answer_bytes", "client_memory_bytes", "latency_s", "price_per_hour")
    for less, more in itertools.pairwise(plans):
        assert all(getattr(less, name) <= getattr(more, name) for name in names)


@pytest.mark.parametrize(
    "changed",
    [
        {"growth": -1.0}, {"growth": math.inf}, {"rows": 0}, {"growth": 9.0, "years": 1e9}, {"replicas": 0},
        {"queries_per_s": 0.0}, {"hedge": 0.9},
    ],
)  # fmt: skip
def test_demands_that_cannot_be(changed: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="got"):
        replace(DEMAND, **changed)


def test_entries_of_a_manifest_are_as_long_as_planned(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of small segments; those of real ones have up to two bytes more in each of seven numbers."""
    monkeypatch.setattr(collection, "SEGMENT_BYTES", 1 << 14)
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=8, key=CollectionKey.generate(), profile="compact", stride=4)
        made.insert(range(4000), rng.normal(size=(4000, 8)).astype(np.float32))
        message = made._state.current[0].message
        lengths = [entry.ByteSize() for entry in message.segments]
        assert len(lengths) > 1
        assert ENTRY_BYTES - 20 < max(lengths) <= ENTRY_BYTES

"""The simulation of a cluster: against queueing theory where that has closed forms, and for what it promises else.

Means of long seeded runs are compared within a few per cent: several times the error that such a run has.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from random import Random

import pytest

from he_client import InvalidInput
from he_client.scaling import simulation
from he_client.scaling.cluster import Between, Demand, Node, plan_cluster
from he_client.scaling.measured import measured
from he_client.scaling.pipe import Pipe
from he_client.scaling.service_times import MeasuredTimes, ShiftedExponential
from he_client.scaling.shard import Shard
from he_client.scaling.sharing import Sharing
from he_client.scaling.simulated import Failures, Simulated
from he_client.scaling.simulation import MAX_TASKS, simulate
from he_client.scaling.stragglers import expected_maximum
from he_engine.params import Profile

ALONE = Simulated(shards=1, sharing=Sharing({}, 1), times=ShiftedExponential(1.0, 0.0), queries_per_s=0.5)
SELDOM = replace(ALONE, queries_per_s=1e-4)


# ---- one node ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spread", [0.0, 1e9], ids=["M/D/1-PS", "M/M/1"])
@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_node_without_sharing(load: float, spread: float) -> None:
    """A mean of 1/(1 − ρ): under processor sharing for any law of service, and so as M/M/1 has it."""
    found = simulate(replace(ALONE, times=ShiftedExponential(1.0, spread), queries_per_s=load), 12_000, seed=1)
    assert found.mean_s == pytest.approx(1 / (1 - load), rel=0.05)
    assert found.utilisation == pytest.approx(load, rel=0.03)
    assert found.throughput_per_s == pytest.approx(load, rel=0.03)
    assert found.riders == pytest.approx(found.mean_s * load, rel=0.05)  # Little's law


@pytest.mark.parametrize("load", [0.5, 1.2, 1.8])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_one_node_with_measured_sharing(load: float, spread: float) -> None:
    sharing = Sharing(measured(Profile.COMPACT).sharing, 32)
    times = ShiftedExponential(1.0, spread)
    found = simulate(replace(ALONE, sharing=sharing, times=times, queries_per_s=load), 12_000, seed=3)
    assert found.mean_s == pytest.approx(sharing.riders(load) / load, rel=0.07)
    assert found.riders == pytest.approx(sharing.riders(load), rel=0.07)


def test_nobody_delays_anybody_with_perfect_sharing() -> None:
    perfect = Sharing({b: float(b) for b in range(1, 65)}, 64)
    found = simulate(replace(ALONE, sharing=perfect, queries_per_s=5.0), 2000, seed=1)
    assert found.p50_s == pytest.approx(1.0) and found.p99_s == pytest.approx(1.0)


def test_beyond_its_capacity_a_node_answers_as_many_as_it_can() -> None:
    found = simulate(replace(ALONE, sharing=Sharing({2: 1.6}, 2), queries_per_s=10.0), 5000, seed=1)
    assert found.throughput_per_s == pytest.approx(1.6, rel=0.12)  # the first queries came before the count began
    assert found.utilisation == pytest.approx(1.0, abs=0.01)


def test_who_shares_a_pass_by_hand() -> None:
    """Two at a rate of 0.75 each: the first, alone for 0.4 s, needs (1 − 0.4)/0.75 = 0.8 s more."""
    shard = Shard(Sharing({2: 1.5}, 2))
    shard.join(0.0, 7, 1.0)
    shard.join(0.4, 8, 1.0)
    assert shard.next() == (pytest.approx(1.2), 7)
    shard.leave(1.2, 7)
    assert shard.next() == (pytest.approx(1.6), 8)  # 0.6 of 1 are done, and it is alone again
    shard.leave(1.3, 8)
    assert shard.next() is None and len(shard) == 0
    assert shard.busy_s == pytest.approx(1.3) and shard.ridden_s == pytest.approx(1.3 + 0.8)


# ---- network -------------------------------------------------------------------------------------------------
def test_a_pipe_is_a_queue_with_fixed_service() -> None:
    """M/D/1: a mean wait of ρ/(2(1 − ρ)) services."""
    random, pipe, now_s, waited_s, count = Random(2), Pipe(1.0), 0.0, 0.0, 100_000
    for _ in range(count):
        now_s += random.expovariate(0.6)
        waited_s += pipe.send(now_s, 1.0) - now_s - 1.0
    assert waited_s / count == pytest.approx(0.6 / (2 * 0.4), rel=0.04)


def test_bytes_pass_while_they_come() -> None:
    pipe = Pipe(1e9)
    assert pipe.stream(0.0, 10.0, 4e9) == pytest.approx(10.0 + (1 << 20) / 1e9)
    assert pipe.stream(5.0, 6.0, 4e9) == pytest.approx(9.0)
    assert pipe.carried_bytes == 8e9


def test_what_one_query_meets_by_hand() -> None:
    """Two shards, one query at a time: 1 + 2·(0.1 + 0.2) + 0.3 until the second begins; 3 s of pass; 8 GB at 1 GB/s to
    the client, who has had the first since 1.6 s; and 0.5 s back."""
    one = replace(
        SELDOM, shards=2, times=ShiftedExponential(3.0, 0.0), query_bytes=2e8, answer_bytes=8e9,
        front_end_bytes_per_s=1e9, before_s=1.0, after_s=0.5, dispatch_s=0.1, node_call_s=0.3,
    )  # fmt: skip
    # The calls: 1.1 → 1.3 → 1.6 and 1.3 (its own 0.2 s of sending after 1.3) → 1.5 → 1.8.
    first, second = 1.6, 1.8
    from_shards = max(max(first + 4.0, second) + 4.0, second + 3.0 + (1 << 20) / 1e9)
    to_client = max(first + 8.0, from_shards + (1 << 20) / 1e9)
    assert simulate(one, 10, seed=1).p50_s == pytest.approx(to_client + 0.5)
    slow = replace(one, link_bytes_per_s=0.4e9)  # 0.5 s to send the query, 20 s for the answers
    assert simulate(slow, 10, seed=1).p50_s == pytest.approx(first + 0.5 + 20.0 + 0.5)
    assert simulate(replace(one, recover_s=100.0), 10, seed=1).p50_s == pytest.approx(first + 100.0)


# ---- shards, copies, failures --------------------------------------------------------------------------------
@pytest.mark.parametrize(("shards", "queries"), [(2, 4000), (50, 600), (1000, 40)])
def test_the_slowest_shard(shards: int, queries: int) -> None:
    """Within four standard errors: the maximum of exponentials of mean c deviates by less than c·π/√6."""
    found = simulate(replace(SELDOM, shards=shards, times=ShiftedExponential(1.1, 0.1)), queries, seed=1)
    error = 0.1 * math.pi / math.sqrt(6 * found.queries)
    assert abs(found.mean_s - expected_maximum(shards, 0.1)) < 4 * error


def test_hedging_is_as_the_model_has_it() -> None:
    hedged = replace(SELDOM, shards=20, replicas=2, times=ShiftedExponential(3.0, 2.0), hedge=0.9)
    found, plain = simulate(hedged, 1000, seed=1), simulate(replace(hedged, hedge=None), 1000, seed=1)
    assert found.mean_s == pytest.approx(expected_maximum(20, 2.0, 0.9), rel=0.03)
    assert found.hedged == pytest.approx(0.1 / 1.1, rel=0.05)  # a tenth of the shards is asked twice
    assert found.p99_s < plain.p99_s and plain.hedged == 0


def test_copies_share_the_queries() -> None:
    one, two = (simulate(replace(ALONE, replicas=r, queries_per_s=0.8), 10_000, seed=1) for r in (1, 2))
    assert two.utilisation == pytest.approx(0.4, rel=0.05) and one.utilisation == pytest.approx(0.8, rel=0.05)
    assert two.mean_s < one.mean_s


def test_failures_with_and_without_another_copy() -> None:
    """A node is down for R of every T + R seconds. Without copies, queries of that time fail, and those under way."""
    failures = Failures(mean_time_between_s=900.0, repair_s=100.0, noticed_after_s=2.0)
    alone = simulate(replace(ALONE, queries_per_s=0.1, failures=failures), 20_000, seed=1)
    assert alone.failed / alone.queries == pytest.approx(0.1 + 0.9 / 900, rel=0.15)
    twice = simulate(replace(ALONE, queries_per_s=0.1, replicas=2, failures=failures), 20_000, seed=1)
    assert 0.005 < twice.failed / twice.queries < 0.02  # 0.1², both down
    assert twice.queries == alone.queries == 18_000


def test_a_node_that_fails_loses_what_it_computes() -> None:
    """Passes of 100 s, failures every 200 s: e^(-1/2) of the passes end; the others begin again after 2 s."""
    failures = Failures(mean_time_between_s=200.0, repair_s=1e-3, noticed_after_s=2.0)
    times = ShiftedExponential(100.0, 0.0)
    found = simulate(replace(SELDOM, replicas=2, times=times, failures=failures), 500, seed=1)
    assert found.failed == 0
    assert found.hedged == pytest.approx(1 - math.exp(-0.5), rel=0.15)
    assert found.p50_s == pytest.approx(100.0) and found.p99_s > 202.0


def test_a_simulation_that_does_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MAX_EVENTS", 10_000)
    failures = Failures(mean_time_between_s=1.0, repair_s=1e-6)
    with pytest.raises(InvalidInput, match="10,000 events"):
        simulate(replace(SELDOM, times=ShiftedExponential(1e6, 0.0), failures=failures, replicas=2), 10, seed=1)


# ---- seeds, inputs -------------------------------------------------------------------------------------------
def _planned(nodes: int | None = None) -> Simulated:
    demand = Demand(rows=100_000_000, dim=768, shards=nodes, replicas=2, hedge=0.95)
    node, between = Node(scan_bytes_per_s=40e9), Between()
    plan = plan_cluster(demand, node, between)
    return Simulated.of(plan, demand, node, between, failures=Failures(mean_time_between_s=1e5, repair_s=600.0))


def test_a_seed_is_a_run() -> None:
    simulated = _planned()
    first, again, other = (asdict(simulate(simulated, 300, seed)) for seed in (4, 4, 5))
    assert first == again != other


def test_a_plan_is_simulated_as_the_model_has_it() -> None:
    """Where queries are seldom, its mean is the formula's."""
    demand, node, between = Demand(rows=10_000_000, dim=768, queries_per_s=1e-3), Node(scan_bytes_per_s=40e9), Between()
    plan = plan_cluster(demand, node, between)
    found = simulate(Simulated.of(plan, demand, node, between), 2000, seed=1)
    assert found.mean_s == pytest.approx(plan.latency_s, rel=0.02)


def test_a_thousand_nodes() -> None:
    found = simulate(_planned(500), 20, seed=1)
    assert found.failed == 0 and 0 < found.p50_s <= found.p99_s < 60


def test_measured_times_are_drawn_as_often_as_they_are_there() -> None:
    times, random = MeasuredTimes([3.0, 1.0, 2.0, 1.0]), Random(1)
    drawn = [times.draw(random) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1.75, rel=0.02)
    assert drawn.count(1.0) / len(drawn) == pytest.approx(0.5, abs=0.015)
    assert [times.quantile(p) for p in (0.1, 0.5, 0.9)] == [1.0, 2.0, 3.0]
    assert ShiftedExponential(2.2, 0.1).quantile(1 - math.exp(-1)) == pytest.approx(2.2)


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(InvalidInput, match="got 9 queries"):
        simulate(ALONE, 9, seed=1)
    with pytest.raises(InvalidInput, match="at most"):
        simulate(replace(ALONE, shards=1000), MAX_TASKS // 1000 + 1, seed=1)
    with pytest.raises(InvalidInput, match="0 shards"):
        replace(ALONE, shards=0)
    with pytest.raises(InvalidInput, match="hedge: got 1 copy"):
        replace(ALONE, hedge=0.9)
    with pytest.raises(InvalidInput, match="measured passes"):
        MeasuredTimes([])
    with pytest.raises(InvalidInput, match="pass: got 0 s"):
        ShiftedExponential(0.0, 0.1)

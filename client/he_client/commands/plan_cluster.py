"""`hesearch plan --cluster`: what a collection costs on many nodes, from measured rates; and a simulation of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

from he_client.commands.argument_types import not_negative, positive, whole
from he_client.commands.common import report
from he_client.commands.units import duration, size
from he_client.scaling.cluster import BUSY, FULL, Between, ClusterPlan, Demand, Node, plan_cluster
from he_client.scaling.measured import facts, measured
from he_client.scaling.simulated import Failures, Outcome, Simulated
from he_client.scaling.simulation import simulate
from he_engine.params import Profile

LINK_MBPS = 1000.0  #: where none is given
_DAY_S = 86_400.0
_NODE = Node(scan_bytes_per_s=facts()["scan_bytes_per_s"])
_BETWEEN = Between()
_NAMES = (
    "growth", "years", "queries_per_s", "batch", "replicas", "nodes", "front_ends", "node_memory_gb", "node_rtt_ms",
    "node_network_gbit", "node_price", "price_per_gb", "client_threads", "client_memory_gb", "spread", "hedge",
    "simulate", "seed", "failures_days", "repair_s",
)  # fmt: skip


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The options of --cluster."""
    demand = Demand(rows=1, dim=1)
    options = parser.add_argument_group(
        "a cluster", "With --cluster nothing is measured here: rates are those of docs/figures, and what cannot be "
        "measured on one machine (network, prices) is an assumption that you replace. --server-gb-s is a node's rate.",
    )  # fmt: skip
    options.add_argument("--cluster", action="store_true", help="plan nodes of a cluster instead of a stride")

    def add(name: str, kind: Callable[[str], float], default: float | None, metavar: str, text: str) -> None:
        shown = "" if default is None else f" (default {default:g})"
        options.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text + shown)

    add("growth", not_negative, demand.growth, "G", "of the rows in a year: 0.5 is half as many more")
    add("years", not_negative, demand.years, "Y", "plan for the rows after so many")
    add("queries-per-s", positive, demand.queries_per_s, "Q", "that come, in the mean")
    add("batch", whole, demand.batch, "B", "queries that share a pass over the index, at most")
    add("replicas", whole, demand.replicas, "R", "copies of each shard, at least; more where the queries need them")
    add("nodes", whole, None, "N", "shards of one copy, a node each (default: as few as memory admits)")
    add("front-ends", whole, None, "F", "default: as many as their network wants")
    add("node-memory-gb", positive, _NODE.memory_bytes / 1e9, "M", f"{FULL * 100:.0f} %% of it for the index")
    add("node-network-gbit", positive, _NODE.network_bytes_per_s * 8 / 1e9, "W", "of a node, of a front end, Gbit/s")
    add("node-rtt-ms", not_negative, _BETWEEN.node_round_trip_s * 1e3, "R", "round trip, front end to node")
    add("node-price", not_negative, _NODE.price_per_hour, "P", "of a node or front end, USD an hour")
    add("price-per-gb", not_negative, _BETWEEN.price_per_gb, "P", "of answers sent to clients, USD")
    add("client-threads", whole, _BETWEEN.client_threads, "T", "that verify and decrypt")
    add("client-memory-gb", positive, _BETWEEN.client_memory_bytes / 1e9, "M", "of a client")
    add("spread", not_negative, None, "C", f"of a pass: mean of what is beyond its least time (measured: "
        f"{facts()['spread']:g})")  # fmt: skip
    add("hedge", positive, None, "P", "quantile of a pass after which another copy is asked, too, such as 0.95; "
        "with --replicas 2 or more (default: none is)")  # fmt: skip
    add("simulate", whole, None, "Q", "so many queries, one by one, beside the formulas")
    add("seed", whole, 1, "S", "of the simulation")
    add("failures-days", positive, None, "D", "in the simulation a node fails after so many days, in the mean")
    add("repair-s", positive, 600.0, "S", "and comes back after so many seconds")


def misplaced(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str | None:
    """What is wrong with an option that was given and means nothing beside the others."""
    rules: list[tuple[str, tuple[str, ...]]] = []
    if not arguments.cluster:
        rules.append(("only with --cluster", _NAMES))
    else:
        rules.append(("not with --cluster", ("queries", "threads")))
        if arguments.simulate is None:
            rules.append(("only with --simulate", ("seed", "failures_days")))
        if arguments.failures_days is None:
            rules.append(("only with --failures-days", ("repair_s",)))
        if not arguments.growth:
            rules.append(("only with --growth", ("years",)))
        if not arguments.years:
            rules.append(("only with --years", ("growth",)))
    for rule, names in rules:
        for name in names:
            if getattr(arguments, name) != parser.get_default(name):
                return f"--{name.replace('_', '-')}: {rule}"
    return None


def given(arguments: argparse.Namespace) -> tuple[Demand, Node, Between]:
    demand = Demand(
        rows=arguments.rows,
        dim=arguments.dim,
        profile=Profile(arguments.profile),
        growth=arguments.growth,
        years=arguments.years,
        queries_per_s=arguments.queries_per_s,
        batch=arguments.batch,
        replicas=arguments.replicas,
        shards=arguments.nodes,
        front_ends=arguments.front_ends,
        hedge=arguments.hedge,
    )
    rate = measured(demand.profile).scan_bytes_per_s
    node = Node(
        scan_bytes_per_s=rate if arguments.server_gb_s is None else arguments.server_gb_s * 1e9,
        memory_bytes=arguments.node_memory_gb * 1e9,
        network_bytes_per_s=arguments.node_network_gbit * 1e9 / 8,
        price_per_hour=arguments.node_price,
    )
    between = Between(
        link_bytes_per_s=(arguments.link_mbps or LINK_MBPS) * 1e6 / 8,
        round_trip_s=arguments.rtt_ms / 1e3,
        node_round_trip_s=arguments.node_rtt_ms / 1e3,
        client_threads=arguments.client_threads,
        client_memory_bytes=arguments.client_memory_gb * 1e9,
        price_per_gb=arguments.price_per_gb,
    )
    return demand, node, between


def run(arguments: argparse.Namespace) -> int:
    demand, node, between = given(arguments)
    plan = plan_cluster(demand, node, between, arguments.spread)
    outcome = None
    if arguments.simulate is not None:
        days = arguments.failures_days
        failures = days and Failures(mean_time_between_s=days * _DAY_S, repair_s=arguments.repair_s)
        simulated = Simulated.of(plan, demand, node, between, arguments.spread, failures)
        outcome = simulate(simulated, arguments.simulate, arguments.seed)
    fields = {
        "demand": asdict(demand),
        "node": asdict(node),
        "between": asdict(between),
        "measured": facts(),
        "plan": asdict(plan),
        "simulated": outcome and asdict(outcome),
    }
    return report(arguments, fields, text(demand, node, between, plan, outcome))


def text(demand: Demand, node: Node, between: Between, plan: ClusterPlan, outcome: Outcome | None) -> str:
    fits = plan.client_memory_bytes <= between.client_memory_bytes
    at = facts()["scan"]
    lines = [
        f"{plan.rows:,} rows × {demand.dim}, {demand.profile.value}, stride {plan.stride}; {demand.queries_per_s:g} "
        f"queries a second. Extrapolated from {at['rows']:,} rows × {at['dim']} on one machine.",
        f"assumed: nodes of {size(round(node.memory_bytes))}, {FULL:.0%} of it index; "
        f"{node.network_bytes_per_s * 8 / 1e9:g} Gbit/s; {node.price_per_hour:g} USD an hour; "
        f"{between.price_per_gb:g} USD a GB sent; at most {BUSY:.0%} busy",
        "",
        f"  index      {size(plan.index_bytes)}, in at least {plan.collections} collection"
        f"{'s'[: plan.collections > 1]}; {size(round(plan.node_index_bytes))} a node",
        f"  nodes      {plan.nodes:,}: {plan.shards:,} shard{'s'[: plan.shards > 1]} × {plan.replicas}; "
        f"limit: {plan.nodes_limit} (memory alone: {plan.shards_for_memory:,})",
        f"  front ends {plan.front_ends:,}",
        f"  a query    {size(plan.query_bytes)} sent, {size(plan.answer_bytes)} received; "
        f"{size(plan.fan_out_bytes)} from the front end to shards",
        f"  a client   downloads {size(plan.client_cache_bytes)} once, keeps {size(plan.client_memory_bytes)} in memory"
        + ("" if fits else f": more than {size(round(between.client_memory_bytes))}"),
        f"  a pass     {duration(plan.pass_s)} for a query alone, {duration(plan.loaded_pass_s)} beside others "
        f"({plan.pass_riders:.2g} in the mean), {duration(plan.batch_pass_s)} for {demand.batch} at once",
        f"  slowest    × {plan.straggling:.2f} of {plan.shards:,} shard{'s'[: plan.shards > 1]}"
        + ("" if demand.hedge is None else f", asked again after the quantile {demand.hedge:g}"),
        f"  capacity   {plan.capacity_per_s:.3g} queries a second",
        f"  latency    {duration(plan.latency_s)}, of stages that overlap:",
        *(f"    {name:<20} {duration(seconds)}" for name, seconds in plan.stages_s.items()),
        f"  limit      {plan.limit}",
        f"  price      {plan.price_per_hour:,.2f} USD an hour; {plan.price_per_million:,.0f} USD a million queries "
        "at this rate",
    ]
    if outcome is not None:
        lines += [
            "",
            f"simulated, {outcome.queries:,} queries after a tenth to warm up: p50 {duration(outcome.p50_s)}, "
            f"p99 {duration(outcome.p99_s)}, mean {duration(outcome.mean_s)}; {outcome.failed:,} failed",
            f"  {outcome.throughput_per_s:.3g} queries a second; nodes busy {outcome.utilisation:.0%}, front ends' "
            f"network {outcome.front_end_utilisation:.0%}; {outcome.hedged:.1%} of calls asked again",
        ]
    return "\n".join(lines)

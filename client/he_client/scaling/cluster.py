"""What a collection costs that lies on many nodes: memory, time, bytes and money, and which of them is the limit.

Letters: n shards, each on a node of its own, r copies of each; b queries share a pass; λ queries a second. A front end
sends a query to one copy of every shard and their answers to the client. What is measured (he_client.scaling.measured)
comes from one machine of two cores; what cannot be measured there, such as a data centre's network and prices, is an
input. Everything beyond the sizes that were measured is extrapolated, linearly in bytes and rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from he_client.plan import CALL_S, Sizes
from he_client.scaling.measured import measured
from he_client.scaling.sharing import Sharing
from he_client.scaling.stragglers import expected_maximum
from he_engine.errors import InvalidInput
from he_engine.params import Parameters, Profile
from he_proto.wire import MAX_MANIFEST_BYTES

FULL = 0.85  #: of a node's memory holds index; an assumption
BUSY = 0.7  #: of what nodes and front ends can carry is asked of them; an assumption
DISPATCH_S = CALL_S / 2  #: a front end's own time for one shard's call; that it is half of a call is an assumption
ENTRY_BYTES = 220  #: of a manifest, a segment without deleted rows (measured: 209 to 219)
MAX_ROWS = 1e13  #: in the end
_MILLION, _HOUR_S = 1e6, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that holds a shard, or is a front end. The defaults but `scan_bytes_per_s` are assumptions."""

    scan_bytes_per_s: float  #: index read by one query, all threads
    memory_bytes: float = 64e9
    network_bytes_per_s: float = 10e9 / 8
    price_per_hour: float = 0.30


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Client, front end and nodes. The defaults are assumptions."""

    link_bytes_per_s: float = 1e9 / 8  #: client to front end
    round_trip_s: float = 1e-3  #: … and back
    node_round_trip_s: float = 2e-4  #: front end to node and back
    client_threads: int = 8
    client_memory_bytes: float = 64e9
    price_per_gb: float = 0.05  #: of answers sent to clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the cluster. Raises InvalidInput for what no cluster has."""

    rows: int  #: today
    dim: int
    profile: Profile = Profile.COMPACT
    growth: float = 0.0  #: of the rows in a year: 0.5 is half as many more
    years: float = 0.0  #: for which nodes are planned
    queries_per_s: float = 0.1
    batch: int = 32  #: queries that share a pass, at most
    replicas: int = 1  #: copies of each shard, at least
    shards: int | None = None  #: None: as few as memory admits
    front_ends: int | None = None  #: None: as many as their network wants
    hedge: float | None = None  #: quantile of a pass after which another copy is asked; needs 2 replicas

    def __post_init__(self) -> None:
        if not (self.growth > -1 and math.isfinite(self.growth)):
            raise InvalidInput(f"growth: got {self.growth:g}, expected more than -1")
        if self.rows < 1 or math.log(self.rows) + self.years * math.log1p(self.growth) > math.log(MAX_ROWS):
            raise InvalidInput(
                f"rows: got {self.rows:,} and a growth of {self.growth:g} for {self.years:g} years, expected 1 to "
                f"{MAX_ROWS:.0e} in the end"
            )
        if self.replicas < 1:
            raise InvalidInput(f"replicas: got {self.replicas}, expected at least 1")
        if not 0 < self.queries_per_s < math.inf:
            raise InvalidInput(f"queries a second: got {self.queries_per_s:g}, expected more than 0")
        if self.hedge is not None and not 0 < self.hedge < 1:
            raise InvalidInput(f"hedge: got {self.hedge:g}, expected a quantile between 0 and 1")
        if self.hedge is not None and self.replicas < 2:
            raise InvalidInput(f"hedge: got {self.replicas} copy of each shard (replicas), expected at least 2")

    @property
    def planned_rows(self) -> int:
        """rows · (1 + growth)^years."""
        return math.ceil(float(self.rows * (1 + self.growth) ** self.years))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Seconds are of one query; a "stage" is what a part of the cluster does for it."""

    rows: int
    stride: int
    index_bytes: int
    collections: int  #: at least: a manifest names all segments of one, and is bounded
    shards: int
    shards_for_memory: int
    replicas: int
    replicas_for_load: int
    nodes: int  #: shards · replicas
    front_ends: int
    node_index_bytes: float
    query_bytes: int
    answer_bytes: int  #: of one query, to the client
    fan_out_bytes: int  #: of one query, front end to shards
    client_cache_bytes: int  #: downloaded before the first query
    client_memory_bytes: int
    pass_s: float  #: of a query alone: the node's index ÷ its rate
    batch_pass_s: float  #: of `batch` queries at once
    loaded_pass_s: float  #: at the asked rate, with whoever else is there
    straggling: float  #: E max over shards ÷ the mean time of a pass
    pass_riders: float  #: queries in a pass at the asked rate, in the mean
    capacity_per_s: float  #: queries, all copies, where every pass is full
    stages_s: dict[str, float]
    latency_s: float
    limit: str  #: "client's memory" where that does not suffice, or else the stage that takes longest
    nodes_limit: str  #: what asks for so many nodes: "memory", "queries", "copies" or "given"
    price_per_hour: float
    price_per_million: float  #: queries, at the asked rate: nodes, front ends and answers sent


def plan_cluster(demand: Demand, node: Node, between: Between, spread: float | None = None) -> ClusterPlan:
    """The model. Raises InvalidInput where given shards do not fit into memory.

        shards    n = ⌈index / (FULL · memory)⌉, or as given; at most one for each block
        pass      S = (index/n) / rate; of b queries S·b/f(b)         (he_client.scaling.sharing)
        capacity  r · f(batch)/S; r is raised until λ ≤ BUSY · capacity
        loaded    W = S·E[b]/(λS/r): queries that come at random, at all shards at once
        stragglers M = E max over n of (1 + c·E), ÷ (1 + c)           (he_client.scaling.stragglers)
        answers   A = 4·P bytes a row, shards to front end to client; queries Q bytes to each of n shards
        front ends F = ⌈λ·max(A, n·Q + A) / (BUSY · ρ)⌉, ρ = the lesser of its network and one process's gRPC

    A query's stages: the client's own link carries Q + A; a front end calls n shards one after the other, DISPATCH_S
    and Q/ρ each, and takes in A at ρ; shards read W·M; the client verifies and decrypts on its threads. Answers
    flow while shards read and clients decrypt what has come, so

        latency = encrypt + 2 calls + round trips + Q/link + n·(DISPATCH_S + Q/ρ) + max(W·M, A/ρ, A/link, decrypting)

    Price of a million queries: (nodes + front ends) · price / (3600·λ) · 10⁶, and A bytes each over the border.
    """
    known = measured(demand.profile)
    spread = known.spread if spread is None else spread
    sizes = Sizes(Parameters.choose(demand.profile, demand.dim), demand.planned_rows)
    usable = FULL * node.memory_bytes
    least = math.ceil(sizes.index_bytes / usable)
    shards = min(demand.shards or least, sizes.blocks)
    if shards < least:
        raise InvalidInput(
            f"nodes: got {shards} for {sizes.index_bytes / 1e9:,.1f} GB of index, expected at least {least} of "
            f"{node.memory_bytes / 1e9:g} GB"
        )
    pass_s = sizes.index_bytes / shards / node.scan_bytes_per_s
    sharing = Sharing(known.sharing, demand.batch)
    one_copy_per_s = sharing.gain(demand.batch) / pass_s
    for_load = math.ceil(demand.queries_per_s / (BUSY * one_copy_per_s))
    replicas = max(demand.replicas, for_load)
    offered = demand.queries_per_s * pass_s / replicas
    riders = sharing.riders(offered)
    straggling = expected_maximum(shards, spread, demand.hedge) / (1 + spread)
    loaded_s = pass_s * riders / offered
    rate = min(node.network_bytes_per_s, known.answer_bytes_per_s)
    answer, query = sizes.answer_bytes, sizes.query_bytes
    sent = shards * query + answer
    front_ends = demand.front_ends or math.ceil(demand.queries_per_s * sent / (BUSY * rate))
    stages = {
        "shards' memory": loaded_s,
        "stragglers": loaded_s * (straggling - 1),
        "front end's calls": shards * (DISPATCH_S + query / rate),
        "front end's answers": answer / rate,
        "client's link": between.round_trip_s + (query + answer) / between.link_bytes_per_s,
        "client's work": known.query_s + demand.planned_rows * known.recover_row_s / between.client_threads,
    }
    streamed_s = max(
        loaded_s * straggling,
        stages["front end's answers"],
        answer / between.link_bytes_per_s,
        stages["client's work"] - known.query_s,
    )
    latency_s = (
        known.query_s
        + 2 * CALL_S
        + between.round_trip_s
        + between.node_round_trip_s
        + query / between.link_bytes_per_s
        + stages["front end's calls"]
        + streamed_s
    )
    fits = sizes.client_memory_bytes <= between.client_memory_bytes
    price = (shards * replicas + front_ends) * node.price_per_hour
    return ClusterPlan(
        rows=demand.planned_rows,
        stride=sizes.parameters.stride,
        index_bytes=sizes.index_bytes,
        collections=math.ceil(sizes.segments * ENTRY_BYTES / MAX_MANIFEST_BYTES),
        shards=shards,
        shards_for_memory=least,
        replicas=replicas,
        replicas_for_load=for_load,
        nodes=shards * replicas,
        front_ends=front_ends,
        node_index_bytes=sizes.index_bytes / shards,
        query_bytes=query,
        answer_bytes=answer,
        fan_out_bytes=shards * query,
        client_cache_bytes=sizes.cache_bytes,
        client_memory_bytes=sizes.client_memory_bytes,
        pass_s=pass_s,
        batch_pass_s=pass_s * demand.batch / sharing.gain(demand.batch),
        loaded_pass_s=loaded_s,
        straggling=straggling,
        pass_riders=riders,
        capacity_per_s=replicas * one_copy_per_s,
        stages_s=stages,
        latency_s=latency_s,
        limit=max(stages, key=lambda name: stages[name]) if fits else "client's memory",
        nodes_limit=_nodes_limit(demand, shards > least, for_load),
        price_per_hour=price,
        price_per_million=price / _HOUR_S / demand.queries_per_s * _MILLION
        + answer / 1e9 * between.price_per_gb * _MILLION,
    )


def _nodes_limit(demand: Demand, more_shards: bool, for_load: int) -> str:
    if for_load > demand.replicas:
        return "queries"
    if demand.replicas > 1:
        return "copies"
    return "given" if more_shards else "memory"

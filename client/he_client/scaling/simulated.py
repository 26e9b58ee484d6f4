"""What a simulation of a cluster is given, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from he_client.plan import CALL_S
from he_client.scaling.cluster import DISPATCH_S, Between, ClusterPlan, Demand, Node
from he_client.scaling.measured import measured
from he_client.scaling.service_times import ServiceTimes, ShiftedExponential
from he_client.scaling.sharing import Sharing
from he_engine.errors import InvalidInput
from he_proto.chunks import CHUNK_BYTES

UNIT_BYTES = 32 << 20  #: of index, whose answers a server sends together (he_server.search.answering)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Nodes fail after exponential times of this mean, lose what they compute, and come back after `repair_s`."""

    mean_time_between_s: float
    repair_s: float
    noticed_after_s: float = 1.0  #: then another copy is asked; where none is up, the query fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What is simulated. Seconds and bytes as in ClusterPlan. Raises InvalidInput for what cannot be."""

    shards: int
    sharing: Sharing
    times: ServiceTimes
    queries_per_s: float
    replicas: int = 1
    front_ends: int = 1
    query_bytes: float = 0.0
    answer_bytes: float = 0.0
    piece_bytes: float = CHUNK_BYTES  #: of answers in one message: what is sent after a pass has ended
    front_end_bytes_per_s: float = math.inf
    link_bytes_per_s: float = math.inf
    node_bytes_per_s: float = math.inf
    before_s: float = 0.0  #: the client encrypts, its call, half of its round trip
    after_s: float = 0.0  #: the other half
    dispatch_s: float = 0.0  #: of a front end, for each shard
    node_call_s: float = 0.0  #: of a call to a shard, beside that; the round trip, too
    recover_s: float = 0.0  #: the client verifies and decrypts, while answers come
    hedge: float | None = None  #: quantile of a pass after which the next copy is asked, too
    failures: Failures | None = None

    def __post_init__(self) -> None:
        if min(self.shards, self.replicas, self.front_ends) < 1:
            raise InvalidInput(f"simulation: got {self.shards} shards, {self.replicas} copies, {self.front_ends} front "
                               "ends, expected at least 1 of each")  # fmt: skip
        if self.hedge is not None and self.replicas < 2:
            raise InvalidInput(f"hedge: got {self.replicas} copy of each shard, expected at least 2")

    @classmethod
    def of(
        cls, plan: ClusterPlan, demand: Demand, node: Node, between: Between, spread: float | None = None,
        failures: Failures | None = None,
    ) -> Simulated:  # fmt: skip
        """The cluster of a plan; the other arguments are those that it was made of."""
        known = measured(demand.profile)
        rate = min(node.network_bytes_per_s, known.answer_bytes_per_s)
        return cls(
            shards=plan.shards,
            replicas=plan.replicas,
            front_ends=plan.front_ends,
            sharing=Sharing(known.sharing, demand.batch),
            times=ShiftedExponential(plan.pass_s, known.spread if spread is None else spread),
            queries_per_s=demand.queries_per_s,
            query_bytes=plan.query_bytes,
            answer_bytes=plan.answer_bytes,
            piece_bytes=min(CHUNK_BYTES, UNIT_BYTES * plan.answer_bytes / plan.index_bytes),
            front_end_bytes_per_s=rate,
            link_bytes_per_s=between.link_bytes_per_s,
            node_bytes_per_s=rate,
            before_s=known.query_s + CALL_S + between.round_trip_s / 2,
            after_s=between.round_trip_s / 2,
            dispatch_s=DISPATCH_S,
            node_call_s=CALL_S - DISPATCH_S + between.node_round_trip_s,
            recover_s=plan.stages_s["client's work"] - known.query_s,
            hedge=demand.hedge,
            failures=failures,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of the queries that came after the first tenth, which fills the cluster."""

    queries: int
    failed: int
    mean_s: float
    p50_s: float
    p99_s: float  #: nearest rank
    throughput_per_s: float
    utilisation: float  #: of the time somebody is at a node, mean of all nodes
    riders: float  #: queries at a node, in the mean over time
    front_end_utilisation: float  #: of its interface, answers to clients
    hedged: float  #: calls to shards that were asked again ÷ all

"""Ray on this machine, of some nodes that a test may take away, and a server whose answers it computes.

Where only loopback exists: tests.loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from he_server.cluster.actors import Actors
from he_server.cluster.answerer import RayAnswerer
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service

CPUS = 8  #: that a node says it has: actors are placed by them, and need not have them
GIVE_UP_S = 120.0  #: for nodes and actors to be as a test wants them
_STORE_BYTES = 200 << 20
_TRIES = 3
_NODE: dict[str, Any] = {"num_cpus": CPUS, "object_store_memory": _STORE_BYTES, "node_ip_address": "127.0.0.1"}


class Nodes:
    """A context manager: a head, which has no actors, and `count` nodes that have them."""

    def __init__(self, count: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._folder = tempfile.TemporaryDirectory(prefix="hesearch-ray-")
        self.folder = self._folder.name  #: what Ray writes
        head = _NODE | {"num_cpus": 0, "include_dashboard": False, "temp_dir": self._folder.name}
        # a lost node is noticed within some seconds, not 30; a slow one is not taken for lost
        system = {"health_check_period_ms": 1000, "health_check_timeout_ms": 20000, "health_check_failure_threshold": 3}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": system})
        self.address: str = self._cluster.address
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        """One more node. Ray gives up one that is slow to start, as on a busy machine: then another is tried."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(Exception):  # it raises no class of its own
                return self._cluster.add_node(**_NODE)
        return self._cluster.add_node(**_NODE)

    def lose(self, node: Any) -> None:
        """As if its machine had gone, with the actors on it."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def lose_head(self) -> None:
        """Its process that knows the cluster; the others end when they have missed it for long enough."""
        self._cluster.head_node.kill_gcs_server()

    def drain(self, node: Any) -> None:
        """As an operator does before a machine goes. What runs there goes on; without anything, Ray ends the node."""
        ray_command = str(Path(sys.executable).with_name("ray"))
        what = ["--address", self.address, "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        subprocess.run([ray_command, "drain-node", *what, "--reason-message", "fewer"], check=True, capture_output=True)
        self.nodes.remove(node)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        if ray.is_initialized():
            ray.shutdown()
        self._cluster.shutdown()
        self._folder.cleanup()


@contextlib.contextmanager
def serving(folder: Path, nodes: Nodes | None, **settings: Any) -> Iterator[tuple[str, Service]]:
    """host:port of a server in this process, with one thread (an actor); without nodes, it computes itself."""
    where = {"cluster": nodes.address} if nodes else {}
    config = ServerConfig(
        data=folder, listen="127.0.0.1:0", insecure=True, threads=1, max_scans=64, **where, **settings
    )
    with Service(config) as service:
        server = GrpcServer(service)
        try:
            yield server.address, service
        finally:
            server.stop(1.0)


def actors(service: Service) -> Actors:
    answerer = service.answerer
    assert isinstance(answerer, RayAnswerer)
    return answerer._actors


def kill(service: Service, shard: int, replica: int = 0) -> int:
    """SIGKILL to the process of an actor; its id."""
    pid: int = ray.get(actors(service).actor(shard, replica).ping.remote())["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


Where = dict[tuple[int, int], tuple[str, int]]  #: by shard and replica: node and process


def where(service: Service) -> Where:
    """Of the actors that reply."""
    found: Where = {}
    for shard in range(actors(service).shards):
        for replica in range(actors(service).replicas):
            with contextlib.suppress(ray.exceptions.RayError):
                state = ray.get(actors(service).actor(shard, replica).ping.remote(), timeout=10)
                found[shard, replica] = str(state["node"]), int(state["pid"])
    return found


def until(service: Service, reached: Callable[[list[set[str]]], bool]) -> Where:
    """Waits until every actor replies, and the nodes of each shard are as wanted. Raises TimeoutError."""
    until_s = time.monotonic() + GIVE_UP_S
    while True:
        found = where(service)
        if len(found) == actors(service).shards * actors(service).replicas and reached(nodes_of(found)):
            return found
        if time.monotonic() > until_s:
            raise TimeoutError(f"actors are at {found} after {GIVE_UP_S:.0f} s")
        time.sleep(0.1)


def nodes_of(found: Where) -> list[set[str]]:
    """Of each shard."""
    shards = sorted({shard for shard, _ in found})
    return [{node for (s, _), (node, _) in found.items() if s == shard} for shard in shards]


def apart(nodes: list[set[str]]) -> bool:
    """Every shard's two replicas are on two nodes."""
    return all(len(one) == 2 for one in nodes)

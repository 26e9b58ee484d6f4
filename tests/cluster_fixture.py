"""Ray on this machine, of some nodes that a test may take away, and a server whose answers it computes.

Where only loopback exists: tests.loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
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

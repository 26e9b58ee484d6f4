"""The actors of a deployment: found by their names, made where they are missing, restarted by Ray where they died.

Where segments are on object storage, actors outlive the front ends, which may come and go: all that name the same
storage, in the same version, share them. Those of a data folder end with its only front end. The shards' replicas are
spread over the nodes that there are at the time; after the loss of one, Ray puts its actors on others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from he_engine.errors import MissingExtra, Unavailable
from he_server.config import ServerConfig

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtra("Ray is not installed: pip install '.[cluster]'") from error

from he_server.cluster.shard import CALLS, Shard, ShardSettings

_log = logging.getLogger(__name__)
_PING_S = 30.0
_REACHED_S = 10.0
_REPLY_S = 5.0
_CONTROLS = 8  #: short methods at the same time, beside the others


_SHARD: Any = ray.remote(concurrency_groups={"control": _CONTROLS})(Shard)  # type: ignore[call-overload]
_connections = 0
_connecting = threading.Lock()


def _connect(address: str) -> None:
    """This process, once for all its servers. Raises Unavailable."""
    global _connections
    with _connecting:
        if not _connections:
            try:
                if address != "auto":  # Ray itself would try for minutes
                    host, _, port = address.rpartition(":")
                    socket.create_connection((host, int(port)), _REACHED_S).close()
                logging.getLogger("ray").setLevel(logging.ERROR)
                with ThreadPoolExecutor(1) as aside:  # in the main thread it would take SIGTERM for itself
                    aside.submit(ray.init, address, log_to_driver=False, configure_logging=False).result()
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise Unavailable(f"cluster: {type(error).__name__}: no Ray found at {address!r}") from error
        _connections += 1


def _disconnect() -> None:
    global _connections
    with _connecting:
        _connections -= 1
        if not _connections:
            ray.shutdown()


def _nodes() -> list[str]:
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]


class Actors:
    """Connects to Ray. Thread-safe. Raises Unavailable where there is none at that address."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        place = config.segments or f"{config.data.resolve()} {secrets.token_hex(8)}"
        self.namespace = f"hesearch-{version('hesearch')}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
        _connect(config.cluster)
        self._nodes = _nodes()
        self.shards = config.cluster_shards or len(self._nodes)
        self.replicas = config.cluster_replicas
        wanted = self.shards * self.replicas * config.threads
        there = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        if wanted > there:
            _log.warning("cluster: the actors want %d CPUs of Ray, which has %d: some find no place", wanted, there)
        self.wait_s = config.cluster_wait_s
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], Any] = {}
        self.replies: list[dict[str, int | str]] = []  #: see Shard.ping; of the actors that replied lately
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keep-shards", daemon=True)
        self._keeper.start()

    def actor(self, shard: int, replica: int) -> Any:
        """A handle; the actor may be on its way only."""
        with self._lock:
            handle = self._known.get((shard, replica))
        if handle is None:
            handle = self._found(shard, replica)  # it may take Ray long to answer
            with self._lock:
                self._known[shard, replica] = handle
        return handle

    def _found(self, shard: int, replica: int) -> Any:
        config, node = self._config, self._nodes[(shard + replica) % len(self._nodes)]
        options: dict[str, Any] = {
            "name": f"shard-{shard}-{replica}",
            "namespace": self.namespace,
            "lifetime": "detached" if config.segments else None,
            "get_if_exists": True,
            "max_restarts": -1,
            "num_cpus": config.threads,
            "num_gpus": int(config.device == "gpu"),
            "max_concurrency": CALLS,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True),
        }
        settings = ShardSettings(
            config.segments, config.threads, config.target, config.index_memory_bytes, config.device
        )
        return _SHARD.options(**options).remote(settings)

    def forget(self, shard: int, replica: int) -> None:
        """It ended for good: the next to ask for it makes another."""
        with self._lock:
            self._known.pop((shard, replica), None)

    def _keep(self) -> None:
        """Actors that nobody asks end by themselves."""
        while not self._stop.wait(_PING_S):
            with contextlib.suppress(Exception):
                self._nodes = _nodes()
                self.replies = self._replies()

    def _replies(self) -> list[dict[str, int | str]]:
        """See Shard.ping; of those actors that reply in time."""
        every = ((shard, replica) for shard in range(self.shards) for replica in range(self.replicas))
        asked = [self.actor(shard, replica).ping.remote() for shard, replica in every]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_REPLY_S)
        found = []
        for one in ready:
            with contextlib.suppress(Exception):
                found.append(ray.get(one))
        return found

    def close(self) -> None:
        self._stop.set()
        self._keeper.join()
        _disconnect()

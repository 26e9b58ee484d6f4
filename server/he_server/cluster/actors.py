"""The actors of a deployment: found by their names, made where they are missing, restarted by Ray where they died.

Where segments are on object storage, actors outlive the front ends, which may come and go: all that name the same
storage, in the same version, share them. Those of a data folder end with its only front end. After the loss of a node
Ray puts its actors on others. A thread looks at them every few seconds, and moves replicas off a node that they share,
or that is drained: it ends one, which is made anew elsewhere and reads its segments again while another one answers.
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
from he_server.storage.causes import Causes

try:
    import ray
    from ray.exceptions import ActorDiedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtra("Ray is not installed: pip install '.[cluster]'") from error

from he_server.cluster.messages import PROTOCOL
from he_server.cluster.nodes import present
from he_server.cluster.shard import CALLS, Shard, ShardSettings

_log = logging.getLogger(__name__)
_PING_S = 5.0
_REACHED_S = 10.0
_REPLY_S = 5.0
_CONTROLS = 8  #: short methods at the same time, beside the others

State = dict[str, int | str]  #: see Shard.ping

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
                raise Unavailable(
                    f"cluster: {type(error).__name__}: no Ray found at {address!r}; run `ray start` first"
                ) from error
        _connections += 1


def _disconnect() -> None:
    global _connections
    with _connecting:
        _connections -= 1
        if not _connections:
            ray.shutdown()


class Actors:
    """Connects to Ray. Thread-safe. Raises Unavailable where there is none at that address."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        place = config.segments or f"{config.data.resolve()} {secrets.token_hex(8)}"
        build, storage = f"{version('hesearch')}-{PROTOCOL}", hashlib.sha256(place.encode()).hexdigest()[:16]
        self.namespace = f"hesearch-{build}-{storage}"
        _connect(config.cluster)
        self._nodes = present()
        self.shards = config.cluster_shards or len(self._nodes.usable) + len(self._nodes.drained)
        self.replicas = config.cluster_replicas
        self._wanted = {"CPU": float(config.threads), "GPU": float(config.device == "gpu")}  # by an actor
        wanted = self.shards * self.replicas * config.threads
        there = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
        if wanted > there:
            _log.warning(
                "cluster: the actors want %d CPUs of Ray, which has %d: some find no place; add nodes, or lower "
                "cluster_shards, cluster_replicas or threads",
                wanted,
                there,
            )
        self.wait_s = config.cluster_wait_s
        self.causes = Causes()
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], Any] = {}
        self._making: dict[tuple[int, int], threading.Lock] = {}
        self._replied: dict[tuple[int, int], tuple[Any, State]] = {}  # lately: their handles and states
        self._pings: dict[tuple[int, int], tuple[Any, Any]] = {}  # that have no reply yet: to whom, and its reference
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keep-shards", daemon=True)
        self._keeper.start()

    def actor(self, shard: int, replica: int) -> Any:
        """A handle; the actor may be on its way only."""
        place = shard, replica
        with self._lock:
            if (handle := self._known.get(place)) is not None:
                return handle
            making = self._making.setdefault(place, threading.Lock())
        with making:  # it may take Ray long to answer; and an actor ends with the handle of who made it
            with self._lock:
                handle = self._known.get(place)
            if handle is None:
                handle = self._found(shard, replica)
                with self._lock:
                    self._known[place] = handle
        return handle

    def _found(self, shard: int, replica: int) -> Any:
        name = f"shard-{shard}-{replica}"
        with contextlib.suppress(ValueError):  # there is none
            return ray.get_actor(name, self.namespace)
        config = self._config
        options: dict[str, Any] = {
            "name": name,
            "namespace": self.namespace,
            "lifetime": "detached" if config.segments else None,
            "get_if_exists": True,
            "max_restarts": -1,
            "num_cpus": config.threads,
            "num_gpus": int(config.device == "gpu"),
            "max_concurrency": CALLS,
        }
        taken = {node for other, node in self._where(shard).items() if other != replica}
        with self._lock:
            node = self._nodes.place(self._wanted, shard + replica, taken)
            if node is not None:
                node.give(self._wanted)
                # if its room has gone meanwhile, Ray would wait for it without the last argument
                affinity = NodeAffinitySchedulingStrategy(node.name, soft=True, _spill_on_unavailable=True)
                options["scheduling_strategy"] = affinity
        settings = ShardSettings(
            config.segments, config.threads, config.target, config.index_memory_bytes, config.device
        )
        return _SHARD.options(**options).remote(settings)

    def forget(self, shard: int, replica: int, handle: Any) -> None:
        """It ended for good: the next to ask for it makes another, unless somebody has."""
        with self._lock:
            if self._known.get((shard, replica)) is handle:
                del self._known[shard, replica]

    @property
    def replies(self) -> list[State]:
        """Of the actors that replied lately."""
        return [state for _, state in self._replied.values()]

    def _where(self, shard: int) -> dict[int, str]:
        """The nodes of its replicas that replied lately."""
        return {replica: str(state["node"]) for (s, replica), (_, state) in self._replied.items() if s == shard}

    # ---- looking after them -----------------------------------------------------------------------------
    def _keep(self) -> None:
        while not self._stop.wait(_PING_S):
            try:
                self.look()
            except Exception as error:  # of Ray: they have no class in common
                self.causes.say("cluster: actors were not looked at", f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """Pings all, as actors that nobody asks end by themselves, and moves what is on the wrong node. Raises what Ray
        raises."""
        with self._looking:
            self._replied = self._pinged()
            self._nodes = present()
            for shard in range(self.shards):
                with contextlib.suppress(ray.exceptions.RayError):  # an actor that was lost meanwhile
                    if self._mend(shard) and self.replicas == 1:
                        return  # one at a time, so that no two take the same room

    def _pinged(self) -> dict[tuple[int, int], tuple[Any, State]]:
        """Those actors that reply in time. Who has not replied to the last ping gets no other: they would pile up."""
        for place in [(shard, replica) for shard in range(self.shards) for replica in range(self.replicas)]:
            if place not in self._pings:
                handle = self.actor(*place)
                self._pings[place] = handle, handle.ping.remote()
        replies = [reply for _, reply in self._pings.values()]
        ready = set(ray.wait(replies, num_returns=len(replies), timeout=_REPLY_S)[0])
        found = {}
        for place, (handle, reply) in list(self._pings.items()):
            if reply in ready:
                del self._pings[place]
                try:
                    found[place] = handle, ray.get(reply)
                except ActorDiedError:
                    self.forget(*place, handle)
                except ray.exceptions.RayError:
                    pass  # Ray starts it again
        return found

    def _mend(self, shard: int) -> bool:
        """Moves one replica that is on the wrong node, if another one can answer meanwhile, or there is no other;
        whether it did.

        Several front ends may decide so. A handle means the actor that was looked at, so whoever is late does not end
        its successor; and all choose the same one (Nodes.misplaced) as long as they see the same nodes."""
        replica = self._nodes.misplaced(self._where(shard), self._wanted)
        if replica is None or not (self.replicas == 1 or self._others_stand_in(shard, replica)):
            return False
        self._nodes = present()  # others may have taken that room
        if self._nodes.misplaced(self._where(shard), self._wanted) != replica:
            return False
        handle, state = self._replied[shard, replica]
        _log.info("cluster: replica %d of shard %d leaves node %s", replica, shard, state["node"])
        ray.kill(handle)
        self._replied = {place: one for place, one in self._replied.items() if place != (shard, replica)}
        self.forget(shard, replica, handle)
        self.actor(shard, replica)
        return True

    def _others_stand_in(self, shard: int, replica: int) -> bool:
        """Whether one of them has all in memory that this one was searched for lately."""
        lately = ray.get(self._replied[shard, replica][0].lately.remote(), timeout=_REPLY_S)
        others = [handle for (s, r), (handle, _) in self._replied.items() if s == shard and r != replica]
        asked = [handle.stands_in.remote(lately) for handle in others]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_REPLY_S) if asked else ([], [])
        return any(ray.get(one) for one in ready)

    def close(self) -> None:
        self._stop.set()
        self._keeper.join()
        _disconnect()

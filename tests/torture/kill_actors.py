"""Kills actors and nodes of a cluster while clients write and read, and looks for every row.

    python -m tests.loopback python -m tests.torture.kill_actors --seed 1 --runs 100

Clients, operations and moments are those of tests.torture.kill_server; the server stays, and answers come from Ray: two
shards on two nodes, with one replica in half of the batches and two in the others. In a run, an actor's process
gets SIGKILL, or (a share of NODES) a node goes with all its actors and another one comes. Then a client that knows
nothing opens the collection and looks for every row and score.

JSON keys: those of tests.torture.kill_server; `counts`: `actors killed`, `nodes lost`; `full_service_s`: (`p50`, `max`)
seconds from a kill until every actor replies again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tests.cluster_fixture import Nodes
from tests.torture.kill_server import BATCH, Scene
from tests.torture.rows import small_segments
from tests.torture.tally import Tally, main

NODES = 0.3  #: share of runs that take a node
SHARDS = 2
_PING_S = 5.0
_GIVE_UP_S = 120.0


class ClusterScene(Scene):
    """One server of a cluster whose actors and nodes are lost."""

    def __init__(self, seed: int, folder: Path, tally: Tally, nodes: Nodes, *, replicas: int, sealed: bool) -> None:
        settings = {"cluster": nodes.address, "cluster-shards": SHARDS, "cluster-replicas": replicas}
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        super().__init__(seed, folder, tally, *options, sealed=sealed)
        self._nodes = nodes
        self._actors = SHARDS * replicas
        self.full_service_s: list[float] = []

    def open(self) -> None:
        super().open()
        self._wait_for_all()

    def crash(self) -> None:
        if self._rng.random() < NODES:
            self._nodes.lose(self._nodes.nodes[int(self._rng.integers(len(self._nodes.nodes)))])
            self._nodes.nodes.append(self._nodes.add())
            self.tally.counts["nodes lost"] += 1
        else:
            pids = self._pids()
            os.kill(pids[int(self._rng.integers(len(pids)))], signal.SIGKILL)
            self.tally.counts["actors killed"] += 1

    def revive(self) -> None:
        began = time.monotonic()
        self._wait_for_all()
        self.full_service_s.append(time.monotonic() - began)

    def fsck(self) -> None:
        """The server has the folder open until the end."""

    def close(self) -> None:
        super().close()
        super().fsck()

    def _wait_for_all(self) -> None:
        until_s = time.monotonic() + _GIVE_UP_S
        while len(self._pids()) < self._actors:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{self.where}: {len(self._pids())} of {self._actors} actors after {_GIVE_UP_S} s")
            time.sleep(0.1)

    def _pids(self) -> list[int]:
        """Of the actors that reply."""
        found: list[Any] = []
        for one in ray.util.list_named_actors(all_namespaces=True):
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                found.append(ray.get_actor(one["name"], one["namespace"]).ping.remote())
        replies, _ = ray.wait(found, num_returns=len(found), timeout=_PING_S) if found else ([], [])
        pids = []
        for reply in replies:
            with contextlib.suppress(ray.exceptions.RayError):
                pids.append(ray.get(reply)["pid"])
        return pids


def run(seed: int, runs: float, tally: Tally) -> None:
    small_segments()
    full_service_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="hesearch-torture-") as name, Nodes(2) as nodes:
        ray.init(nodes.address, log_to_driver=False)
        for batch, first in enumerate(range(0, int(runs), BATCH)):
            variant = seed + batch
            scene = ClusterScene(
                variant, Path(name) / str(batch), tally, nodes, replicas=1 + variant % 2, sealed=bool(variant // 2 % 2)
            )
            scene.open()
            for number in range(first, min(first + BATCH, int(runs))):
                scene.run(number)
            scene.close()
            full_service_s += scene.full_service_s
        ray.shutdown()
    tally.special["full_service_s"] = {"p50": float(np.median(full_service_s)), "max": max(full_service_s)}


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.kill_actors", "kill -9 of actors and loss of nodes", "runs", 100, run))

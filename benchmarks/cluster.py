"""What answering by Ray costs: the same query, answered by the server's own threads and by actors with as many.

    python -m tests.loopback python -m benchmarks.cluster --rows 1000000 --json docs/figures/cluster.json

Two data folders with the same segments of 64 MiB of random residues (compact, d = 512), and a server of each in this
process, without gRPC: one computes itself, the other lets Ray do it, on this machine. Answers are compared bit for bit
first; then both take turns. `one actor` has all threads; `an actor a thread` cuts the index into as many shards.

JSON keys (stable): `machine`, `arguments`, `index_bytes`; `one actor`, `an actor a thread`: each with `local_s`,
`ray_s` (`median`, `min`, `max`), `ratio` (of the medians; Ray / local: lower is better) and `ratios`: of each round,
`p10`, `p50`, `p90`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.at_rest import PARAMETERS, SEGMENT_BYTES, Folder
from benchmarks.machine import describe, print_json
from benchmarks.timing import Timing, alternate
from he_engine.errors import MissingExtra
from he_server.config import ServerConfig
from he_server.service import Service

_STORE_BYTES = 1 << 30


class Clustered(Folder):
    """A data folder whose server lets `shards` actors answer."""

    def __init__(self, root: Path, threads: int, shards: int, address: str) -> None:
        super().__init__(root, threads, None)
        self.shards, self.address = shards, address

    def service(self, kek: Path | None = None, previous: Path | None = None) -> Service:
        del kek, previous
        where: dict[str, Any] = {"cluster": self.address, "cluster_shards": self.shards, "index_memory_bytes": 1 << 40}
        return Service(ServerConfig(data=self.root, threads=self.threads, **where))


def start_ray() -> str:
    """The address of a head with a node, on loopback, which ends with this process. Raises MissingExtra."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise MissingExtra("Ray is not installed: pip install '.[cluster]'") from error
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    where: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES, "num_cpus": 64}
    cluster = Cluster(initialize_head=True, head_node_args=where | {"include_dashboard": False})
    address: str = cluster.address
    return address


def compare(local: Folder, clustered: Folder, query: bytes, rounds: int, threads: int) -> dict[str, Any]:
    with local.service() as ours, clustered.service() as rays:
        asks = {"local": local.ask(ours, query), "ray": clustered.ask(rays, query)}
        for engine, searched in ours.live():
            ours.answerer.warm(engine, searched, math.inf, threading.Event())
        if asks["local"]() != asks["ray"]():
            raise AssertionError("Ray answers something else")
        times = alternate(asks, rounds, threads=threads)
        time.sleep(1.0)
    ratios = np.array(times["ray"].times_s) / np.array(times["local"].times_s)
    return {
        "local_s": _seconds(times["local"]),
        "ray_s": _seconds(times["ray"]),
        "ratio": times["ray"].median_s / times["local"].median_s,
        "ratios": dict(zip(("p10", "p50", "p90"), np.quantile(ratios, (0.1, 0.5, 0.9)).tolist(), strict=True)),
    }


def _seconds(timing: Timing) -> dict[str, float]:
    return {"median": timing.median_s, "min": timing.minimum_s, "max": timing.maximum_s}


def measure(a: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    blocks = SEGMENT_BYTES // (4 * PARAMETERS.block_words)
    segments = max(1, round(a.rows / PARAMETERS.rows_per_block / blocks))
    words = (blocks + 1, PARAMETERS.block_words)
    *index, query = rng.integers(0, PARAMETERS.ring.primes[0], words, np.uint32)
    address = start_ray()
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-", dir=a.folder) as name:
        local = Folder(Path(name) / "local", a.threads, None)
        local.fill(segments, np.array(index))
        shutil.copytree(local.root, Path(name) / "ray")
        kinds = {"one actor": (a.threads, 1)}
        if a.threads > 1:
            kinds["an actor a thread"] = (1, a.threads)
        found = {
            kind: compare(
                local, Clustered(Path(name) / "ray", threads, shards, address), query.tobytes(), a.rounds, a.threads
            )
            for kind, (threads, shards) in kinds.items()
        }
    arguments = {"rows": a.rows, "threads": a.threads, "rounds": a.rounds}
    return {"index_bytes": segments * SEGMENT_BYTES, **found, "arguments": arguments, "machine": describe()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("benchmarks.cluster", description="Answers from Ray beside those of one process.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of dimension 512 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the data folders are made for the time")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    a = parser.parse_args(argv)
    print_json(measure(a), a.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

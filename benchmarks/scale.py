"""The simulation of a cluster beside the real thing, as far as one machine has it: one node, two nodes, one under load.

    python -m benchmarks.scale --rows 200000 --dim 768 --profile compact --rounds 101 --json docs/figures/scale.json

Nodes are server processes on loopback with one computing thread each. One holds all rows; two hold half of them each,
and one asker sends to both at once and waits for both: what a front end would do. Answers are drained, not recovered.
First correctness: the answers over gRPC must be bit-identical to those computed in this process.

- *One node.* The simulation gets passes that the same service computed in this process, without gRPC, and what a call
  costs, measured on a collection of one block. It must come to the latency measured over gRPC.
- *Two nodes.* It gets single shards' times in every other round, and must come to the time until both have answered in
  the rounds between. Both servers share this machine's memory, which those of a cluster do not: `alone` is what it says
  of times measured while the other server is idle.
- *Load.* Queries come as a Poisson process, at shares of what the node answers when one caller asks without a pause.
  The simulation gets lone latencies and how far passes are shared by callers who ask at once.

JSON keys (stable): `machine`, `arguments`, `identical_answers`, `goal`; `pass_s`, `call_s`, `shard_s`, `shard_alone_s`
(quartiles of what was fed: `p25`, `p50`, `p75`); `one_node`, `two_nodes`, `two_nodes_alone`: {`measured`, `simulated`:
{`mean_s`, `p50_s`, `p99_s`}, `ratio_mean`, `ratio_p50` (simulated / measured), `within_goal` (the p50)}; `sharing`
(callers at once → times faster a query); `load`: a list of the same with `share` and `queries_per_s`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.concurrency import crowd
from benchmarks.machine import describe, print_json
from benchmarks.servers import ANSWER, Asker, Encrypted, process, serve
from he_client import Client, CollectionKey
from he_client.scaling.measured import facts
from he_client.scaling.service_times import MeasuredTimes
from he_client.scaling.sharing import Sharing
from he_client.scaling.simulated import UNIT_BYTES, Simulated
from he_client.scaling.simulation import simulate
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.service import Service

THREADS = 1  #: of a node that compute
GOAL = 0.15  #: by which the simulated median may be off
CALLERS = (1, 2, 4, 8, 16)
SIMULATED = 20_000  #: queries
SEED = 1
_SELDOM = 1e-6  #: queries a second: each alone

Messages = list[bytes]
Figures = dict[str, Any]


class Node:
    """A server process, its collection `c`, and someone who asks it one query."""

    def __init__(self, stack: ExitStack, folder: Path, rows: np.ndarray[Any, Any], profile: str) -> None:
        self.folder, key = folder, CollectionKey.generate()
        self.address, _ = stack.enter_context(process(*serve(folder, threads=THREADS)))
        with Client(self.address, insecure=True) as client:
            made = client.create_collection("c", dim=rows.shape[1], key=key, profile=profile)
            made.insert(range(len(rows)), rows)
            self.index_bytes = client.describe("c").index_bytes
        self.encrypted = Encrypted(self.address, "c", key)
        stack.callback(self.encrypted.close)
        self.messages = self.encrypted.messages([self.encrypted.ciphertext(rows[0])])
        self._asker = Asker(self.address, ANSWER)
        stack.callback(self._asker.close)

    def ask(self) -> list[bytes]:
        return self._asker(self.messages)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _here(service: Service, messages: Messages) -> list[Any]:
    requests = [pb.AnswerRequest.FromString(message) for message in messages]
    return list(service.answer(iter(requests), Caller()))


def _both(pool: ThreadPoolExecutor, nodes: Sequence[Node]) -> tuple[list[float], float]:
    """Seconds of each, and until both have answered."""
    start = time.perf_counter()
    each = list(pool.map(lambda node: seconds(node.ask), nodes))
    return each, time.perf_counter() - start


# ---- figures -------------------------------------------------------------------------------------------------
def _summary(latencies_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies_s)
    p50, p99 = (ordered[-(-len(ordered) * percent // 100) - 1] for percent in (50, 99))
    return {"mean_s": statistics.fmean(ordered), "p50_s": p50, "p99_s": p99}


def _quartiles(latencies_s: Sequence[float]) -> dict[str, float]:
    return dict(zip(("p25", "p50", "p75"), statistics.quantiles(latencies_s, n=4), strict=True))


def beside(measured_s: Sequence[float], simulated: Simulated) -> Figures:
    """The figures of one comparison."""
    outcome, measured = simulate(simulated, SIMULATED, SEED), _summary(measured_s)
    ratio = outcome.p50_s / measured["p50_s"]
    return {
        "measured": measured,
        "simulated": {"mean_s": outcome.mean_s, "p50_s": outcome.p50_s, "p99_s": outcome.p99_s},
        "ratio_mean": outcome.mean_s / measured["mean_s"],
        "ratio_p50": ratio,
        "within_goal": abs(ratio - 1) <= GOAL,
    }


def _alone(shards: int, times_s: Sequence[float]) -> Simulated:
    return Simulated(shards=shards, sharing=Sharing({}, 1), times=MeasuredTimes(times_s), queries_per_s=_SELDOM)


# ---- measuring -----------------------------------------------------------------------------------------------
def unloaded(whole: Node, halves: Sequence[Node], small: Node, service: Service, rounds: int) -> Figures:
    """One node and two, in turns; the first two rounds warm up."""
    answers = sum(len(one.residues) for one in _here(service, whole.messages))
    passes: list[float] = []
    calls: list[float] = []
    one: list[float] = []
    alone: list[float] = []
    shards: list[float] = []
    both: list[float] = []
    with ThreadPoolExecutor(len(halves)) as pool:
        for number in range(rounds + 2):
            taken = [
                seconds(lambda: _here(service, whole.messages)), seconds(small.ask), seconds(whole.ask),
                seconds(halves[number % 2].ask),
            ]  # fmt: skip
            each, until_both = _both(pool, halves)
            if number < 2:
                continue
            for series, value in zip((passes, calls, one, alone), taken, strict=True):
                series.append(value)
            if number % 2:
                both.append(until_both)
            else:
                shards.extend(each)
    rate = facts()["answer_bytes_per_s"]
    piece = UNIT_BYTES * answers / whole.index_bytes
    fed = replace(
        _alone(1, passes), before_s=statistics.median(calls), answer_bytes=answers, piece_bytes=piece,
        front_end_bytes_per_s=rate,
    )  # fmt: skip
    return {
        "pass_s": _quartiles(passes),
        "call_s": _quartiles(calls),
        "shard_s": _quartiles(shards),
        "shard_alone_s": _quartiles(alone),
        "one_node": beside(one, fed),
        "two_nodes": beside(both, _alone(2, shards)),
        "two_nodes_alone": beside(both, _alone(2, alone)),
    }


def shared(node: Node, rounds: int) -> dict[int, float]:
    """Callers at once → times faster a query than for one: medians of rounds in turns, within 1 and their number."""
    times: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    with crowd(node.address, ANSWER, [node.messages] * max(CALLERS)) as asking:
        asking.ask(max(CALLERS), 1)
        for _ in range(rounds):
            for callers in CALLERS:
                times[callers].append(asking.ask(callers, 3)[0] / callers)
    lone = statistics.median(times[1])
    return {b: min(float(b), max(1.0, lone / statistics.median(taken))) for b, taken in times.items()}


def poisson(node: Node, queries_per_s: float, queries: int, seed: int) -> list[float]:
    """Latencies of queries that come at random, each counted from when it was due."""
    draws, due_s = random.Random(seed), 0.0
    latencies: list[float] = []
    askers = [Asker(node.address, ANSWER) for _ in range(32)]
    local = threading.local()

    def ask(due_s: float) -> None:
        if not hasattr(local, "asker"):
            local.asker = askers.pop()
        local.asker(node.messages)
        latencies.append(time.perf_counter() - due_s)

    open_askers = list(askers)
    with ThreadPoolExecutor(len(askers)) as pool:
        waiting, due_s = [], time.perf_counter()
        for _ in range(queries):
            due_s += draws.expovariate(queries_per_s)
            time.sleep(max(0.0, due_s - time.perf_counter()))
            waiting.append(pool.submit(ask, due_s))
        for one in waiting:
            one.result()
    for asker in open_askers:
        asker.close()
    return latencies


def loaded(node: Node, gains: dict[int, float], shares: Sequence[float], queries: int) -> list[Figures]:
    """At each share of the rate at which one caller is answered."""
    lone = [seconds(node.ask) for _ in range(max(20, queries // 5))]
    found = []
    for share in shares:
        rate = share / statistics.fmean(lone)
        simulated = Simulated(
            shards=1, sharing=Sharing(gains, max(gains)), times=MeasuredTimes(lone), queries_per_s=rate
        )
        figures = beside(poisson(node, rate, queries, SEED), simulated)
        found.append({"share": share, "queries_per_s": rate, **figures})
    return found


def measure(a: argparse.Namespace) -> Figures:
    rows = np.random.default_rng(SEED).standard_normal((a.rows, a.dim), np.float32)
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name, ExitStack() as stack:
        folder, half = Path(name), a.rows // 2
        parts = {"whole": rows, "first": rows[:half], "second": rows[half:], "small": rows[:1]}
        whole, first, second, small = (Node(stack, folder / n, part, a.profile) for n, part in parts.items())
        shutil.copytree(whole.folder, folder / "here", ignore=shutil.ignore_patterns("*lock*"))
        service = Service(ServerConfig(data=folder / "here", threads=THREADS))
        stack.callback(service.close)
        computed = [one.SerializeToString() for one in _here(service, whole.messages)]
        for node in (whole, first, second, small):
            node.encrypted.answers(node.ask(), 1)
        if whole.encrypted.answers(computed, 1) != whole.encrypted.answers(whole.ask(), 1):
            raise AssertionError("one node: its answers differ from those computed in this process")
        figures = unloaded(whole, (first, second), small, service, a.rounds)
        gains = shared(whole, max(3, a.rounds // 10))
        load = loaded(whole, gains, a.loads, a.queries)
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        "identical_answers": whole.encrypted.blocks,
        "goal": GOAL,
        **figures,
        "sharing": gains,
        "load": load,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description="The simulation of a cluster beside one node and two, measured."
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), default="compact")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.3, 0.6, 0.9])
    parser.add_argument("--queries", type=int, default=500, help="at each load")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

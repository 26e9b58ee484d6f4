"""Four times the load that the server can carry: what the accepted calls take, and how soon the others are refused.

    python -m tests.torture.overload --seed 1 --seconds 30

With one search at a time (`--max-scans 1`), then with two (the default), ROUNDS times in turn: unloaded, one call after
the other; the capacity, the calls a second that as many callers get as there are places, each with the next call as
soon as its last has its answer; the load, calls that begin at random moments (a Poisson process) of OVER times that
rate, whether or not earlier ones have ended. A call is a ready query, its answers drained; what asks shares the machine
with the server, and its own delays are in the figures.

JSON keys beside those of tests.torture.tally: `scans_1` and `scans_2`, each with `unloaded_s` and `accepted_s` (`p50`,
`p99`), `ratio_p99` of the two, `refused_s` (`p50`, `p99`), `refused_share`, `capacity_per_s`, `offered_per_s`,
`accepted_per_s`, `late_s` (`p99`: how much later than planned calls began). Failures are answers of another length, and
errors other than Overloaded.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.servers import ANSWER, Asker, Encrypted
from he_client import Client, CollectionKey
from tests.torture.server import Server, free_port
from tests.torture.tally import Tally, main

ROWS, DIM = 200_000, 1024  #: a search takes some 25 ms of one thread, much more than asking for it
CHANNELS = 8
SCANS = (1, 2)  #: `max_scans`; the second is the default
OVER = 4
ROUNDS = 5
THREADS = 512  #: calls at the same time, at most


@dataclass(slots=True)
class Times:
    """Of the calls of one stage, in seconds."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    other: list[str] = field(default_factory=list)  #: what went wrong besides

    def __iadd__(self, more: Times) -> Times:
        for mine in fields(self):
            getattr(self, mine.name).extend(getattr(more, mine.name))
        return self


class Load:
    """Calls with one ready query, on several connections, from as many threads as there are calls at a time."""

    def __init__(self, address: str, messages: list[bytes], threads: ThreadPoolExecutor) -> None:
        self._askers = [Asker(address, ANSWER) for _ in range(CHANNELS)]
        self._messages = messages
        self._threads = threads
        self._answer_bytes = sum(map(len, self._askers[0](messages)))

    def ask(self, number: int, times: Times) -> None:
        start = time.perf_counter()
        try:
            received = sum(map(len, self._askers[number % CHANNELS](self._messages)))
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                times.refused.append(time.perf_counter() - start)
            else:
                times.other.append(f"{failed.code().name}: {failed.details()}")
            return
        times.accepted.append(time.perf_counter() - start)
        if received != self._answer_bytes:
            times.other.append(f"an answer of {received} bytes, expected {self._answer_bytes}")

    def closed(self, callers: int, seconds: float) -> Times:
        """Each caller asks again as soon as it has its answer."""
        times, end = Times(), time.perf_counter() + seconds

        def one(number: int) -> None:
            while time.perf_counter() < end:
                self.ask(number, times)

        list(self._threads.map(one, range(callers)))
        return times

    def open(self, rng: np.random.Generator, per_s: float, seconds: float) -> Times:
        """Calls begin at random moments."""
        times = Times()
        calls: list[Future[None]] = []
        start = planned = time.perf_counter()

        def one(number: int, planned: float) -> None:
            times.late.append(time.perf_counter() - planned)
            self.ask(number, times)

        while (planned := planned + rng.exponential(1 / per_s)) < start + seconds:
            time.sleep(max(0.0, planned - time.perf_counter()))
            calls.append(self._threads.submit(one, len(calls), planned))
        for call in calls:
            call.result()
        return times

    def close(self) -> None:
        for asker in self._askers:
            asker.close()


def stages(
    address: str, messages: list[bytes], rng: np.random.Generator, seconds: float, *, callers: int
) -> dict[str, Any]:
    """In each round unloaded and at capacity for a quarter of its time, overloaded for half of it: what the machine
    does besides comes and goes, and is in all three."""
    alone, busy, loaded = Times(), Times(), Times()
    part = seconds / ROUNDS / 4
    with ThreadPoolExecutor(THREADS) as threads, closing(Load(address, messages, threads)) as load:
        load.closed(1, 0.5)  # warms up
        for _ in range(ROUNDS):
            alone += load.closed(1, part)
            busy += (full := load.closed(callers, part))
            loaded += load.open(rng, OVER * len(full.accepted) / part, 2 * part)
    unloaded, accepted = percentiles(alone.accepted), percentiles(loaded.accepted)
    return {
        "unloaded_s": unloaded,
        "accepted_s": accepted,
        "ratio_p99": accepted["p99"] / unloaded["p99"],
        "refused_s": percentiles(loaded.refused),
        "refused_share": len(loaded.refused) / len(loaded.late),
        "capacity_per_s": len(busy.accepted) / (seconds / 4),
        "offered_per_s": len(loaded.late) / (seconds / 2),
        "accepted_per_s": len(loaded.accepted) / (seconds / 2),
        "late_s": percentiles(loaded.late),
        "other": alone.other + busy.other + loaded.other,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """0 where there are none."""
    p50, p99 = np.percentile(seconds or [0.0], (50, 99)).tolist()
    return {"p50": p50, "p99": p99}


def run(seed: int, seconds: float, tally: Tally, rows: int = ROWS) -> None:
    rng, key = np.random.default_rng(seed), CollectionKey.generate()
    vectors = rng.standard_normal((rows, DIM), np.float32)
    with tempfile.TemporaryDirectory(prefix="hesearch-torture-") as folder:
        port = free_port(rng)
        with Server(Path(folder), port) as server, Client(server.address, insecure=True) as client:
            collection = client.create_collection("c", dim=DIM, key=key, profile="compact")
            collection.insert(range(rows), vectors, progress=False)
            encrypted = Encrypted(server.address, "c", key)
            messages = encrypted.messages([encrypted.ciphertext(vectors[0])])
            encrypted.close()
        for scans in SCANS:
            with Server(Path(folder), port, "--max-scans", str(scans)) as server:
                figures = stages(server.address, messages, rng, seconds / len(SCANS), callers=scans)
                for problem in figures.pop("other"):
                    tally.fail(f"a call with {scans} at a time", problem)
                if status := server.terminate():
                    tally.fail("the end", f"SIGTERM: exit status {status}")
            tally.special[f"scans_{scans}"] = figures
            tally.runs += round(figures["offered_per_s"] * seconds / len(SCANS) / 2)


if __name__ == "__main__":
    raise SystemExit(
        main("tests.torture.overload", "four times the load that the server can carry", "seconds", 60.0, run)
    )

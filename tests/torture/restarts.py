"""The server is stopped and started again, on the same port and folder, while clients search and write.

    python -m tests.torture.restarts --seed 1 --runs 50

A run is SIGTERM, exit status 0 and a new start, some seeded time after the one before. The clients are those of
tests.torture.crowd, with the retries that every client has: no search may fail, no operation may be lost, and every
result is checked.

JSON keys beside those of tests.torture.tally: `counts`: searches checked, operations acknowledged by kind, errors as
`what: class`; `failed_searches`; `down_s`: from SIGTERM to the next server's listening, `median` and `max`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.torture.crowd import crowd
from tests.torture.server import Server, free_port
from tests.torture.tally import Tally, main

CLIENTS, PROCESSES = 8, 2
PAUSE_S = (0.3, 1.5)  #: from one start to the next stop


def run(seed: int, runs: float, tally: Tally) -> None:
    rng = np.random.default_rng(seed)
    down = []
    with tempfile.TemporaryDirectory(prefix="hesearch-torture-") as folder:
        server = Server(Path(folder), free_port(rng))
        with server:
            with crowd(seed, server.address, tally, clients=CLIENTS, processes=PROCESSES, collections=1):
                for number in range(int(runs)):
                    time.sleep(rng.uniform(*PAUSE_S))
                    start = time.perf_counter()
                    if status := server.terminate():
                        tally.fail(f"run {number}", f"SIGTERM: exit status {status}")
                    server.start()
                    down.append(time.perf_counter() - start)
                    tally.runs += 1
            for what, count in tally.counts.items():
                if ": " in what:
                    tally.fail("all runs", f"{what}, {count} times")
    tally.special["failed_searches"] = sum(n for what, n in tally.counts.items() if what.startswith("search: "))
    tally.special["down_s"] = {"median": statistics.median(down), "max": max(down)}


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.restarts", "rolling restarts under load", "runs", 50, run))

"""Sixteen clients search and write for as long as asked; every result is checked, and the server's memory watched.

    python -m tests.torture.soak --seed 1 --seconds 1800

The clients are those of tests.torture.crowd, in a few processes and collections. They mix searches (of everything, and
of a few rows), inserts, upserts, deletes and compactions. In the end every collection is read by a client that knows
nothing, and the server stops with 0. Errors other than Conflict and Unavailable (Overloaded) are failures.

The server has the environment that deploy/hesearch.service gives it.

JSON keys beside those of tests.torture.tally: `counts`: searches checked, operations acknowledged by kind, announced
errors as `what: class`; `rss`: what tests.torture.slope makes of the server's resident memory (`whole`, and `own`:
without its mapped files), after WARM of the time.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.servers import rss_bytes
from tests.torture.crowd import crowd
from tests.torture.server import Server, free_port
from tests.torture.slope import robust_slope
from tests.torture.tally import Tally, main

CLIENTS, PROCESSES, COLLECTIONS = 16, 4, 3
UNIT = Path(__file__).parents[2] / "deploy" / "hesearch.service"
WARM = 1 / 3  #: of the time, before memory is looked at
SAMPLE_S = 1.0


def run(seed: int, seconds: float, tally: Tally) -> None:
    with (
        patch.dict(os.environ, deployed_environment()),
        tempfile.TemporaryDirectory(prefix="hesearch-torture-") as folder,
    ):
        # What a compaction uploads that another one forestalls is collected by age: here, before memory is looked at.
        server = Server(Path(folder), free_port(np.random.default_rng(seed)), "--orphan-age-s", "120", threads=2)
        with server:
            with crowd(seed, server.address, tally, clients=CLIENTS, processes=PROCESSES, collections=COLLECTIONS):
                tally.special["rss"] = watch_memory(server.pid, seconds)
            tally.runs = tally.counts["searches checked"]
            if status := server.terminate():
                tally.fail("the end", f"SIGTERM: exit status {status}")


def deployed_environment() -> dict[str, str]:
    """What the unit sets."""
    lines = re.findall("^Environment=(.*)$", UNIT.read_text(), re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def watch_memory(pid: int, seconds: float) -> dict[str, dict[str, float]]:
    """Of a process, for so long."""
    start = time.monotonic()
    samples = []
    while (passed := time.monotonic() - start) < seconds:
        if passed >= WARM * seconds:
            samples.append((passed, rss_bytes(pid, "VmRSS"), rss_bytes(pid, "RssAnon")))
        time.sleep(SAMPLE_S)
    times, whole, own = zip(*samples, strict=True)
    return {"whole": robust_slope(times, whole), "own": robust_slope(times, own)}


if __name__ == "__main__":
    raise SystemExit(main("tests.torture.soak", "16 clients search and write at the same time", "seconds", 1800.0, run))

"""Storage faults at every I/O call.

    python -m tests.faults.run power    the power goes: after every call, in what a disk may have kept (disk.py)
    python -m tests.faults.run errors   EIO, ENOSPC, short writes, failed syncs: at every call
    python -m tests.faults.run kill     SIGKILL before every call, and in the middle of every write

Each plays the scripts of workload.py: in a folder that is not sealed, in one that is, and in one that becomes so; and
what operators do (copies.py). What is asked for is in verdict.py, campaigns.py and copies.py. Several may be named;
their figures are added. Linux with glibc, and a C compiler; on one core.

    --seed N       of subsets, crashes and samples (default 1)
    --every N      a seeded sample: one run in N
    --only NAME    the one run of that name, as a failure prints it
    --lying-disk   power: no sync has any effect. This has to fail: it shows that the test can
    --json FILE    the figures: what, runs, failures, lost, phantom, seconds, seed, command, problems (the first few),
                   counts (what happened), machine

Exit status 0: no failure.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import describe, print_json
from he_client import CollectionKey
from tests.faults import copies, faultio
from tests.faults.campaigns import CAMPAIGNS, REHEARSAL, Run
from tests.faults.scenes import Stage, record
from tests.faults.verdict import Verdict
from tests.faults.workload import Keys, Step, scripts

SHOWN = 20  #: problems in the JSON
WHAT = {
    "power": "power loss after every I/O call",
    "errors": "ENOSPC, EIO, short write and failed sync at every I/O call",
    "kill": "SIGKILL at every I/O call",
}


class Tally:
    def __init__(self, command: str) -> None:
        self.command = command
        self.runs = self.lost = self.phantom = self.failures = 0
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, name: str, verdict: Verdict) -> None:
        self.runs += 1
        self.lost += verdict.lost
        self.phantom += verdict.phantom
        self.counts.update(verdict.notes)
        if verdict.problems:
            self.failures += 1
            self.problems.append(f"{name}: {'; '.join(verdict.problems)}")
            print(f"{self.problems[-1]}\n    again: {self.command} --only {name}", file=sys.stderr, flush=True)


def play(stage: Stage, mode: str, keys: Keys, steps: list[Step], arguments: argparse.Namespace, tally: Tally) -> None:
    """All runs of one campaign that were asked for, on one kind of folder."""
    recording = record(stage, keys, steps, arguments.seed)
    if arguments.lying_disk:
        synced = faultio.Op.SYNC
        recording = replace(recording, calls=[c for c in recording.calls if c.op is not synced])
    tally.counts[f"calls recorded, {mode}"] = sum(bool(c.kind & faultio.Calls.CHANGE) for c in recording.calls)
    for what in arguments.what:
        sample(f"{what}/{mode}", CAMPAIGNS[what](stage, recording, arguments.seed), arguments, tally)


def sample(prefix: str, runs: Iterable[Run], arguments: argparse.Namespace, tally: Tally) -> None:
    """Those that were asked for."""
    for name, run in runs:
        name = f"{prefix}/{name}"
        if arguments.only:
            wanted = name.startswith(arguments.only)
        else:
            wanted = random.Random(f"{arguments.seed} {name}").random() * arguments.every < 1 or name.endswith(
                REHEARSAL
            )
        if wanted and (verdict := run()) is not None:
            tally.add(name, verdict)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run")
    parser.add_argument("what", choices=CAMPAIGNS, nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--lying-disk", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    command = f"python -m tests.faults.run {' '.join(arguments.what)} --seed {arguments.seed}"
    tally, start = Tally(command), time.perf_counter()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hesearch-faults-", dir=memory if memory.is_dir() else None) as scratch:
        for mode, (keys, steps) in scripts(CollectionKey.generate(), Path(scratch)).items():
            if f"/{mode}/" in arguments.only or not arguments.only:
                folder = Path(scratch) / mode
                folder.mkdir()
                play(Stage(folder, faultio.FaultIO()), mode, keys, steps, arguments, tally)
        if ("/copies/" in arguments.only or not arguments.only) and not arguments.lying_disk:
            folder = Path(scratch) / "copies"
            folder.mkdir()
            for what in arguments.what:
                runs = copies.runs(what, Stage(folder, faultio.FaultIO()), arguments.seed)
                sample(f"{what}/copies", runs, arguments, tally)
    figures = {
        "what": "; ".join(WHAT[what] for what in arguments.what),
        "runs": tally.runs,
        "failures": tally.failures,
        "lost": tally.lost,
        "phantom": tally.phantom,
        "seconds": round(time.perf_counter() - start, 1),
        "seed": arguments.seed,
        "command": command if arguments.every == 1 else f"{command} --every {arguments.every:g}",
        "problems": tally.problems[:SHOWN],
        "counts": dict(sorted(tally.counts.items())),
        "machine": describe(),
    }
    print_json(figures, arguments.json)
    return int(tally.failures > 0)


def start() -> int:
    """`main` in a process with the library."""
    if "faultio.so" in os.environ.get("LD_PRELOAD", ""):
        del os.environ["LD_PRELOAD"]  # of processes that this one starts
        return main()
    with tempfile.TemporaryDirectory(prefix="hesearch-faultio-") as folder:
        environment = faultio.environment(Path(folder))
        return subprocess.run([sys.executable, "-m", "tests.faults.run", *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(start())

"""Feeds a parser inputs that are nearly right, and fails where it raises anything but a HesearchError.

    python -m tests.fuzz.run --target segment-file --inputs 1000000 --seed 1 --json build/fuzz.json
    python -m tests.fuzz.run --list

Also a failure: an input that takes over 100 ms, or more than twice the memory that the parser declares (the best of
five each). The same seed gives the same inputs, but for what is encrypted anew. What failed is written to --failures,
to be put into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from he_engine.errors import HesearchError
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

T = TypeVar("T", int, float)
ROOT = Path(__file__).parents[2]
MAX_S, NOTED_S = 0.1, 0.002
LARGEST = 1 << 15  #: of what is changed: larger ones take their time
MEASURED = 16  #: memory is measured for one input in so many, since that makes them slow


@dataclass
class Outcome:
    """Of one run."""

    runs: int = 0
    taken: int = 0  #: inputs that were taken as right
    slowest_s: float = 0.0
    peak_bytes: int = 0
    threads: int = 1  #: of this process, between inputs
    failures: dict[str, bytes] = field(default_factory=dict)  #: what went wrong and where → the first such input


def fuzz(target: Target, inputs: int, seed: int) -> Outcome:
    """All of the corpus, then changed samples of it."""
    outcome = Outcome()
    rng = Random(f"{target.name} {seed}")
    corpus = target.corpus
    for data in corpus[:inputs]:
        one(target, data, outcome, measured=True)
    corpus = [data for data in corpus if len(data) <= LARGEST] or corpus
    while outcome.runs < inputs:
        data = target.mutate(rng, rng.choice(corpus), corpus)
        if target.repair and rng.random() < 0.6:
            data = target.repair(data)
        one(target, data, outcome, measured=outcome.runs % MEASURED == 0)
    return outcome


def one(target: Target, data: bytes, outcome: Outcome, *, measured: bool) -> None:
    """Hands one input to the parser, and notes what happened."""
    outcome.runs += 1
    if measured:
        peak_bytes = _peak_bytes(target, data, outcome)
        if peak_bytes > 2 * target.limit_bytes:  # another thread of the process may have taken it
            peak_bytes = _least(_peak_bytes, target, data, outcome)
        outcome.peak_bytes = max(outcome.peak_bytes, peak_bytes)
        if peak_bytes > 2 * target.limit_bytes:
            outcome.failures.setdefault(f"over twice {target.limit_bytes} bytes of memory", data)
        return
    elapsed_s = _elapsed_s(target, data, outcome)
    if elapsed_s > max(outcome.slowest_s, NOTED_S):  # the machine may have been busy
        elapsed_s = _least(_elapsed_s, target, data, outcome)
        if elapsed_s > MAX_S:
            outcome.failures.setdefault(f"over {MAX_S} s", data)
    outcome.slowest_s = max(outcome.slowest_s, elapsed_s)


def _least(measure: Callable[[Target, bytes, Outcome], T], target: Target, data: bytes, outcome: Outcome) -> T:
    """Of five tries of one input, which counts once."""
    taken = outcome.taken
    measured = [measure(target, data, outcome) for _ in range(5)]
    outcome.taken = taken
    return min(measured)


def _elapsed_s(target: Target, data: bytes, outcome: Outcome) -> float:
    began = time.perf_counter()
    try:
        target.run(data)
        outcome.taken += 1
    except HesearchError:
        pass
    except Exception as error:
        outcome.failures.setdefault(_signature(error), data)
    return time.perf_counter() - began


def _peak_bytes(target: Target, data: bytes, outcome: Outcome) -> int:
    _wait_for_threads(outcome)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _elapsed_s(target, data, outcome)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        _wait_for_threads(outcome)
        tracemalloc.stop()


def _threads() -> int:
    """As the system counts them: one whose end Python has waited for may be there yet."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _wait_for_threads(outcome: Outcome) -> None:
    """Until those of the last input have gone, a second at most. One that frees its memory while tracemalloc starts or
    stops, which replaces the allocator in several steps, ends the process (seen with Python 3.11)."""
    until_s = time.perf_counter() + 1.0
    while _threads() > outcome.threads and time.perf_counter() < until_s:
        time.sleep(0.0005)
    outcome.threads = max(outcome.threads, _threads())  # those that stay


def _signature(error: Exception) -> str:
    ours = [
        f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename and "/lib/" not in f.filename
    ]
    place = f"{Path(ours[-1].filename).name}, {ours[-1].name}: {ours[-1].line}"
    return f"{type(error).__name__} in {place}"


class Run:
    """The line of one run in a report."""

    def __init__(self, target: Target, seed: int, command: str) -> None:
        self._target, self._seed, self._command = target, seed, command
        self._began = time.perf_counter()

    def report(self, outcome: Outcome, failures: Path | None) -> dict[str, Any]:
        """Inputs that failed are written into the folder `failures`."""
        found = []
        for what, data in outcome.failures.items():
            name = hashlib.sha256(data).hexdigest()[:16]
            found.append({"what": what, "input": name, "hex": data[:2048].hex()})
            print(f"{self._target.name}: {what}: {name}", file=sys.stderr)
            if failures is not None:
                (failures / self._target.name).mkdir(parents=True, exist_ok=True)
                (failures / self._target.name / name).write_bytes(data)
        return {
            "what": f"fuzz {self._target.name}",
            "runs": outcome.runs,
            "failures": len(found),
            "found": found,
            "taken": outcome.taken,
            "seconds": round(time.perf_counter() - self._began, 1),
            "seed": self._seed,
            "command": self._command,
            "slowest_ms": round(1000 * outcome.slowest_s, 2),
            "peak_bytes": outcome.peak_bytes,
            "limit_bytes": self._target.limit_bytes,
        }


def write(lines: list[dict[str, Any]], path: Path | None) -> None:
    """Into a file, or on standard output."""
    text = json.dumps(lines, indent=1) + "\n"
    if path is None:
        print(text, end="")
    else:
        path.write_text(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the report goes; default: standard output")
    parser.add_argument("--failures", type=Path, help="folder for inputs that failed")
    parser.add_argument("--list", action="store_true", help="name the targets")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print("\n".join(TARGETS))
        return 0
    warnings.simplefilter("ignore")
    lines: list[dict[str, Any]] = []
    for name in chosen.target:
        command = f"python -m tests.fuzz.run --target {name} --inputs {chosen.inputs} --seed {chosen.seed}"
        target = TARGETS[name]()
        one_run = Run(target, chosen.seed, command)
        try:
            lines.append(one_run.report(fuzz(target, chosen.inputs, chosen.seed), chosen.failures))
        finally:
            target.close()
        if chosen.json:
            write(lines, chosen.json)  # as far as it went
    if not chosen.json:
        write(lines, None)
    return int(any(line["failures"] for line in lines))


if __name__ == "__main__":
    sys.exit(main())

"""What a torture test counts, its command line, and the JSON that it leaves.

JSON keys (stable): `what`, `runs`, `failures`, `lost`, `phantom`, `seconds`, `seed`, `command`, `problems` (the first
few failures in words), `machine`, and what is special to one test.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, print_json
from tests.torture.oracle import Findings

SHOWN = 20  #: problems in the JSON


@dataclass(slots=True)
class Tally:
    """Grows while a test runs."""

    runs: int = 0
    lost: int = 0
    phantom: int = 0
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    special: dict[str, Any] = field(default_factory=dict)

    def add(self, where: str, findings: Findings) -> None:
        self.lost += findings.lost
        self.phantom += findings.phantom
        self.problems += [f"{where}: {problem}" for problem in findings.problems]

    def fail(self, where: str, problem: object) -> None:
        text = f"{type(problem).__name__}: {problem}" if isinstance(problem, BaseException) else str(problem)
        self.problems.append(f"{where}: {text}")

    def merge(self, other: Tally) -> None:
        """What was counted elsewhere, but for its runs."""
        self.lost += other.lost
        self.phantom += other.phantom
        self.problems += other.problems
        self.counts += other.counts

    def figures(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "failures": len(self.problems),
            "lost": self.lost,
            "phantom": self.phantom,
            "problems": self.problems[:SHOWN],
            "counts": dict(sorted(self.counts.items())),
            **self.special,
        }


def main(module: str, what: str, amount: str, default: float, run: Callable[[int, float, Tally], None]) -> int:
    """Command line of one test. `amount`: "runs" or "seconds", which `run(seed, amount, tally)` is given.

    1 if anything failed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=what)
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(f"--{amount}", type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    size = getattr(arguments, amount)
    tally, start = Tally(), time.perf_counter()
    run(arguments.seed, size, tally)
    figures = {
        "what": what,
        **tally.figures(),
        "seconds": round(time.perf_counter() - start, 1),
        "seed": arguments.seed,
        "command": f"python -m {module} --seed {arguments.seed} --{amount} {size}",
        "machine": describe(),
    }
    print_json(figures, arguments.json)
    return int(bool(tally.problems))

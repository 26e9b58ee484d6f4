"""Timing that survives a noisy machine: candidates take turns, and the median of each is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs."""

    median_s: float
    minimum_s: float
    maximum_s: float
    times_s: tuple[float, ...]  #: in the order of the rounds


def alternate(candidates: Mapping[Name, Callable[[], object]], rounds: int, *, threads: int = 1) -> dict[Name, Timing]:
    """Run every candidate once to warm up, then all of them in turn, `rounds` times.

    Where they use several threads, a pause before each: BLAS and OpenMP threads keep a core busy for some 25 ms after
    their work, waiting for more, and would take it from the next candidate.
    """
    for run in candidates.values():
        run()
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            if threads > 1:
                time.sleep(PAUSE_S)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(t), min(t), max(t), tuple(t)) for name, t in times.items()}

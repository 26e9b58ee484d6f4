"""Timing that survives a noisy machine: candidates take turns, and the median of each is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs."""

    median_s: float
    minimum_s: float
    maximum_s: float


def alternate(candidates: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, Timing]:
    """Run every candidate once to warm up, then all of them in turn, `rounds` times."""
    for run in candidates.values():
        run()
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(t), min(t), max(t)) for name, t in times.items()}

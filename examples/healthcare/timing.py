"""How long one prediction takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

REPEATS = 5


def median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)

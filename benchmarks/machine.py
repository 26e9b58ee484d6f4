"""The machine that a figure was measured on, and how figures are written down."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from he_engine.kernels._answer import targets


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory, Python: what a reader needs to place the figures."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel_targets": targets(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def read_bandwidth_gb_s(megabytes: int = 512, repeats: int = 5) -> float:
    """The best of `repeats` plain sums over memory, one thread: the ceiling of any scan."""
    words = np.ones(megabytes << 17, np.uint64)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        words.sum()
        best = max(best, words.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def print_json(figures: dict[str, Any], path: Path | None) -> None:
    """Figures as JSON on stdout, and in a file where one is named."""
    text = json.dumps(figures, indent=1)
    if path:
        path.write_text(text + "\n")
    print(text)

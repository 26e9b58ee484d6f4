"""The machine that a figure was measured on, and how figures are written down."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from he_engine.kernels._answer import targets


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory, versions: what a reader needs to place the figures."""
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
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
    }


def last_level_cache_bytes() -> int:
    """Of the first processor's largest cache; 64 MB where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=64_000_000)


def print_json(figures: dict[str, Any], path: Path | None) -> None:
    """Figures as JSON on stdout, and in a file where one is named."""
    text = json.dumps(figures, indent=1)
    if path:
        path.write_text(text + "\n")
    print(text)

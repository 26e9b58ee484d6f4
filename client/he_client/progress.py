"""A progress bar on stderr for long work, when somebody is watching."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

MINIMUM_BYTES = 4 << 20  #: shorter downloads show no bar by themselves


@contextmanager
def progress_bar(wanted: bool | None, total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that advances the bar. wanted None: only on a terminal, and not for short work."""
    shown = sys.stderr.isatty() and (unit != "B" or total >= MINIMUM_BYTES) if wanted is None else wanted
    with tqdm(
        total=total, desc=what, unit=unit if unit == "B" else f" {unit}", unit_scale=unit == "B",
        disable=not shown, leave=bool(wanted),
    ) as bar:  # fmt: skip
        lock = threading.Lock()

        def advance(amount: int) -> None:
            with lock:
                bar.update(amount)

        yield advance

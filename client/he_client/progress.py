"""A progress bar on stderr for long work, when somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

MINIMUM = {"B": 4 << 20, "rows": 1}  #: shorter work shows no bar by itself


@contextmanager
def progress_bar(wanted: bool | None, total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives a function that advances the bar. wanted None: only on a terminal, and not for short work."""
    shown = sys.stderr.isatty() and total >= MINIMUM[unit] if wanted is None else wanted
    with tqdm(
        total=total, desc=what, unit=unit if unit == "B" else f" {unit}", unit_scale=unit == "B",
        disable=not shown, leave=bool(wanted),
    ) as bar:  # fmt: skip

        def advance(amount: int) -> None:
            bar.update(amount)

        yield advance

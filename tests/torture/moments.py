"""When to kill: a seeded share of an operation's usual time after an operation of a seeded kind began."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from tests.torture.rows import KINDS

USUAL_S = 0.02  #: of a kind that was never timed
LATEST = 1.2  #: the largest share: some operations have just ended


class Moments:
    """The moments of one series of runs."""

    def __init__(self, rng: np.random.Generator, kinds: Sequence[str] = tuple(KINDS)) -> None:
        self._rng = rng
        self._kinds = kinds
        self._seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=15))
        self.kind = ""  #: of the operation to be interrupted
        self._share = 0.0

    def choose(self) -> None:
        """The moment of the next run."""
        self.kind, self._share = str(self._rng.choice(self._kinds)), self._rng.uniform(0, LATEST)

    def ended(self, kind: str, seconds: float) -> None:
        """An operation took so long."""
        self._seen[kind].append(seconds)

    def wait(self) -> None:
        """Call it when the operation begins; returns at the moment."""
        time.sleep(self._share * statistics.median(self._seen[self.kind] or [USUAL_S]))

"""How long shards usually let one wait, and so what is late."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

_KEPT = 256
_ENOUGH = 20
_START_S = 1.0
_LEAST_S = 0.03


class Waits:
    """Of all calls of one front end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._late_s = _START_S

    @property
    def late_s(self) -> float:
        """Twice the 95th percentile of recent waits, at least _LEAST_S: about one batch in 20 or fewer is hedged."""
        return self._late_s

    def add(self, seconds: float) -> None:
        with self._lock:
            self._recent.append(seconds)
            if len(self._recent) >= _ENOUGH and len(self._recent) % 8 == 0:
                self._late_s = max(_LEAST_S, 2 * float(np.quantile(list(self._recent), 0.95)))

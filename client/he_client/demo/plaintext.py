"""The same search without encryption: FAISS IndexFlatIP, the exact scan that we are compared with."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import MissingExtra

F32 = NDArray[np.float32]


class PlaintextSearch:
    """An index over unit vectors in this process; it could as well lie, readable, on somebody's server."""

    def __init__(self, rows: F32, threads: int) -> None:
        """rows: (n, d). threads: of every FAISS call in this process. Raises MissingExtra without FAISS."""
        try:
            import faiss
        except ImportError:
            raise MissingExtra(
                "faiss-cpu, the plaintext search, is not installed: pip install 'hesearch[demo]'"
            ) from None
        faiss.omp_set_num_threads(threads)
        self._index: Any = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)
        self.index_bytes = rows.nbytes

    def search(self, queries: F32, k: int) -> list[list[int]]:
        """(B, d) → for each query min(k, n) row numbers, best first."""
        _, found = self._index.search(queries, min(k, self._index.ntotal))
        rows: list[list[int]] = found.tolist()
        return rows

    def seconds(self, query: F32, k: int, repeats: int) -> float:
        """Median time of one query (d,) over `repeats` calls, in s."""
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.search(query[None], k)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

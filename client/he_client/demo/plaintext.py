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
        """rows: (n, d). threads: of FAISS, whose setting is the process's. Raises MissingExtra without FAISS."""
        try:
            import faiss
        except ImportError:
            raise MissingExtra("faiss-cpu, the plaintext search, is not installed: pip install '.[demo]'") from None
        self._faiss: Any = faiss
        self._threads = threads
        self._index: Any = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)
        self.index_bytes = rows.nbytes

    def search(self, queries: F32, k: int) -> list[list[int]]:
        """(B, d) → for each query min(k, n) row numbers, best first."""
        self._faiss.omp_set_num_threads(self._threads)
        rows: list[list[int]] = self._search(queries, k).tolist()
        return rows

    def seconds(self, query: F32, k: int, repeats: int) -> float:
        """Median time of one query (d,) over `repeats` calls, in s.

        On `threads` threads or on one, whichever is faster: one query is too little work for FAISS to gain by
        a second thread (4.7 ms on one, 7.9 to 25 ms on two), and we compare with its best.
        """
        medians = []
        for threads in {1, self._threads}:
            self._faiss.omp_set_num_threads(threads)
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                self._search(query[None], k)
                times.append(time.perf_counter() - start)
            medians.append(statistics.median(times))
        return min(medians)

    def _search(self, queries: F32, k: int) -> NDArray[np.int64]:
        _, found = self._index.search(queries, min(k, self._index.ntotal))
        return np.asarray(found, np.int64)

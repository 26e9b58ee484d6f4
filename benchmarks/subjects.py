"""Our engines as benchmark subjects: encrypted rows in a file, answered by T threads, recovered by a client."""

from __future__ import annotations

import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client.engines import choose_parameters, generate_state, make_engine
from he_engine.engine import ClientEngine, IndexFile, ServerEngine
from he_engine.keys import RootKey
from he_engine.params import Parameters

UNIT_BYTES = 16 << 20  #: index bytes of one unit of work, as the server splits it


class Subject:
    """One engine, loaded with rows; `answer` is exactly what a server does for one query."""

    def __init__(
        self,
        folder: Path,
        rows: NDArray[np.float64],
        engine: str,
        profile: str | None,
        stride: int | None,
        threads: int,
        repeats: int = 1,
    ) -> None:
        self.parameters = choose_parameters(engine, profile, rows.shape[1], stride)
        state = generate_state(self.parameters)
        key = RootKey(secrets.token_bytes(32))
        self.client: ClientEngine = make_engine(self.parameters, key, bytes(16), state, threads=threads)
        self.server = _server(self.parameters, threads)
        self._pool = ThreadPoolExecutor(threads)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            encrypted = self.client.setup(rows)
            times.append(time.perf_counter() - start)
        self.encrypt_s = statistics.median(times[1:] or times)  # the first run warms up
        path = folder / f"{engine}.index"
        path.write_bytes(encrypted.index)
        self.hint_bytes = len(encrypted.hint)
        self.cache_bytes = self.hint_bytes + len(encrypted.fingerprint)
        self.index = IndexFile(path, 0, len(encrypted.index), encrypted.blocks)
        self.segment = self.client.load(encrypted)
        self._units = max(1, UNIT_BYTES // self.client.index_bytes_per_block)

    def answer(self, query: Any) -> bytes:
        """The whole index against one query."""
        starts = range(0, self.index.blocks, self._units)

        def unit(first: int) -> bytes:
            blocks = min(self._units, self.index.blocks - first)
            return self.server.answer(self.index, first, blocks, [query.ciphertext])[0]

        return b"".join(self._pool.map(unit, starts))

    def scores(self, query: Any, answer: bytes) -> NDArray[np.float64]:
        return self.client.recover(query, [self.segment], [answer])[0]

    def close(self) -> None:
        self._pool.shutdown()
        self.server.close()
        self.client.close()


def _server(parameters: Any, threads: int) -> ServerEngine:
    if isinstance(parameters, Parameters):
        from he_engine.hint_server import HintServer

        return HintServer(parameters)
    from he_engine.tenseal_server import TensealServer

    return TensealServer(parameters.dim, workers=threads)

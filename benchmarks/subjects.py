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
from he_server.search.answering import blocks_per_unit

F64 = NDArray[np.float64]
PIECE_ROWS = 1 << 16  #: of plaintext that is copied at a time


class Subject:
    """One engine, loaded with rows; `answer` is exactly what a server does for one query.

    `target` names the instruction set of the hint engine's kernels, both sides' ("" for the best).
    """

    def __init__(
        self,
        folder: Path,
        rows: F64,
        engine: str,
        profile: str | None,
        stride: int | None,
        threads: int,
        repeats: int = 1,
        target: str = "",
    ) -> None:
        self.parameters = choose_parameters(engine, profile, rows.shape[1], stride)
        state = generate_state(self.parameters)
        key = RootKey(secrets.token_bytes(32))
        self.client = _client(self.parameters, key, state, threads, target)
        self.server = _server(self.parameters, threads, target)
        self._pool = ThreadPoolExecutor(threads)
        self._map = map if threads == 1 else self._pool.map  # one thread is the calling one, as for the peers
        times = []
        for _ in range(repeats):
            encrypted = None  # one index in memory, not two
            start = time.perf_counter()
            encrypted = self.client.setup(rows)
            times.append(time.perf_counter() - start)
        assert encrypted is not None
        self.encrypt_s = statistics.median(times[1:] or times)  # the first run warms up
        path = folder / f"{engine}.index"
        path.write_bytes(encrypted.index)
        self.hint_bytes = len(encrypted.hint)
        self.cache_bytes = self.hint_bytes + len(encrypted.fingerprint)
        self.index = IndexFile(path, 0, len(encrypted.index), encrypted.blocks)
        self.segment = self.client.load(encrypted)
        self._unit = blocks_per_unit(self.server, self.index.length_bytes, threads)
        words = np.asarray(np.memmap(path, np.uint64, "r"))
        self._parts = np.array_split(words, threads)

    def answer(self, query: Any) -> bytes:
        """The whole index against one query."""
        starts = range(0, self.index.blocks, self._unit)

        def unit(first: int) -> bytes:
            blocks = min(self._unit, self.index.blocks - first)
            return self.server.answer(self.index, first, blocks, [query.ciphertext])[0]

        return b"".join(self._map(unit, starts))

    def read(self) -> int:
        """A plain sum over the bytes of the index, a share for each thread: what no scan of them can beat by much."""
        return sum(int(total) for total in self._map(np.sum, self._parts))

    def scores(self, query: Any, answer: bytes) -> F64:
        return self.client.recover(query, [self.segment], [answer])[0]

    def close(self) -> None:
        self._pool.shutdown()
        self.server.close()
        self.client.close()


def integer_scores(data: F64, queries: F64, quantiser: int) -> F64:
    """⟨⌊S·x⌉, ⌊S·y⌉⟩/S² for all pairs, (Q, n): exact, the integers are under 2^53."""
    asked = np.rint(queries * quantiser)
    pieces = [
        asked @ np.rint(data[first : first + PIECE_ROWS] * quantiser).T for first in range(0, len(data), PIECE_ROWS)
    ]
    return np.hstack(pieces) / float(quantiser * quantiser)


def check(subject: Subject, data: F64, queries: F64) -> dict[str, Any]:
    """Score error and recall of the whole encrypted path against float64 (keys: benchmarks.overhead)."""
    errors, found, identical = [], [], True
    hint = subject.parameters if isinstance(subject.parameters, Parameters) else None
    s = hint.quantiser if hint is not None else 0  # 0: not `exact`
    wanted = integer_scores(data, queries, s) if s else None
    for number, vector in enumerate(queries):
        query = subject.client.query(vector)
        scores = subject.scores(query, subject.answer(query))
        truth = data @ vector
        errors.append(scores - truth)
        best = np.argsort(-scores, kind="stable")[:10]
        threshold = np.partition(truth, len(truth) - 10)[len(truth) - 10]
        found.append(np.mean(truth[best] >= threshold))
        if wanted is not None:
            identical = identical and bool(np.array_equal(scores, wanted[number]))
    difference = np.concatenate(errors)
    return {
        "recall_at_10": float(np.mean(found)),
        "score_error_std": float(difference.std()),
        "score_error_max": float(np.abs(difference).max()),
        "expected_score_error_std": hint.score_error_std if hint is not None else None,
        "integer_identical": identical if s else None,
    }


def _client(parameters: Any, key: RootKey, state: bytes, threads: int, target: str) -> ClientEngine:
    if isinstance(parameters, Parameters):
        from he_engine.hint_client import HintClient

        return HintClient(parameters, key, bytes(16), state, threads=threads, target=target)
    return make_engine(parameters, key, bytes(16), state, threads=threads)


def _server(parameters: Any, threads: int, target: str) -> ServerEngine:
    if isinstance(parameters, Parameters):
        from he_engine.hint_server import HintServer

        return HintServer(parameters, target)
    from he_engine.tenseal_server import TensealServer

    return TensealServer(parameters.dim, workers=threads)

"""The server half of the `tenseal` engine: checks bytes with NumPy, then lets worker processes multiply.

Holds no key and imports nothing that decrypts; only the workers load TenSEAL (he_engine.tenseal_worker).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from he_engine.engine import MAX_QUERIES, Buffer, IndexFile
from he_engine.errors import InvalidInput, MissingExtra, NotFound, ResidueError, Unavailable
from he_engine.tenseal_format import (
    ANSWER_BYTES,
    CIPHERTEXT_BYTES,
    INSTALL,
    ROWS_PER_BLOCK,
    check_ciphertexts,
    check_dim,
)
from he_engine.tenseal_limits import LEAST_S, job_s
from he_engine.tenseal_pool import Job, QueryFiles, Refusals, Worker, ask

CACHE_BYTES = 1 << 30  #: ciphertexts kept parsed, all workers together: 64 KiB each
_CHECKED = 64  #: ciphertexts checked at a time: 2 MiB


class TensealServer:
    """ServerEngine of all collections of one dimension. Thread-safe; a worker answers one request at a time.

    A block always goes to the same worker, its neighbours to the others; each keeps its latest blocks and queries
    parsed. Workers start at the first answer. Raises ParameterError (dim), InvalidInput (workers), MissingExtra.
    """

    def __init__(self, dim: int, workers: int = 1, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._dim = check_dim(dim)
        if workers < 1:
            raise InvalidInput(f"workers: got {workers}, expected at least 1")
        if importlib.util.find_spec("tenseal") is None:
            raise MissingExtra(INSTALL)
        self._workers = [Worker(dim, cache_bytes // workers) for _ in range(workers)]
        self._queries = QueryFiles()
        self._refusals = Refusals()

    @property
    def query_bytes(self) -> int:
        """32,832·d."""
        return self._dim * CIPHERTEXT_BYTES

    @property
    def index_bytes_per_block(self) -> int:
        """32,832·d."""
        return self._dim * CIPHERTEXT_BYTES

    @property
    def answer_bytes_per_block(self) -> int:
        """98,304."""
        return ANSWER_BYTES

    @property
    def rows_per_block(self) -> int:
        """4,096."""
        return ROWS_PER_BLOCK

    # ---- checks --------------------------------------------------------------------------------------------
    def check_index(self, index: IndexFile) -> None:
        """Raises ResidueError unless the file holds `blocks` blocks of canonical residues, NotFound without one."""
        expected = index.blocks * self.index_bytes_per_block
        if index.length_bytes != expected:
            raise ResidueError(f"index: got {index.length_bytes} bytes, expected {expected}")
        with _opened(index) as descriptor:
            ciphertexts = index.blocks * self._dim
            for first in range(0, ciphertexts, _CHECKED):
                count = min(_CHECKED, ciphertexts - first)
                offset = index.offset_bytes + first * CIPHERTEXT_BYTES
                piece = os.pread(descriptor, count * CIPHERTEXT_BYTES, offset)
                check_ciphertexts(piece, count, f"index, from ciphertext {first}")

    def check_queries(self, queries: Sequence[Buffer]) -> None:
        """Raises ResidueError for a wrong length or residue, InvalidInput for a wrong number of queries."""
        self._check_lengths(queries)
        for number, query in enumerate(queries):
            check_ciphertexts(query, self._dim, f"query {number}")

    def _check_lengths(self, queries: Sequence[Buffer]) -> None:
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise InvalidInput(f"queries: got {len(queries)}, expected 1 to {MAX_QUERIES}")
        for number, query in enumerate(queries):
            if (got := memoryview(query).nbytes) != self.query_bytes:
                raise ResidueError(f"query {number}: got {got} bytes, expected {self.query_bytes}")

    # ---- answers -------------------------------------------------------------------------------------------
    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        """For each query, the answers of blocks [first_block, first_block + blocks), end to end.

        The calling thread waits without the interpreter lock. Workers keep queries parsed, so for all ranges of
        blocks that follow one another that happens once; where they are the same `bytes` objects, hashed once, too.

        Raises InvalidInput (a range outside the segment, the number), ResidueError, NotFound (the file is gone),
        Unavailable (the engine is closed). Also InvalidInput: worker processes ended or went over their time for it,
        one after the other, so these blocks or one of these queries break the engine; or they did so before.
        """
        self._check_lengths(queries)
        if first_block < 0 or blocks < 1 or first_block + blocks > index.blocks:
            raise InvalidInput(f"blocks: got {first_block} + {blocks}, expected a range within {index.blocks}")
        numbers = np.arange(first_block, first_block + blocks)
        owners = (zlib.crc32(_prefix(index).encode()) + numbers) % len(self._workers)
        busy = sorted(set(owners.tolist()))
        with _opened(index) as index_file, self._queries.open(queries) as (names, query_file):
            prefix = f"{_prefix(index)}{os.fstat(index_file).st_ino}|"
            step = self.index_bytes_per_block
            asked = [(f"query|{name}", q * self.query_bytes) for q, name in enumerate(names)]
            jobs = [
                Job(
                    {"blocks": [(f"{prefix}{k}", index.offset_bytes + k * step) for k in mine], "queries": asked},
                    len(queries) * len(mine) * ANSWER_BYTES,
                    job_s(self._dim, len(mine), len(queries)),
                )
                for mine in (numbers[owners == worker].tolist() for worker in busy)
            ]
            try:
                check = functools.partial(self._refusals.require_none, names)
                replies = ask([self._workers[worker] for worker in busy], jobs, (index_file, query_file), check)
            except InvalidInput:
                self._refusals.add(names)
                raise
        answers = np.empty((len(queries), blocks, ANSWER_BYTES), np.uint8)
        for worker, reply in zip(busy, replies, strict=True):
            answers[:, owners == worker] = np.frombuffer(reply, np.uint8).reshape(len(queries), -1, ANSWER_BYTES)
        return [one.tobytes() for one in answers]

    def warm(self, index: IndexFile) -> None:
        """Asks the system to read the file; workers parse it when they need it."""
        with _opened(index) as descriptor:
            os.posix_fadvise(descriptor, index.offset_bytes, index.length_bytes, os.POSIX_FADV_WILLNEED)

    def forget(self, index: IndexFile) -> None:
        """Drop the parsed blocks of a segment. Waits for answers under way."""
        running = [worker for worker in self._workers if worker.pid is not None]
        with contextlib.suppress(InvalidInput, Unavailable):  # a worker that has ended has forgotten
            ask(running, [Job({"forget": _prefix(index)}, 0, LEAST_S)] * len(running))

    def close(self) -> None:
        """End the workers; answers under way raise Unavailable."""
        for worker in self._workers:
            worker.close()
        self._queries.close()


def _prefix(index: IndexFile) -> str:
    """Under which workers keep the blocks of this file."""
    return f"index|{index.path}|{index.offset_bytes}|"


@contextlib.contextmanager
def _opened(index: IndexFile) -> Iterator[int]:
    try:
        descriptor = os.open(index.path, os.O_RDONLY)
    except FileNotFoundError:
        raise NotFound("index: the segment's file is gone") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)

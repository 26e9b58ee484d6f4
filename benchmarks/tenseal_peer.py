"""TenSEAL as a peer of the benchmarks: the usual way, one encrypted dot product a row, and its strongest way.

    per row   `CKKSVector.dot`, N = 4096, q = [39, 30, 39] bits, scale 2^30, encrypted query × encrypted row. The server
              holds relinearisation and Galois keys.
    packed    one ciphertext a coordinate, 4,096 rows a block, size-3 answers: what our `tenseal` engine computes, here
              in this process with everything parsed beforehand. Two rows share a complex slot, where the usual form
              has one: half the time a row. The server holds no key.

Each is a benchmarks.peers.EncryptedPeer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import Correctness, EncryptedPeer, check_scores
from he_engine.engine import Buffer
from he_engine.tenseal_client import TensealClient, TensealSegment, generate_state
from he_engine.tenseal_format import CIPHERTEXT_BYTES, ROWS_PER_BLOCK, score_error_std
from he_engine.tenseal_ring import sealapi
from he_engine.tenseal_worker import PARSED_BYTES, Scorer, Source

F64 = NDArray[np.float64]
SAMPLE_ROWS = 20  #: per row: milliseconds each
#: `dot` takes the rescaling prime for the scale: a relative error of 1e-3. Other primes are silently wrong by far
#: more ([36, 36, 37], say): such a run is not timed.
PER_ROW_TOLERANCE = 5e-3

sealapi()  # MissingExtra, an ImportError, at import and not half-way


def peers(rows: F64, vector: F64) -> dict[str, EncryptedPeer]:
    """Both, on samples of rows (n, d): the first 20, and one whole block (a partial one would cost as much). Per row is
    left out for more dimensions than slots."""
    packed: dict[str, EncryptedPeer] = {"packed": Packed(np.resize(rows, (ROWS_PER_BLOCK, rows.shape[1])), vector)}
    return packed if rows.shape[1] > 2048 else {"per_row": PerRow(rows[:SAMPLE_ROWS], vector), **packed}


class PerRow:
    """rows (n, d), vector (d,): unit vectors, d ≤ 2048."""

    def __init__(self, rows: F64, vector: F64) -> None:
        self._rows, self._vector = rows, vector
        self._encrypted: list[Any] = []
        self._query: Any = None

    def prepare(self) -> Correctness:
        import tenseal

        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[39, 30, 39], n_threads=1)
        context.global_scale = 2**30
        context.generate_galois_keys()
        self._encrypted = [tenseal.ckks_vector(context, row.tolist()) for row in self._rows]
        self._query = tenseal.ckks_vector(context, self._vector.tolist())
        scores = np.array([score.decrypt()[0] for score in self.run_once()])
        return check_scores(
            scores,
            self._rows,
            self._vector,
            tolerance=PER_ROW_TOLERANCE,
            index_bytes=len(self._encrypted[0].serialize()) * len(self._rows),
            query_bytes=len(self._query.serialize()),
        )

    def run_once(self) -> list[Any]:
        return [row.dot(self._query) for row in self._encrypted]


class Packed:
    """rows (n, d), vector (d,): unit vectors."""

    def __init__(self, rows: F64, vector: F64) -> None:
        self._rows, self._vector = rows, vector
        self._blocks: list[Source] = []
        self._queries: list[Source] = []
        self._scorer: Scorer | None = None

    def prepare(self) -> Correctness:
        dim = self._rows.shape[1]
        client = TensealClient(dim, generate_state())
        encrypted, query = client.setup(self._rows), client.query(self._vector)
        self._blocks = _sources(encrypted.index, dim, "block")
        self._queries = _sources(query.ciphertext, dim, "query")
        self._scorer = Scorer(dim, (encrypted.blocks + 1) * dim * PARSED_BYTES)
        (answer,) = self.run_once()
        (scores,) = client.recover(query, [TensealSegment(encrypted.rows, encrypted.blocks)], [answer])
        return check_scores(
            scores,
            self._rows,
            self._vector,
            tolerance=8 * score_error_std(),
            index_bytes=len(encrypted.index),
            query_bytes=len(query.ciphertext),
        )

    def run_once(self) -> list[bytes]:
        assert self._scorer is not None, "prepare first"
        return self._scorer.answer(self._blocks, self._queries)


def _sources(buffer: Buffer, dim: int, name: str) -> list[Source]:
    view, step = memoryview(buffer), dim * CIPHERTEXT_BYTES

    def source(start: int) -> Source:
        return Source(
            f"{name} {start}", lambda j: view[start + j * CIPHERTEXT_BYTES : start + (j + 1) * CIPHERTEXT_BYTES]
        )

    return [source(start) for start in range(0, len(view), step)]

"""TenSEAL as a peer of the benchmarks: the usual way, one encrypted dot product a row, and its strongest way.

    per row   `CKKSVector.dot`, N = 4096, q = [39, 30, 39] bits, scale 2^30, encrypted query × encrypted row. The server
              holds relinearisation and Galois keys.
    packed    one ciphertext a coordinate, 4,096 rows a block, size-3 answers: what our `tenseal` engine computes, here
              in this process with everything parsed beforehand. The server holds no key.

Each: `prepare()` encrypts and returns how exact its scores are; nothing is timed before that. Then `run_once()` is
one query over all its rows on one thread, encrypted inputs to encrypted outputs, for a caller that takes turns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import alternate
from he_engine.engine import Buffer
from he_engine.tenseal_client import TensealClient, TensealSegment, generate_state
from he_engine.tenseal_format import CIPHERTEXT_BYTES, ROWS_PER_BLOCK, score_error_std
from he_engine.tenseal_ring import sealapi
from he_engine.tenseal_worker import PARSED_BYTES, Scorer, Source

F64 = NDArray[np.float64]
#: `dot` takes the rescaling prime for the scale: a relative error of 1e-3. Other primes are silently wrong by far
#: more ([36, 36, 37], say): such a run is not timed.
PER_ROW_TOLERANCE = 5e-3
ROUNDS = 3

sealapi()  # MissingExtra, an ImportError, at import and not half-way


@dataclass(frozen=True, slots=True, kw_only=True)
class Correctness:
    """Of one peer's decrypted scores against float64."""

    rows: int
    score_error_std: float
    score_error_max: float
    index_bytes_per_row: float
    query_bytes: int


def _checked(scores: F64, rows: F64, vector: F64, tolerance: float, index_bytes: int, query_bytes: int) -> Correctness:
    errors = np.abs(scores - rows @ vector)
    if not errors.max() < tolerance:
        raise AssertionError(f"scores: the largest error is {errors.max():.2g}, expected under {tolerance:.2g}")
    return Correctness(
        rows=len(rows),
        score_error_std=float(np.std(scores - rows @ vector)),
        score_error_max=float(errors.max()),
        index_bytes_per_row=index_bytes / len(rows),
        query_bytes=query_bytes,
    )


class PerRow:
    """rows (n, d), vector (d,): unit vectors, d ≤ 2048. n is a sample: a row takes milliseconds."""

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
        sizes = len(self._encrypted[0].serialize()) * len(self._rows), len(self._query.serialize())
        return _checked(scores, self._rows, self._vector, PER_ROW_TOLERANCE, *sizes)

    def run_once(self) -> list[Any]:
        return [row.dot(self._query) for row in self._encrypted]


class Packed:
    """rows (n, d), vector (d,): unit vectors. Whole blocks of 4,096 rows are fair: a partial one costs as much."""

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
        sizes = len(encrypted.index), len(query.ciphertext)
        return _checked(scores, self._rows, self._vector, 8 * score_error_std(), *sizes)

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


def measure(
    rows: NDArray[Any],
    vector: NDArray[Any],
    *,
    sample_rows: int,
    packed_rows: int = ROWS_PER_BLOCK,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Both peers in turn on the first rows: `{per_row,packed}_s_per_row` (median), and their correctness.

    Per row is None for more dimensions than slots. Raises AssertionError where scores are wrong.
    """
    rows, vector = np.asarray(rows[: max(sample_rows, packed_rows)], np.float64), np.asarray(vector, np.float64)
    peers: dict[str, PerRow | Packed] = {"packed": Packed(rows[:packed_rows], vector)}
    if rows.shape[1] <= 2048:
        peers["per_row"] = PerRow(rows[:sample_rows], vector)
    figures = {name: peer.prepare() for name, peer in peers.items()}
    times = alternate({name: peer.run_once for name, peer in peers.items()}, rounds)
    out: dict[str, Any] = {"per_row_s_per_row": None}
    for name, figure in figures.items():
        out[f"{name}_s_per_row"] = times[name].median_s / figure.rows
        out[name] = asdict(figure) | {"median_s": times[name].median_s}
    return out

"""What encryption is compared with: plaintext searches, checked before they are timed, and other libraries' encryption.

    numpy       data @ query, every score, on T threads
    faiss       `IndexFlatIP`. FAISS does not split one query (given two OpenMP threads, 1.15 takes longer than on
                one), so each of T threads has a shard of the rows
    faiss_all   the same on all cores
    hnsw, ivf   `IndexHNSWFlat` and `IndexIVFFlat`: they read a share of the rows and miss some of the ten best; what
                a plaintext user may really choose. Built on all cores, asked on one thread: a query reads too little
                to be split
    tenseal     one dot product a row, and dimension-packed: benchmarks.tenseal_peer
    openfhe     dimension-packed: benchmarks.openfhe_peer

All plaintext is float32, by inner product. A library that is not installed is named on stderr and left out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.subjects import PIECE_ROWS
from benchmarks.timing import alternate

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

K = 10
TOLERANCE = 2e-6  #: of a float32 inner product of unit vectors
RECALL = 0.95  #: that efSearch and nprobe are chosen for, on queries of their own
LEAST_RECALL = 0.9  #: on the test queries; less is not a search to compare with
LINKS, CONSTRUCTION = 32, 100  #: HNSW: M and efConstruction
POINTS_PER_LIST = 39  #: the fewest that FAISS trains an IVF list on without complaint
SAMPLE_ROUNDS = 5
INSTALL = {
    "faiss": "FAISS is not installed: pip install '.[bench]'",
    "tenseal": "TenSEAL is not installed: pip install '.[tenseal]'",
    "openfhe": "OpenFHE cannot be imported: pip install openfhe (its wheels hold a binary for one Python each: "
    "3.10 for Ubuntu 22.04, 3.12 for Ubuntu 24.04; for another, build openfhe-python)",
}


# ---- truth ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Truth:
    """Of each query, in float64: its ten best rows and their scores, both (Q, 10), best first."""

    rows: I64
    scores: F64


def find_truth(data: F64, queries: F64) -> Truth:
    """data (n ≥ 10, d), queries (Q, d)."""
    rows, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0))
    for first in range(0, len(data), PIECE_ROWS):
        more = queries @ data[first : first + PIECE_ROWS].T
        numbers = np.broadcast_to(np.arange(first, first + more.shape[1]), more.shape)
        scores, rows = np.hstack([scores, more]), np.hstack([rows, numbers])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return Truth(rows, scores)


# ---- plaintext -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Peer:
    """`answer`, one query (d,) → what the peer computes, is what is timed; `best` takes the ten best out of that."""

    answer: Callable[[F32], Any]
    best: Callable[[Any], tuple[F32, I64]]  #: → scores and rows, (10,)
    least_recall: float = 1.0


def check(name: str, peer: Peer, data: F32, queries: F64, truth: Truth) -> float:
    """recall@10. Raises AssertionError where a score is not that of its row, or too few of the ten best are found."""
    right = 0
    for vector, tenth in zip(queries, truth.scores[:, K - 1], strict=True):
        scores, rows = peer.best(peer.answer(vector.astype(np.float32)))
        scores, rows = scores[rows >= 0], rows[rows >= 0]  # FAISS: −1 where it found fewer
        if not np.allclose(data[rows].astype(np.float64) @ vector, scores, rtol=0, atol=TOLERANCE):
            raise AssertionError(f"{name}: got a score that is not the inner product with its row")
        right += len(np.unique(rows[scores >= tenth - TOLERANCE]))
    recall = right / (K * len(queries))
    if recall < peer.least_recall:
        raise AssertionError(f"{name}: got recall@10 {recall:.4f}, expected at least {peer.least_recall}")
    return recall


def numpy_product(data: F32, _threads: int) -> Peer:
    def best(scores: F32) -> tuple[F32, I64]:
        rows = np.argsort(-scores, kind="stable")[:K]
        return scores[rows], rows

    return Peer(lambda vector: data @ vector, best)


def _faiss_peer(index: Any, least_recall: float = 1.0) -> Peer:
    return Peer(lambda vector: index.search(vector[None], K), lambda found: (found[0][0], found[1][0]), least_recall)


def faiss_flat(data: F32, threads: int) -> Peer:
    faiss: Any = import_module("faiss")
    parts = np.array_split(data, threads)
    shards = [faiss.IndexFlatIP(data.shape[1]) for _ in parts]
    for shard, part in zip(shards, parts, strict=True):
        shard.add(part)
    if threads == 1:
        return _faiss_peer(shards[0])
    pool = ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))  # of the calling thread
    starts = np.cumsum([0, *map(len, parts[:-1])])

    def answer(vector: F32) -> list[tuple[F32, I64]]:
        return list(pool.map(lambda shard: shard.search(vector[None], K), shards))

    def best(found: list[tuple[F32, I64]]) -> tuple[F32, I64]:
        scores = np.hstack([part[0][0] for part in found])
        rows = np.hstack([part[1][0] + start for part, start in zip(found, starts, strict=True)])
        order = np.argsort(-scores, kind="stable")[:K]
        return scores[order], rows[order]

    return Peer(answer, best)


def faiss_flat_all(data: F32, _threads: int) -> Peer:
    return faiss_flat(data, os.cpu_count() or 1)


EXACT: dict[str, Callable[[F32, int], Peer]] = {
    "numpy": numpy_product, "faiss": faiss_flat, "faiss_all": faiss_flat_all,
}  # fmt: skip
APPROXIMATE = ("hnsw", "ivf")
ENCRYPTED = ("tenseal", "openfhe")
NAMES = (*EXACT, *APPROXIMATE, *ENCRYPTED)
LIBRARY = {name: name if name in ENCRYPTED else "faiss" for name in NAMES if name != "numpy"}


def available(names: Iterable[str]) -> list[str]:
    """Those of `names` whose library can be imported; for each library that cannot, a line on stderr."""
    wanted, missing = list(names), set()
    for library in dict.fromkeys(LIBRARY[name] for name in wanted if name in LIBRARY):
        try:
            import_module(f"benchmarks.{library}_peer" if library in ENCRYPTED else library)
        except ImportError:
            print(INSTALL[library], file=sys.stderr)
            missing.add(library)
    return [name for name in wanted if LIBRARY.get(name) not in missing]


def exact_peers(names: Iterable[str], data: F32, threads: int) -> dict[str, Peer]:
    """Those of `names`, all available, that compare with every row. data (n, d), unit rows."""
    wanted = [name for name in names if name in EXACT]
    if wanted != ["numpy"] and wanted:
        import_module("faiss").omp_set_num_threads(1)
    return {name: EXACT[name](data, threads) for name in wanted}


def approximate_peers(
    names: Iterable[str], data: F32, tuning: F64, truth: Truth
) -> tuple[dict[str, Peer], dict[str, dict[str, Any]]]:
    """Those of `names`, all available, that do not; and how each was built and tuned (keys: benchmarks.overhead)."""
    peers, figures = {}, {}
    for name in [name for name in names if name in APPROXIMATE]:
        faiss: Any = import_module("faiss")
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        start = time.perf_counter()
        index, tuned, first, last = _hnsw(data) if name == "hnsw" else _ivf(data)
        seconds = time.perf_counter() - start
        faiss.omp_set_num_threads(1)
        value, recall = _tune(index, tuned, first, last, tuning, truth)
        peers[name] = _faiss_peer(index, LEAST_RECALL)
        figures[name] = {
            "build_s": seconds,
            "bytes": _stored_bytes(index),
            "parameter": tuned[1],
            "value": value,
            "tuning_recall_at_10": recall,
        }
    return peers, figures


def _hnsw(data: F32) -> tuple[Any, tuple[Any, str], int, int]:
    """The index, (object, name) of what is tuned, and the range of that."""
    faiss: Any = import_module("faiss")

    index = faiss.IndexHNSWFlat(data.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = CONSTRUCTION
    index.add(data)
    return index, (index.hnsw, "efSearch"), 16, 4096  # FAISS takes at least K


def _ivf(data: F32) -> tuple[Any, tuple[Any, str], int, int]:
    faiss: Any = import_module("faiss")

    lists = 1 << int(np.log2(max(1, min(4 * np.sqrt(len(data)), len(data) / POINTS_PER_LIST))))
    quantiser = faiss.IndexFlatIP(data.shape[1])
    index = faiss.IndexIVFFlat(quantiser, data.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(data)
    index.add(data)
    return index, (index, "nprobe"), 1, lists


def _tune(index: Any, tuned: tuple[Any, str], first: int, last: int, queries: F64, truth: Truth) -> tuple[int, float]:
    """The smallest power of two in [first, last] that reaches RECALL, or the last; and its recall."""
    value = first
    while True:
        setattr(*tuned, value)
        scores, _ = index.search(queries.astype(np.float32), K)
        recall = float(np.mean(scores >= truth.scores[:, K - 1 :] - TOLERANCE))
        if recall >= RECALL or value >= last:
            return value, recall
        value *= 2


def _stored_bytes(index: Any) -> int:
    faiss: Any = import_module("faiss")

    total = 0

    def count(piece: bytes) -> None:
        nonlocal total
        total += len(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return total


# ---- encrypted by others -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Correctness:
    """Of one peer's decrypted scores against float64."""

    rows: int
    score_error_std: float
    score_error_max: float
    index_bytes_per_row: float
    query_bytes: int


class EncryptedPeer(Protocol):
    """`prepare` encrypts and returns how exact its scores are, or raises AssertionError where they are wrong. Then
    `run_once` is one query over all its rows on one thread, encrypted inputs to encrypted outputs."""

    def prepare(self) -> Correctness: ...
    def run_once(self) -> object: ...


def check_scores(
    scores: F64, rows: F64, vector: F64, *, tolerance: float, index_bytes: int, query_bytes: int
) -> Correctness:
    """Raises AssertionError where an error is not under the tolerance."""
    errors = scores - rows @ vector
    largest = float(np.abs(errors).max())
    if not largest < tolerance:
        raise AssertionError(f"scores: the largest error is {largest:.2g}, expected under {tolerance:.2g}")
    return Correctness(
        rows=len(rows),
        score_error_std=float(errors.std()),
        score_error_max=largest,
        index_bytes_per_row=index_bytes / len(rows),
        query_bytes=query_bytes,
    )


def measure_encrypted(
    names: Iterable[str], rows: F64, vector: F64, rounds: int = SAMPLE_ROUNDS
) -> dict[str, dict[str, Any]]:
    """By library `FORM_s_per_row` (median) and FORM (correctness and times of the sample), FORM `per_row` or `packed`;
    `packed_one_row_a_slot_s_per_row` is derived: the same ciphertexts with half the rows, so twice the time a row."""
    libraries = [name for name in names if name in ENCRYPTED]
    if not libraries:
        return {}
    peers: dict[str, Mapping[str, EncryptedPeer]] = {
        name: import_module(f"benchmarks.{name}_peer").peers(rows, vector) for name in libraries
    }
    with limit_threads(1, None):
        correct = {(name, form): peer.prepare() for name, forms in peers.items() for form, peer in forms.items()}
        times = alternate({(name, form): peers[name][form].run_once for name, form in correct}, rounds)
    out: dict[str, dict[str, Any]] = {name: {} for name in peers}
    for (name, form), figure in correct.items():
        t = times[name, form]
        out[name][f"{form}_s_per_row"] = t.median_s / figure.rows
        out[name][form] = asdict(figure) | {"median_s": t.median_s, "min_s": t.minimum_s, "max_s": t.maximum_s}
    for figures in out.values():
        figures["packed_one_row_a_slot_s_per_row"] = 2 * figures["packed_s_per_row"]
    return out


def limit_threads(threads: int, kind: str | None = "blas") -> AbstractContextManager[object]:
    """BLAS, or with None OpenMP too, on so many threads; without threadpoolctl on as many as they like, and said so."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        print("NumPy's threads are not limited: pip install '.[bench]'", file=sys.stderr)
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(threads, kind)
    return limits

"""A plaintext search server on the same gRPC stack: FAISS `IndexFlatIP` behind one unary method. A peer, not a product.

python -m benchmarks.faiss_server ROWS.npy THREADS        # prints "listening on 127.0.0.1:PORT", stops on SIGTERM

One search at a time on THREADS threads. FAISS does not split a single query, so each thread has a shard of the rows
(`IndexShards`). From BLAS_QUERIES on, the queries of a call are a matrix product, which is faster then; left alone,
FAISS 1.15 does that from queries · dimensions = 128,000 on only.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks import plain_server

METHOD = "/benchmarks.Plain/Search"
K = 10
BLAS_QUERIES = 4
PIECE_ROWS = 100_000


def load(faiss: Any, rows: NDArray[np.float32], threads: int) -> Any:
    """The index. rows (n, d) may be mapped from a file."""
    dim = rows.shape[1]
    shards = [faiss.IndexFlatIP(dim) for _ in range(threads)]
    for shard, part in zip(shards, np.array_split(rows, threads), strict=True):
        for first in range(0, len(part), PIECE_ROWS):
            shard.add(np.ascontiguousarray(part[first : first + PIECE_ROWS]))
    if threads == 1:
        return shards[0]
    index = faiss.IndexShards(dim, True, True)  # threaded, row numbers follow on
    for shard in shards:
        index.add_shard(shard)
    return index


def main(path: str, threads: int) -> int:
    rows = np.load(path, mmap_mode="r")
    os.environ["OMP_NUM_THREADS"] = "1"  # of each shard; read when FAISS is loaded
    import faiss

    index, turn = load(faiss, rows, threads), threading.Lock()

    def search(request: bytes, _context: Any) -> bytes:
        """float32 queries end to end → for each, K float32 scores then K int64 row numbers."""
        queries = np.frombuffer(request, np.float32).reshape(-1, rows.shape[1])
        with turn:
            faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= BLAS_QUERIES else 1 << 30
            scores, found = index.search(queries, K)
        return bytes(scores.astype("<f4").tobytes() + found.astype("<i8").tobytes())

    service, method = METHOD.strip("/").split("/")
    return plain_server.run(service, {method: grpc.unary_unary_rpc_method_handler(search)}, workers=4)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))

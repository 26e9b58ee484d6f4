"""A plaintext search server on the same gRPC stack: FAISS `IndexFlatIP` behind one unary method. A peer, not a product.

python -m benchmarks.faiss_server ROWS.npy THREADS        # prints "listening on 127.0.0.1:PORT", stops on SIGTERM
"""

from __future__ import annotations

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import grpc
import numpy as np

METHOD = "/benchmarks.Plain/Search"
K = 10


def main(path: str, threads: int) -> int:
    rows = np.load(path, mmap_mode="r")
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(rows.shape[1])
    for first in range(0, len(rows), 100_000):
        index.add(np.ascontiguousarray(rows[first : first + 100_000]))

    def search(request: bytes, _context: Any) -> bytes:
        """float32 queries end to end → for each, K float32 scores then K int64 row numbers."""
        scores, found = index.search(np.frombuffer(request, np.float32).reshape(-1, rows.shape[1]), K)
        return bytes(scores.astype("<f4").tobytes() + found.astype("<i8").tobytes())

    server = grpc.server(ThreadPoolExecutor(4))
    service, method = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(search)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(f"listening on 127.0.0.1:{port}", flush=True)
    stop.wait()
    server.stop(1).wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))

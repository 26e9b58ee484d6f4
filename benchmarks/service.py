"""A whole query as a user has it: SDK, gRPC, server process, and back; beside FAISS behind the same gRPC stack.

    python -m benchmarks.service --rows 1000000 --dim 512 --profile compact --threads 1 --json out.json

Both servers are processes on loopback that hold the same rows; queries take turns and medians are compared. Then a cold
start: the server process anew, and a client that has nothing cached.

JSON keys (stable): `machine`, `arguments`, `query_s` (encrypted: whole, and its parts encrypt, server, recover),
`plaintext_s`, `ratio_query_vs_plaintext`, `recall_at_10`, `insert_rows_per_s`, `stored_bytes_per_row`,
`server_rss_bytes`, `server_rss_beyond_index_bytes`, `batch` (queries a call → seconds a query, encrypted and
plaintext), `cold_server_s`, `cold_client_s`, `cold_client_bytes`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.faiss_server import METHOD, K
from benchmarks.machine import describe, print_json
from benchmarks.overhead import make_data
from he_client import Client, Collection, CollectionKey

F32 = NDArray[np.float32]
BATCHES = (1, 8, 32)


@contextmanager
def process(*arguments: str) -> Iterator[tuple[str, int]]:
    """(address, pid) of a server process that prints `listening on ADDRESS`; ended, by its pid, afterwards."""
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started.stdout.readline().split()[-1], started.pid
        finally:
            started.terminate()


def rss_bytes(pid: int, kind: str) -> int:
    """RssAnon (the process's own memory) or RssFile (its mapped files) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    return 0


class Plain:
    """The client of benchmarks.faiss_server."""

    def __init__(self, address: str) -> None:
        channel = grpc.insecure_channel(address)
        self._search: Any = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

    def __call__(self, queries: F32) -> NDArray[np.int64]:
        answer = self._search(np.ascontiguousarray(queries, np.float32).tobytes())
        found = np.frombuffer(answer[4 * K * len(queries) :], "<i8")
        return found.reshape(len(queries), K)


def serve(folder: Path, threads: int) -> tuple[str, ...]:
    return ("he_server", "--data", str(folder), "--listen", "127.0.0.1:0", "--insecure", "--threads", str(threads))


def turns(collection: Collection, plain: Plain, queries: F32, rounds: int) -> dict[str, Any]:
    """Alternating single queries."""
    ours: list[tuple[float, float, float, float]] = []
    theirs, hits = [], []
    for number in range(rounds + 2):
        query = queries[number % len(queries)]
        start = time.perf_counter()
        found = collection.search(query, k=K)
        whole = time.perf_counter() - start
        report = collection.last_search
        assert report is not None
        start = time.perf_counter()
        expected = plain(query[None])[0]
        plaintext = time.perf_counter() - start
        if number >= 2:  # the first two warm up
            ours.append((whole, report.encrypt_s, report.server_s, report.recover_s))
            theirs.append(plaintext)
        hits.append(len({hit.id for hit in found} & set(expected.tolist())) / K)
    medians = [statistics.median(part) for part in zip(*ours, strict=True)]
    return {
        "query_s": dict(zip(("whole", "encrypt", "server", "recover"), medians, strict=True)),
        "plaintext_s": statistics.median(theirs),
        "ratio_query_vs_plaintext": medians[0] / statistics.median(theirs),
        "recall_at_10": float(np.mean(hits)),
    }


def batches(collection: Collection, plain: Plain, queries: F32, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a query when so many come in one call."""
    out = {}
    for size in BATCHES:
        group = np.resize(queries, (size, queries.shape[1]))
        ours, theirs = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            collection.search(group, k=K)
            report = collection.last_search
            assert report is not None
            ours.append((time.perf_counter() - start, report.server_s))
            start = time.perf_counter()
            plain(group)
            theirs.append(time.perf_counter() - start)
        whole, server = (statistics.median(part) / size for part in zip(*ours, strict=True))
        out[str(size)] = {"whole_s": whole, "server_s": server, "plaintext_s": statistics.median(theirs) / size}
    return out


def measure(a: argparse.Namespace) -> dict[str, Any]:
    data, queries = make_data(a.rows, a.dim)
    rows, asked = data.astype(np.float32), queries.astype(np.float32)
    del data
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name:
        folder, key = Path(name), CollectionKey.generate()
        np.save(folder / "rows.npy", rows)
        ours = serve(folder / "data", a.threads)
        with process(*ours) as (address, pid), Client(address, insecure=True) as client:
            collection = client.create_collection("c", dim=a.dim, key=key, profile=a.profile)
            start = time.perf_counter()
            collection.insert(range(a.rows), rows)
            insert_s = time.perf_counter() - start
            info = client.describe("c")
            del rows
            with process("benchmarks.faiss_server", str(folder / "rows.npy"), str(a.threads)) as (plain, _):
                figures = turns(collection, Plain(plain), asked, a.rounds)
                figures["batch"] = batches(collection, Plain(plain), asked, max(3, a.rounds // 5))
            figures["server_rss_beyond_index_bytes"] = rss_bytes(pid, "RssAnon")
            figures["server_rss_bytes"] = rss_bytes(pid, "RssAnon") + rss_bytes(pid, "RssFile")
        start = time.perf_counter()
        with process(*ours) as (address, _), Client(address, insecure=True) as client:
            cold_server_s = time.perf_counter() - start
            start = time.perf_counter()
            client.open_collection("c", key=key).search(asked[0], k=K)
            cold_client_s = time.perf_counter() - start
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        **figures,
        "insert_rows_per_s": a.rows / insert_s,
        "stored_bytes_per_row": info.stored_bytes / a.rows,
        "cold_server_s": cold_server_s,
        "cold_client_s": cold_client_s,
        "cold_client_bytes": info.stored_bytes - info.index_bytes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service",
        description="A whole encrypted query beside FAISS over the same gRPC stack.",
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), default="exact")
    parser.add_argument("--threads", type=int, default=1, help="of either server")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(arguments)
    print_json(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

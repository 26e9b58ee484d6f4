"""A whole query as a user has it: SDK, gRPC, server process, and back; beside FAISS behind the same gRPC stack.

    python -m benchmarks.service --rows 1000000 --dim 512 --profile compact --threads 1 --json out.json

Both servers are processes on loopback that hold the same rows; queries take turns and medians are compared. Then cold
starts: the server process anew, once after the system was asked to forget the pages of its files, and once more; and a
client that has nothing cached.

JSON keys (stable): `machine`, `arguments`, `query_s` (encrypted: `whole`, and its parts `encrypt`, `server`, from the
first byte sent to the last received, and `recover`, what is left of the client's work then), `server_alone_s` (the same
call, answers drained and not recovered), `client_work_s` (a query's work on the client, wherever it was hidden),
`plaintext_s`, `ratio_query_vs_plaintext`, `ratio_client_vs_server` (`client_work_s` / `server_alone_s`),
`recall_at_10`, `insert_rows_per_s`, `index_bytes`, `stored_bytes_per_row`, `server_rss_bytes`,
`server_rss_beyond_index_bytes`, `batch` (queries a call → seconds a query, encrypted and plaintext);
`cold_page_cache_share` (of the server's files, in memory all the same: 0 is cold), `cold_server_s` and `warm_server_s`
(until it listens), `cold_first_answer_s` and `warm_first_answer_s` (connect and first query, drained: it reads the
whole index), `cold_mb_s` and `warm_mb_s` (index / both together), `cold_disk_mb_s` (the same files, as cold, read one
after the other); `cold_client_s` (open and search), `cold_client_open_s`, `cold_client_bytes`, `cold_client_mb_s`
(bytes / open).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.faiss_server import K
from benchmarks.machine import describe, print_json
from benchmarks.overhead import make_data
from benchmarks.servers import ANSWER, Asker, Encrypted, Plain, drop_page_cache, process, rss_bytes, serve
from he_client import Client, Collection, CollectionKey

F32 = NDArray[np.float32]
BATCHES = (1, 8, 32)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def turns(
    collection: Collection, alone: Callable[[], object], plain: Plain, queries: F32, rounds: int
) -> dict[str, Any]:
    """Alternating single queries: whole, drained, plaintext."""
    ours: list[tuple[float, ...]] = []
    hits = []
    for number in range(rounds + 2):
        query = queries[number % len(queries)]
        start = time.perf_counter()
        found = collection.search(query, k=K)
        whole = time.perf_counter() - start
        report = collection.last_search
        assert report is not None
        drained = seconds(alone)
        start = time.perf_counter()
        expected = plain(query[None])[0]
        plaintext = time.perf_counter() - start
        work = report.encrypt_s + report.recover_work_s
        if number >= 2:  # the first two warm up
            ours.append((whole, report.encrypt_s, report.server_s, report.recover_s, drained, work, plaintext))
        hits.append(len({hit.id for hit in found} & set(expected.tolist())) / K)
    *parts, drained, work, plaintext = (statistics.median(part) for part in zip(*ours, strict=True))
    return {
        "query_s": dict(zip(("whole", "encrypt", "server", "recover"), parts, strict=True)),
        "server_alone_s": drained,
        "client_work_s": work,
        "plaintext_s": plaintext,
        "ratio_query_vs_plaintext": parts[0] / plaintext,
        "ratio_client_vs_server": work / drained,
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


def starts(
    folder: Path, threads: int, key: CollectionKey, messages: Sequence[bytes], vector: F32, index_bytes: int
) -> dict[str, Any]:
    """The server after its pages were dropped, then again; then a client with nothing cached."""
    drop_page_cache(folder)
    disk_mb_s = read_all(folder)
    out: dict[str, Any] = {"cold_page_cache_share": drop_page_cache(folder)}
    for name in ("cold", "warm"):
        start = time.perf_counter()
        with process(*serve(folder, threads)) as (address, _):
            listening = time.perf_counter()
            ask = Asker(address, ANSWER)
            ask(messages)
            answered = time.perf_counter()
            ask.close()
            out |= {f"{name}_server_s": listening - start, f"{name}_first_answer_s": answered - listening}
            out[f"{name}_mb_s"] = index_bytes / (answered - start) / 1e6
            if name == "warm":
                with Client(address, insecure=True) as client:
                    start = time.perf_counter()
                    collection = client.open_collection("c", key=key)
                    opened = time.perf_counter() - start
                    collection.search(vector, k=K)
                    out |= {"cold_client_s": time.perf_counter() - start, "cold_client_open_s": opened}
    return out | {"cold_disk_mb_s": disk_mb_s}


def read_all(folder: Path) -> float:
    """MB/s at which the files under `folder` can be read one after the other."""
    buffer, total = bytearray(1 << 20), 0
    start = time.perf_counter()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - start) / 1e6


def measure(a: argparse.Namespace) -> dict[str, Any]:
    data, queries = make_data(a.rows, a.dim)
    rows, asked = data.astype(np.float32), queries.astype(np.float32)
    del data
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name:
        folder, key = Path(name), CollectionKey.generate()
        np.save(folder / "rows.npy", rows)
        with (
            process(*serve(folder / "data", a.threads)) as (address, pid),
            Client(address, insecure=True) as client,
        ):
            collection = client.create_collection("c", dim=a.dim, key=key, profile=a.profile)
            start = time.perf_counter()
            collection.insert(range(a.rows), rows)
            insert_s = time.perf_counter() - start
            info = client.describe("c")
            del rows
            encrypted, ask = Encrypted(address, "c", key), Asker(address, ANSWER)
            messages = encrypted.messages([encrypted.ciphertext(asked[0])])
            with process("benchmarks.faiss_server", str(folder / "rows.npy"), str(a.threads)) as (plain, _):
                figures = turns(collection, lambda: ask(messages), Plain(plain), asked, a.rounds)
                figures["batch"] = batches(collection, Plain(plain), asked, max(3, a.rounds // 5))
            encrypted.close()
            ask.close()
            own, mapped = rss_bytes(pid, "RssAnon"), rss_bytes(pid, "RssFile")
        figures |= starts(folder / "data", a.threads, key, messages, asked[0], info.index_bytes)
    cold_client_bytes = info.stored_bytes - info.index_bytes
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        **figures,
        "insert_rows_per_s": a.rows / insert_s,
        "cold_client_bytes": cold_client_bytes,
        "cold_client_mb_s": cold_client_bytes / figures["cold_client_open_s"] / 1e6,
        "index_bytes": info.index_bytes,
        "stored_bytes_per_row": info.stored_bytes / a.rows,
        "server_rss_bytes": own + mapped,
        "server_rss_beyond_index_bytes": max(own, own + mapped - info.index_bytes),
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

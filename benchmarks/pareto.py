"""What the stride buys: query upload against client cache, client and server time, beside what `hesearch plan` expects.

    python -m benchmarks.pareto --rows 100000 --dim 512 --json out.json

For each profile and stride: our server as a process, the SDK as its client on loopback, whole queries one after the
other; the server's answer alone, recall and score error through benchmarks.subjects. The plan is made just before, for
a link of the rate and round trip that searches of one row show. Times: predicted / measured; bytes: equal or not.

Client and server share this machine, as they would not elsewhere, so the plan is told how far they hinder each other:
`overlap` is measured first, once (1: not at all, 0: they could as well take turns).

JSON keys (stable): `machine`, `arguments`, `overlap`, `link` (`bytes_per_s`, `round_trip_s`), `points`,
`largest_deviation` (of whole queries: the largest |predicted / measured − 1|), `deviations` (the same of every time),
`bytes_equal`, `chosen` (profile → the stride that the plan takes), `fastest` (profile → the one measured to have the
lowest latency). A point has `profile`, `dim`, `stride`, `rows`, `recall_at_10`, `score_error_std`,
`cache_bytes_per_row`, `measured` and `predicted` (both: `sent_bytes`, `received_bytes`, `client_cache_bytes`,
`server_disk_bytes`, `encrypt_s`, `server_s`, `recover_work_s`, `latency_s`, `open_s`, `upload_s`), `ratios` (of the
times) and `bytes_equal`. `upload_s` as measured has the server's hashing and writing in it, which the plan leaves out:
on loopback, and there alone, that counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe, print_json
from benchmarks.overhead import make_data
from benchmarks.servers import process, serve
from benchmarks.subjects import Subject, check
from benchmarks.timing import alternate
from he_client import Client, CollectionKey
from he_client.calibrate import calibrate
from he_client.plan import Link, Sizes, candidates, choose, predict
from he_engine.params import Parameters, Profile

F64 = NDArray[np.float64]
BYTES = ("sent_bytes", "received_bytes", "client_cache_bytes", "server_disk_bytes")
TIMES = ("encrypt_s", "server_s", "recover_work_s", "latency_s", "open_s", "upload_s")
K = 10
WARM = 3  #: queries that are not counted
TRIPS = 30
LONG_BYTES = 4 << 20  #: of a query


def loopback(address: str, dim: int) -> Link:
    """What the way to a server and back takes: searches of one row, with the shortest queries and with long ones."""
    every = candidates(Profile.EXACT, dim)
    short, long = every[-1], next(p for p in every if 4 * p.block_words <= LONG_BYTES)
    vector = np.ones((1, dim))
    seconds = []
    with Client(address, insecure=True) as client:
        for p in (short, long):
            name = f"link-{p.stride}"
            collection = client.create_collection(name, dim=dim, key=CollectionKey.generate(), stride=p.stride)
            collection.insert([0], vector)
            taken = []
            for _ in range(TRIPS):
                collection.search(vector[0], k=1)
                assert collection.last_search is not None
                taken.append(collection.last_search.server_s)
            seconds.append(statistics.median(taken))
            client.drop_collection(name)
    return Link(4 * (long.block_words - short.block_words) / max(1e-9, seconds[1] - seconds[0]), seconds[0])


def overlap_share(data: F64, queries: F64, a: argparse.Namespace) -> float:
    """(s + c − both) / min(s, c), of a server's pass and a client's recovery alone (s, c) and at the same time."""
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder, ThreadPoolExecutor(2) as pool:
        subject = Subject(Path(folder), data, "hint", Profile.EXACT.value, None, a.threads)
        query = subject.client.query(queries[0])
        answer = subject.answer(query)

        def server() -> None:
            subject.answer(query)

        def client() -> None:
            for _ in range(2):  # about as long as the server's pass
                subject.scores(query, answer)

        def both() -> None:
            for future in [pool.submit(server), pool.submit(client)]:
                future.result()

        times = alternate({"server": server, "client": client, "both": both}, a.rounds)
        subject.close()
    s, c, together = (times[name].median_s for name in ("server", "client", "both"))
    return min(1.0, max(0.0, (s + c - together) / min(s, c)))


def alone(p: Parameters, data: F64, queries: F64, a: argparse.Namespace) -> dict[str, Any]:
    """The server's answer without a network; recall and score error of all scores."""
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        subject = Subject(Path(folder), data, "hint", p.profile.value, p.stride, a.threads)
        precision = check(subject, data, queries)
        query = subject.client.query(queries[0])
        server_s = alternate({"server": lambda: subject.answer(query)}, a.rounds)["server"].median_s
        subject.close()
    return {"server_s": server_s, **{key: precision[key] for key in ("recall_at_10", "score_error_std")}}


def whole(address: str, p: Parameters, data: F64, queries: F64, a: argparse.Namespace) -> dict[str, Any]:
    """Insert, open anew, search: bytes, and medians of times. The collection is dropped afterwards."""
    key, name = CollectionKey.generate(), f"{p.profile.value}-{p.stride}"
    rows = data.astype(np.float32)
    with Client(address, insecure=True, threads=client_threads(a)) as client:
        collection = client.create_collection(name, dim=p.dim, key=key, profile=p.profile.value, stride=p.stride)
        start = time.perf_counter()
        collection.insert(range(len(rows)), rows)
        upload_s = time.perf_counter() - start
        info = client.describe(name)
    with Client(address, insecure=True, threads=client_threads(a)) as client:
        client.list_collections()  # connects
        start = time.perf_counter()
        collection = client.open_collection(name, key=key)
        open_s = time.perf_counter() - start
        reports = []
        for number in range(WARM + a.rounds):
            start = time.perf_counter()
            collection.search(queries[number % len(queries)], k=K)
            latency_s = time.perf_counter() - start
            reports.append((collection.last_search, latency_s))
        client.drop_collection(name)
    found = [(report, latency_s) for report, latency_s in reports[WARM:] if report is not None]
    return {
        "sent_bytes": found[0][0].query_bytes,
        "received_bytes": found[0][0].answer_bytes,
        "client_cache_bytes": info.stored_bytes - info.index_bytes,
        "server_disk_bytes": info.stored_bytes,
        "encrypt_s": statistics.median(report.encrypt_s for report, _ in found),
        "recover_work_s": statistics.median(report.recover_work_s for report, _ in found),
        "latency_s": statistics.median(latency_s for _, latency_s in found),
        "open_s": open_s,
        "upload_s": upload_s,
    }


def client_threads(a: argparse.Namespace) -> int:
    """What the server leaves of the machine."""
    return max(1, (os.cpu_count() or 1) - int(a.threads))


def measure(a: argparse.Namespace) -> dict[str, Any]:
    data, queries = make_data(a.rows, a.dim)
    points, links, chosen, fastest = [], [], {}, {}
    overlap = overlap_share(data, queries, a)
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder,
        process(*serve(Path(folder), a.threads)) as (
            address,
            _,
        ),
    ):
        for profile in a.profiles:
            plans = []
            for p in candidates(Profile(profile), a.dim):
                sizes = Sizes(p, a.rows)
                link = loopback(address, a.dim)
                (rates,) = calibrate([sizes], a.threads)
                engine = alone(p, data, queries, a)
                measured = whole(address, p, data, queries, a)
                measured["server_s"] = engine.pop("server_s")
                plan = predict(p, a.rows, replace(rates, client_threads=client_threads(a)), link, overlap=overlap)
                plans.append(plan)
                links.append(link)
                points.append(point(p, a.rows, measured, asdict(plan), engine))
                print(line(points[-1]), file=sys.stderr, flush=True)
            latency = {q["stride"]: q["measured"]["latency_s"] for q in points if q["profile"] == profile}
            chosen[profile] = choose(plans).stride
            fastest[profile] = min(latency, key=lambda stride: latency[stride])
    deviations = {key: max(abs(q["ratios"][key] - 1) for q in points) for key in TIMES}
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k != "json"},
        "overlap": overlap,
        "link": {
            "bytes_per_s": statistics.median(link.bytes_per_s for link in links),
            "round_trip_s": statistics.median(link.round_trip_s for link in links),
        },
        "points": points,
        "largest_deviation": deviations["latency_s"],
        "deviations": deviations,
        "bytes_equal": all(q["bytes_equal"] for q in points),
        "chosen": chosen,
        "fastest": fastest,
    }


def point(
    p: Parameters, rows: int, measured: dict[str, Any], plan: dict[str, Any], precision: dict[str, Any]
) -> dict[str, Any]:
    return {
        "profile": p.profile.value,
        "dim": p.dim,
        "stride": p.stride,
        "rows": rows,
        **precision,
        "cache_bytes_per_row": measured["client_cache_bytes"] / rows,
        "measured": measured,
        "predicted": {key: plan[key] for key in (*BYTES, *TIMES)},
        "ratios": {key: plan[key] / measured[key] for key in TIMES},
        "bytes_equal": all(plan[key] == measured[key] for key in BYTES),
    }


def line(q: dict[str, Any]) -> str:
    times = "  ".join(
        f"{key.removesuffix('_s')} {q['measured'][key] * 1e3:.1f} ms ({q['ratios'][key]:.2f})" for key in TIMES
    )
    return (
        f"{q['profile']:8} g={q['stride']:<4} {q['measured']['sent_bytes'] / 1e3:8.0f} KB sent "
        f"{q['cache_bytes_per_row']:7.0f} bytes a row cached, bytes {'equal' if q['bytes_equal'] else 'DIFFER'}, "
        f"recall {q['recall_at_10']:.4f}; measured (predicted/measured): {times}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto", description="Every stride, measured, beside what `hesearch plan` expects."
    )
    every = [p.value for p in Profile]
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--profiles", nargs="+", choices=every, default=every)
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(arguments)
    print_json(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

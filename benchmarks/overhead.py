"""What encryption costs: one query over an encrypted index beside the same query in plaintext, in the same run.

    python -m benchmarks.overhead --rows 100000 --dim 512 --profile compact --threads 1 --json out.json

First correctness (score error against float64, recall@10), then time: our server's answer, FAISS `IndexFlatIP`
and NumPy take turns on the same rows, and medians are compared. TenSEAL, where installed, is measured per row on a
sample (and extrapolated: marked so) and dimension-packed on a sample of whole blocks.

JSON keys (stable): `machine`, `arguments`, `times_s` (medians, minima, maxima), `read_bandwidth_gb_s`,
`ratio_server_vs_faiss` (our server time / FAISS), `ratio_server_vs_best_plaintext` (/ the better of FAISS and
NumPy), `ratio_tenseal_vs_hint` (per-row TenSEAL, extrapolated / ours), `ratio_tenseal_packed_vs_hint`,
`recall_at_10`, `score_error_std`, `score_error_max`, `expected_score_error_std`, `integer_identical` (`exact`:
bit-identical to the plaintext integer search; else null), `query_bytes`, `answer_bytes_per_row`,
`index_bytes_per_row`, `index_bytes_per_coordinate`, `hint_bytes_per_row`, `client_cache_bytes_per_row`,
`encrypt_rows_per_s`, `client_query_s`, `client_recover_s`. A peer that is not installed has null. The hint and the
cache (hint and fingerprint) count as downloaded and kept on disk; in memory a hint is expanded to 4·P·g bytes a row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe, read_bandwidth_gb_s
from benchmarks.subjects import Subject
from benchmarks.timing import alternate
from he_engine.params import Parameters

F64 = NDArray[np.float64]
QUERIES = 10  #: for correctness
ENCRYPTIONS = 4  #: of all rows; the first warms up, the median of the others counts
SAMPLE_ROWS = 20  #: per-row TenSEAL
PACKED_ROWS = 4096  #: dimension-packed TenSEAL
FIRST_SEED = 1


def make_data(rows: int, dim: int) -> tuple[F64, F64]:
    """Unit rows in overlapping clusters, and unit queries near some rows; seeded."""
    rng = np.random.default_rng(FIRST_SEED)
    centres = rng.standard_normal((256, dim), dtype=np.float32)
    data = centres[rng.integers(0, 256, rows)]
    data += rng.standard_normal((rows, dim), dtype=np.float32)
    unit = data / np.linalg.norm(data.astype(np.float64), axis=1, keepdims=True)
    queries = unit[rng.integers(0, rows, QUERIES)] + 0.3 * rng.standard_normal((QUERIES, dim)) / np.sqrt(dim)
    return unit, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def check(subject: Subject, data: F64, queries: F64) -> dict[str, Any]:
    """Score error and recall of the whole encrypted path against float64; nothing is timed before this."""
    errors, found, identical = [], [], True
    hint = subject.parameters if isinstance(subject.parameters, Parameters) else None
    s = hint.quantiser if hint is not None else 0  # 0: not `exact`
    integers = np.rint(data * s) if s else None
    for vector in queries:
        query = subject.client.query(vector)
        scores = subject.scores(query, subject.answer(query))
        truth = data @ vector
        errors.append(scores - truth)
        best = np.argsort(-scores, kind="stable")[:10]
        threshold = np.partition(truth, len(truth) - 10)[len(truth) - 10]
        found.append(np.mean(truth[best] >= threshold))
        if integers is not None:
            wanted = integers @ np.rint(vector * s) / float(s * s)
            identical = identical and bool(np.array_equal(scores, wanted))
    difference = np.concatenate(errors)
    return {
        "recall_at_10": float(np.mean(found)),
        "score_error_std": float(difference.std()),
        "score_error_max": float(np.abs(difference).max()),
        "expected_score_error_std": hint.score_error_std if hint is not None else None,
        "integer_identical": identical if s else None,
    }


def blas_threads(threads: int) -> AbstractContextManager[object]:
    """NumPy's matrix product on so many threads; without threadpoolctl on as many as it likes, and said so."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        print("NumPy's threads are not limited: pip install '.[bench]'", file=sys.stderr)
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(threads)
    return limits


def plaintext_peers(rows: F64, query: F64, threads: int) -> dict[str, Any]:
    """Callables that answer one query in float32 plaintext: all scores (NumPy) or the ten best (FAISS)."""
    data, vector = rows.astype(np.float32), query.astype(np.float32)
    peers: dict[str, Any] = {"numpy": lambda: data @ vector}
    try:
        import faiss
    except ImportError:
        print("FAISS is not installed: pip install '.[bench]'", file=sys.stderr)
        return peers
    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(data.shape[1])
    flat.add(data)
    peers["faiss"] = lambda: flat.search(vector[None], 10)
    return peers


def tenseal_peers(data: F64, queries: F64) -> dict[str, Any]:
    """Seconds a row of TenSEAL, per row and dimension-packed; {} where it is not installed."""
    try:
        from benchmarks import tenseal_peer
    except ImportError:
        print("TenSEAL is not installed: pip install '.[tenseal]'", file=sys.stderr)
        return {}
    return tenseal_peer.measure(data, queries[0], sample_rows=SAMPLE_ROWS, packed_rows=PACKED_ROWS)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    data, queries = make_data(arguments.rows, arguments.dim)
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        repeats = ENCRYPTIONS if arguments.engine == "hint" else 1
        subject = Subject(
            Path(folder), data, arguments.engine, arguments.profile, arguments.stride, arguments.threads, repeats
        )
        figures = check(subject, data, queries)
        query = subject.client.query(queries[0])
        answer = subject.answer(query)
        candidates = {
            "server": lambda: subject.answer(query),
            **plaintext_peers(data, queries[0], arguments.threads),
        }
        with blas_threads(arguments.threads):
            times = alternate(candidates, arguments.rounds)
        vector = queries[0]
        client = alternate(
            {"query": lambda: subject.client.query(vector), "recover": lambda: subject.scores(query, answer)},
            arguments.rounds,
        )
        subject.close()
    server = times["server"].median_s
    best = min(t.median_s for name, t in times.items() if name != "server")
    tenseal = {} if arguments.engine == "tenseal" else tenseal_peers(data, queries)
    rows = arguments.rows

    def against(seconds_per_row: float | None) -> float | None:
        return None if seconds_per_row is None else seconds_per_row * rows / server

    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
        "read_bandwidth_gb_s": read_bandwidth_gb_s(),
        "server_gb_s": subject.index.length_bytes / server / 1e9,
        "times_s": {name: {"median": t.median_s, "min": t.minimum_s, "max": t.maximum_s} for name, t in times.items()},
        "ratio_server_vs_faiss": server / times["faiss"].median_s if "faiss" in times else None,
        "ratio_server_vs_best_plaintext": server / best,
        "ratio_tenseal_vs_hint": against(tenseal.get("per_row_s_per_row")),
        "ratio_tenseal_packed_vs_hint": against(tenseal.get("packed_s_per_row")),
        "tenseal": tenseal or None,
        **figures,
        "query_bytes": len(query.ciphertext),
        "answer_bytes_per_row": len(answer) / rows,
        "index_bytes_per_row": subject.index.length_bytes / rows,
        "index_bytes_per_coordinate": subject.index.length_bytes / rows / arguments.dim,
        "hint_bytes_per_row": subject.hint_bytes / rows,
        "client_cache_bytes_per_row": subject.cache_bytes / rows,
        "encrypt_rows_per_s": rows / subject.encrypt_s,
        "client_query_s": client["query"].median_s,
        "client_recover_s": client["recover"].median_s,
    }


def report(figures: dict[str, Any]) -> str:
    """A table for people."""
    lines = [f"{figures['machine']['cpu']}, {figures['machine']['kernel_targets'][0]}"]
    for name, t in figures["times_s"].items():
        lines.append(f"  {name:<10} {t['median'] * 1e3:9.2f} ms   ({t['min'] * 1e3:.2f} to {t['max'] * 1e3:.2f})")
    for key, value in figures.items():
        if isinstance(value, bool | int | float) or value is None:
            lines.append(f"  {key:<34} {value if value is None or isinstance(value, bool) else format(value, '.5g')}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description="Cost of one encrypted query beside the same query in plaintext.",
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--engine", choices=("hint", "tenseal"), default="hint")
    parser.add_argument("--profile", choices=("exact", "compact", "precise"))
    parser.add_argument("--stride", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="alternating timed runs (default 15)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.engine == "hint" and arguments.profile is None:
        arguments.profile = "exact"
    figures = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

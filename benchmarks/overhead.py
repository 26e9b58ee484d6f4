"""What encryption costs: one query over an encrypted index beside the same query in plaintext, in the same run.

    python -m benchmarks.overhead --rows 100000 --dim 512 --profile compact --threads 1 --json out.json

First correctness (ours: score error against float64, recall@10; of each peer: benchmarks.peers.check), then time: our
server's answer, a plain sum over the bytes of our index and the plaintext searches take turns on the same rows, and
medians are compared. TenSEAL and OpenFHE are measured on samples, on one thread, and extrapolated to all rows.
`--approximate` adds HNSW and IVF, what a plaintext user may choose instead of reading every row, and an encrypted
search cannot: the price of exactness and secrecy. Building either takes many minutes at 1,000,000 rows. These rows are
clustered and the queries lie near some of them, which makes both look better than on real embeddings.

JSON keys (stable):
    machine, versions, arguments
    times_s                              candidate → median, min, max of one query over all rows, on `--threads` (but
                                         `hnsw`, `ivf`: one); `server`, `read` (that sum), the plaintext `--peers`
    read_bandwidth_gb_s, server_gb_s     bytes of our index / the median of `read`, of `server`
    ratio_server_vs_plain_read           the second as a share of the first: higher is better
    ratio_server_vs_…                    our server time / `faiss`, `faiss_all` (all cores), `hnsw`, `ivf`,
                                         `best_plaintext` (the better of FAISS and NumPy at this thread count)
    ratio_tenseal_vs_hint                one dot product a row / ours
    ratio_{tenseal,openfhe}_packed_vs_hint                   dimension-packed, two rows a slot: the strongest form
    ratio_{tenseal,openfhe}_packed_one_row_a_slot_vs_hint    the usual form; derived, twice that
    tenseal, openfhe                     their samples: benchmarks.peers.measure_encrypted
    approximate                          `hnsw`, `ivf` → build_s (all cores), bytes, parameter, value (the smallest
                                         power of two that reaches recall@10 0.95 on tuning queries),
                                         tuning_recall_at_10, recall_at_10 (of other queries)
    recall_at_10, score_error_std, score_error_max, expected_score_error_std
    integer_identical                    `exact`: bit-identical to the plaintext integer search; else null
    query_bytes, answer_bytes_per_row, index_bytes_per_row, index_bytes_per_coordinate
    hint_bytes_per_row, client_cache_bytes_per_row (hint and fingerprint)    as downloaded and kept on disk; in memory a
                                         hint is expanded to 4·P·g bytes a row
    encrypt_rows_per_s, client_query_s, client_recover_s
A peer that is not installed or not asked for has null.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.machine import describe
from benchmarks.subjects import PIECE_ROWS, Subject, check
from benchmarks.timing import Timing, alternate
from he_engine.kernels._answer import targets

F64 = NDArray[np.float64]
QUERIES = 10  #: for correctness
TUNING = 100  #: to choose efSearch and nprobe; as many again for their recall
ENCRYPTIONS = 4  #: of all rows; the first warms up, the median of the others counts
SAMPLE_ROWS = 4096  #: for TenSEAL and OpenFHE
FIRST_SEED = 1


def make_data(rows: int, dim: int, queries: int = QUERIES) -> tuple[F64, F64]:
    """Unit rows in overlapping clusters, and unit queries near some rows; seeded."""
    rng = np.random.default_rng(FIRST_SEED)
    centres = rng.standard_normal((256, dim), dtype=np.float32)
    clusters = rng.integers(0, 256, rows)
    unit = np.empty((rows, dim))
    for first in range(0, rows, PIECE_ROWS):
        piece = centres[clusters[first : first + PIECE_ROWS]]
        piece += rng.standard_normal(piece.shape, dtype=np.float32)
        lengths = np.linalg.norm(piece.astype(np.float64), axis=1, keepdims=True)
        np.divide(piece, lengths, out=unit[first : first + PIECE_ROWS])
    near = unit[rng.integers(0, rows, queries)] + 0.3 * rng.standard_normal((queries, dim)) / np.sqrt(dim)
    return unit, near / np.linalg.norm(near, axis=1, keepdims=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    names, rows, threads = peers.available(arguments.peers), arguments.rows, arguments.threads
    tuning = TUNING if set(names) & set(peers.APPROXIMATE) else 0
    data, queries = make_data(rows, arguments.dim, QUERIES + 2 * tuning)
    tests, tuning_queries, others = np.split(queries, [QUERIES, QUERIES + tuning])
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        subject = Subject(
            Path(folder),
            data,
            arguments.engine,
            arguments.profile,
            arguments.stride,
            threads,
            ENCRYPTIONS if arguments.engine == "hint" else 1,
            arguments.target,
        )
        figures = check(subject, data, tests)
        truths = [peers.find_truth(data, part) for part in (tests, tuning_queries, others)]
        plain, sample = data.astype(np.float32), data[:SAMPLE_ROWS].copy()
        del data
        searches = peers.exact_peers(names, plain, threads)
        for name, peer in searches.items():
            peers.check(name, peer, plain, tests, truths[0])
        inexact, approximate = peers.approximate_peers(names, plain, tuning_queries, truths[1])
        for name, peer in inexact.items():
            approximate[name]["recall_at_10"] = peers.check(name, peer, plain, others, truths[2])
        vector, vector32 = tests[0], tests[0].astype(np.float32)
        query = subject.client.query(vector)
        answer = subject.answer(query)
        candidates = {"server": lambda: subject.answer(query), "read": subject.read} | {
            name: partial(peer.answer, vector32) for name, peer in (searches | inexact).items()
        }
        with peers.limit_threads(threads):
            times = alternate(candidates, arguments.rounds, threads=threads)
        client = alternate(
            {"query": lambda: subject.client.query(vector), "recover": lambda: subject.scores(query, answer)},
            arguments.rounds,
        )
        subject.close()
    samples = peers.measure_encrypted(names, sample, vector) if arguments.engine == "hint" else {}
    index_bytes = subject.index.length_bytes
    return {
        "machine": describe(),
        "versions": versions(),
        "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
        "read_bandwidth_gb_s": index_bytes / times["read"].median_s / 1e9,
        "server_gb_s": index_bytes / times["server"].median_s / 1e9,
        "times_s": {name: {"median": t.median_s, "min": t.minimum_s, "max": t.maximum_s} for name, t in times.items()},
        **ratios(times, samples, rows),
        "approximate": {name: approximate.get(name) for name in peers.APPROXIMATE},
        **{name: samples.get(name) for name in peers.ENCRYPTED},
        **figures,
        "query_bytes": len(query.ciphertext),
        "answer_bytes_per_row": len(answer) / rows,
        "index_bytes_per_row": index_bytes / rows,
        "index_bytes_per_coordinate": index_bytes / rows / arguments.dim,
        "hint_bytes_per_row": subject.hint_bytes / rows,
        "client_cache_bytes_per_row": subject.cache_bytes / rows,
        "encrypt_rows_per_s": rows / subject.encrypt_s,
        "client_query_s": client["query"].median_s,
        "client_recover_s": client["recover"].median_s,
    }


def ratios(times: dict[str, Timing], samples: dict[str, dict[str, Any]], rows: int) -> dict[str, float | None]:
    """Our server's median beside each other one; null for what was not measured."""
    server = times["server"].median_s

    def over(*names: str) -> float | None:
        measured = [times[name].median_s for name in names if name in times]
        return server / min(measured) if measured else None

    def under(library: str, form: str) -> float | None:
        seconds_per_row = samples.get(library, {}).get(f"{form}_s_per_row")
        return None if seconds_per_row is None else seconds_per_row * rows / server

    return {
        "ratio_server_vs_plain_read": times["read"].median_s / server,
        "ratio_server_vs_faiss": over("faiss"),
        "ratio_server_vs_faiss_all": over("faiss_all"),
        "ratio_server_vs_best_plaintext": over("faiss", "numpy"),
        "ratio_server_vs_hnsw": over("hnsw"),
        "ratio_server_vs_ivf": over("ivf"),
        "ratio_tenseal_vs_hint": under("tenseal", "per_row"),
        "ratio_tenseal_packed_vs_hint": under("tenseal", "packed"),
        "ratio_tenseal_packed_one_row_a_slot_vs_hint": under("tenseal", "packed_one_row_a_slot"),
        "ratio_openfhe_packed_vs_hint": under("openfhe", "packed"),
        "ratio_openfhe_packed_one_row_a_slot_vs_hint": under("openfhe", "packed_one_row_a_slot"),
    }


def versions() -> dict[str, str | None]:
    """Of the libraries that peers run on."""
    found: dict[str, str | None] = {}
    for name in ("faiss-cpu", "tenseal", "openfhe"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def report(figures: dict[str, Any]) -> str:
    """A table for people."""
    machine, arguments = figures["machine"], figures["arguments"]
    lines = [f"{machine['cpu']}, {arguments['target'] or machine['kernel_targets'][0]}, {arguments['threads']} threads"]
    for name, t in figures["times_s"].items():
        lines.append(f"  {name:<10} {t['median'] * 1e3:9.2f} ms   ({t['min'] * 1e3:.2f} to {t['max'] * 1e3:.2f})")
    for name, one in figures["approximate"].items():
        if one is not None:
            lines.append(
                f"  {name}: {one['parameter']} = {one['value']}, recall@10 {one['recall_at_10']:.4f}, "
                f"built in {one['build_s']:.0f} s, {one['bytes'] / 1e6:.0f} MB; ours reads every row"
            )
    for key, value in figures.items():
        if isinstance(value, bool | int | float):
            lines.append(f"  {key:<44} {value if isinstance(value, bool) else format(value, '.5g')}")
    missing = [key for key, value in figures.items() if value is None]
    return "\n".join([*lines, f"  not measured, or not of this profile: {', '.join(missing) or 'nothing'}"])


def main(given: list[str] | None = None) -> int:
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
    parser.add_argument("--target", choices=targets(), default="", help="our kernels' instruction set (default: best)")
    parser.add_argument("--rounds", type=int, default=15, help="alternating timed runs (default 15)")
    parser.add_argument("--peers", nargs="*", choices=peers.NAMES, help="default: all but hnsw and ivf")
    parser.add_argument("--approximate", action="store_true", help="hnsw and ivf too (minutes to build)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(given)
    if arguments.engine == "hint" and arguments.profile is None:
        arguments.profile = "exact"
    if arguments.peers is None:
        arguments.peers = [name for name in peers.NAMES if name not in peers.APPROXIMATE]
    if arguments.approximate:
        arguments.peers += [name for name in peers.APPROXIMATE if name not in arguments.peers]
    figures = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(report(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

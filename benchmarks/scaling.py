"""How one query grows: time a row against the number of rows, for dimensions, profiles and strides. Asserts nothing.

    python -m benchmarks.scaling --json out.json

Rows start at 10,000 and double while an index has at most `--max-gb` (d = 512) or OTHER_GB (other dimensions). All
sizes of a profile and dimension take turns, our server's answer and FAISS's exact search, one thread each; each point
is a median. So no index is in the cache still when its turn comes. Every index is the
beginning of one file of random residues (residues are random anyway): what is timed is the answer alone. Precision is
that of the parameters; `benchmarks.overhead` and `benchmarks.icd` measure it.

JSON keys (stable): `machine`, `arguments`, `cache_bytes` (of the last level), `points` and `strides` (d = 512 and
STRIDE_ROWS rows, every stride that the parameters allow): lists of {profile, dim, stride, rows, index_bytes, server_s,
server_ns_per_row, server_gb_s, faiss_s, faiss_ns_per_row (null without FAISS), query_bytes, answer_bytes_per_row,
hint_bytes_per_row, score_error_std}; `flatness`: a list of {profile, dim, points, server, faiss}, the largest
nanoseconds a row / the smallest, over the `points` whose index is larger than the cache (FAISS's rows in those points).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe, last_level_cache_bytes, print_json
from benchmarks.timing import alternate
from he_engine.engine import IndexFile
from he_engine.errors import ParameterError
from he_engine.hint_server import HintServer
from he_engine.params import RINGS, Parameters, Profile, max_stride

DIMS = (128, 256, 512, 768, 1024)
PROFILES = ("compact", "exact", "precise")
MAIN_DIM = 512
OTHER_GB = 1.0
STRIDE_ROWS = 100_000
FIRST_ROWS = 10_000
SEED = 1
_UNIT_BYTES = 32 << 20
_SMALLEST_PRIME = min(q for ring in RINGS.values() for q in ring.primes)

Point = dict[str, Any]


def sizes(bytes_per_row: float, max_bytes: float) -> Iterator[int]:
    rows = FIRST_ROWS
    while rows * bytes_per_row <= max_bytes:
        yield rows
        rows *= 2


def strides(profile: str, dim: int) -> list[int]:
    """Every stride that Parameters allows, ascending."""
    allowed, stride = [], 1
    while stride <= max_stride(RINGS[Profile(profile)]):
        with contextlib.suppress(ParameterError):  # its scores would not be exact, or would wrap
            allowed.append(Parameters.choose(profile, dim, stride).stride)
        stride *= 2
    return allowed


class Residues:
    """A file of random words under every prime: canonical residues, whatever the layout."""

    def __init__(self, path: Path, length_bytes: int) -> None:
        some = np.random.default_rng(SEED).integers(0, _SMALLEST_PRIME, _UNIT_BYTES // 4, np.uint32)
        self._path, self._some = path, some
        with path.open("wb") as file:
            for start in range(0, length_bytes, _UNIT_BYTES):
                file.write(some[: (length_bytes - start) // 4].data)

    def index(self, p: Parameters, rows: int) -> IndexFile:
        blocks = p.blocks_for(rows)
        return IndexFile(self._path, 0, 4 * p.block_words * blocks, blocks)

    def query(self, p: Parameters) -> bytes:
        return np.resize(self._some, p.block_words).tobytes()


class PlainRows:
    """FAISS's exact search over the first of some random rows; None where it is not installed."""

    def __init__(self, dim: int, rows: int) -> None:
        self._faiss: Any = None
        try:
            import faiss
        except ImportError:
            print("FAISS is not installed: pip install '.[bench]'", file=sys.stderr)
            return
        faiss.omp_set_num_threads(1)
        self._faiss = faiss
        some = np.random.default_rng(SEED).standard_normal((FIRST_ROWS, dim), dtype=np.float32)
        self._rows = np.resize(some, (rows, dim))

    def search(self, rows: int) -> Callable[[], object] | None:
        """One query over so many rows, with the functions behind `IndexFlatIP`."""
        if self._faiss is None:
            return None
        query, part = self._rows[:1], self._rows[:rows]
        return lambda: self._faiss.knn(query, part, 10, metric=self._faiss.METRIC_INNER_PRODUCT)


def measure(
    p: Parameters, sizes: Sequence[int], residues: Residues, plain: PlainRows | None, rounds: int
) -> list[Point]:
    """A point for each number of rows, all in turn: a slow moment of the machine meets all. FAISS, unless `plain` is
    None, too."""
    query, server = residues.query(p), HintServer(p)
    unit = max(1, _UNIT_BYTES // server.index_bytes_per_block)
    indexes = {rows: residues.index(p, rows) for rows in sizes}
    servers = {rows: HintServer(p) for rows in sizes}  # each takes the file for a whole index

    def answer(rows: int) -> None:
        server, index = servers[rows], indexes[rows]
        for first in range(0, index.blocks, unit):
            server.answer(index, first, min(unit, index.blocks - first), [query])

    candidates: dict[tuple[str, int], Callable[[], object]] = {}
    for rows in sizes:
        candidates["server", rows] = partial(answer, rows)
        if plain is not None and (search := plain.search(rows)):
            candidates["faiss", rows] = search
    times = {name: timing.median_s for name, timing in alternate(candidates, rounds).items()}
    for one in servers.values():
        one.close()
    points = []
    for rows, index in indexes.items():
        seconds, faiss_s = times["server", rows], times.get(("faiss", rows))
        points.append(
            {
                "profile": p.profile.value,
                "dim": p.dim,
                "stride": p.stride,
                "rows": rows,
                "index_bytes": index.length_bytes,
                "server_s": seconds,
                "server_ns_per_row": seconds / rows * 1e9,
                "server_gb_s": index.length_bytes / seconds / 1e9,
                "faiss_s": faiss_s,
                "faiss_ns_per_row": None if faiss_s is None else faiss_s / rows * 1e9,
                "query_bytes": server.query_bytes,
                "answer_bytes_per_row": index.blocks * server.answer_bytes_per_block / rows,
                "hint_bytes_per_row": index.blocks * p.hint_bytes_per_block / rows,
                "score_error_std": p.score_error_std,
            }
        )
        _print(points[-1])
    return points


def flatness(points: Sequence[Point], cache_bytes: int) -> list[dict[str, Any]]:
    """Of every profile and dimension with two points or more whose index is larger than the cache."""
    out = []
    for profile, dim in dict.fromkeys((p["profile"], p["dim"]) for p in points):
        line = [p for p in points if (p["profile"], p["dim"]) == (profile, dim) and p["index_bytes"] > cache_bytes]
        if len(line) < 2:
            continue
        ours = [p["server_ns_per_row"] for p in line]
        plain = [p["faiss_ns_per_row"] for p in line if p["faiss_ns_per_row"] is not None]
        out.append(
            {
                "profile": profile,
                "dim": dim,
                "points": len(line),
                "server": max(ours) / min(ours),
                "faiss": max(plain) / min(plain) if plain else None,
            }
        )
    return out


def run(max_gb: float, rounds: int) -> dict[str, Any]:
    points, by_stride = [], []
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
        widest = max(
            4 * p.block_words * p.blocks_for(STRIDE_ROWS)
            for profile in PROFILES
            for p in (Parameters.choose(profile, MAIN_DIM, stride) for stride in strides(profile, MAIN_DIM))
        )
        residues = Residues(Path(folder) / "index", max(int(max_gb * 1.01e9), widest))  # whole blocks are a little more
        for dim in DIMS:
            limit = (max_gb if dim == MAIN_DIM else min(max_gb, OTHER_GB)) * 1e9
            plain = PlainRows(dim, max(sizes(4 * dim, limit), default=FIRST_ROWS))
            for profile in PROFILES:
                p = Parameters.choose(profile, dim)
                every = list(sizes(4 * p.block_words / p.rows_per_block, limit))
                points += measure(p, every, residues, plain, rounds)
        for profile in PROFILES:
            for stride in strides(profile, MAIN_DIM):
                p = Parameters.choose(profile, MAIN_DIM, stride)
                by_stride += measure(p, [STRIDE_ROWS], residues, None, rounds)
    cache = last_level_cache_bytes()
    return {"cache_bytes": cache, "points": points, "strides": by_stride, "flatness": flatness(points, cache)}


def _print(point: Point) -> None:
    print(
        f"{point['profile']:8} d={point['dim']:<5} g={point['stride']:<4} {point['rows']:>9,} rows "
        f"{point['server_ns_per_row']:8.1f} ns a row {point['server_gb_s']:6.1f} GB/s   "
        f"FAISS {point['faiss_ns_per_row'] or float('nan'):8.1f}",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Server time a row, by rows, dimension, profile and stride."
    )
    parser.add_argument("--max-gb", type=float, default=5.3, help="largest index at d = 512 (default 5.3)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the points to this file")
    a = parser.parse_args()
    print_json(
        {"machine": describe(), "arguments": {"max_gb": a.max_gb, "rounds": a.rounds}} | run(a.max_gb, a.rounds), a.json
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

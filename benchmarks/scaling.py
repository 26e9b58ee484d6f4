"""How one query grows: time a row against the number of rows, for dimensions and profiles. Asserts nothing; plots.

    python -m benchmarks.scaling --max-gb 2 --json out.json --plot out.svg

Rows start at 10,000 and double while an index has at most `--max-gb`. Each point is the median of alternating runs of
our server and FAISS on one thread. Blocks repeat a few random ones (residues are random anyway): what is timed is the
answer alone; precision is `benchmarks.overhead`'s and `benchmarks.icd`'s business.

JSON: `machine`, `arguments`, `points`: a list of {profile, dim, stride, rows, index_bytes, server_s, server_ns_per_row,
server_gb_s, faiss_s, faiss_ns_per_row, query_bytes, answer_bytes_per_row, score_error_std}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.timing import alternate
from he_engine.engine import IndexFile
from he_engine.hint_server import HintServer
from he_engine.params import Parameters

DIMS = (128, 256, 512, 768, 1024)
PROFILES = ("compact", "exact")
FIRST_ROWS = 10_000
SEED = 1


def sizes(bytes_per_row: float, max_bytes: float) -> Iterator[int]:
    rows = FIRST_ROWS
    while rows * bytes_per_row <= max_bytes:
        yield rows
        rows *= 2


def random_blocks(p: Parameters, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, words) canonical residues."""
    per_prime = p.block_words // len(p.ring.primes)
    parts = [rng.integers(0, q, (count, per_prime), dtype=np.uint32) for q in p.ring.primes]
    return np.concatenate(parts, axis=1)


def measure(p: Parameters, rows: int, folder: Path, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    blocks = p.blocks_for(rows)
    some = random_blocks(p, min(blocks, 8), rng)
    path = folder / "index"
    with path.open("wb") as file:
        for first in range(0, blocks, len(some)):
            file.write(some[: blocks - first].tobytes())
    index = IndexFile(path, 0, blocks * some.shape[1] * 4, blocks)
    query = random_blocks(p, 1, rng).tobytes()
    server = HintServer(p)
    unit = max(1, (16 << 20) // server.index_bytes_per_block)

    def ours() -> None:
        for first in range(0, blocks, unit):
            server.answer(index, first, min(unit, blocks - first), query, 1)

    candidates: dict[str, Callable[[], object]] = {"server": ours}
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(p.dim)
        piece = rng.standard_normal((FIRST_ROWS, p.dim), dtype=np.float32)
        for first in range(0, rows, FIRST_ROWS):
            flat.add(piece[: rows - first])
        vector = piece[:1]
        candidates["faiss"] = lambda: flat.search(vector, 10)
    except ImportError:
        print("FAISS is not installed: pip install '.[bench]'", file=sys.stderr)
    times = alternate(candidates, rounds)
    server.close()
    seconds = times["server"].median_s
    plain = times["faiss"].median_s if "faiss" in times else None
    return {
        "profile": p.profile.value,
        "dim": p.dim,
        "stride": p.stride,
        "rows": rows,
        "index_bytes": index.length_bytes,
        "server_s": seconds,
        "server_ns_per_row": seconds / rows * 1e9,
        "server_gb_s": index.length_bytes / seconds / 1e9,
        "faiss_s": plain,
        "faiss_ns_per_row": None if plain is None else plain / rows * 1e9,
        "query_bytes": server.query_bytes,
        "answer_bytes_per_row": blocks * server.answer_bytes_per_block / rows,
        "score_error_std": p.score_error_std,
    }


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Nanoseconds a row against rows, one panel a profile: flat is the goal."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PROFILES), figsize=(11, 4.2), sharey=True)
    for panel, profile in zip(panels, PROFILES, strict=True):
        for number, dim in enumerate(DIMS):
            line = [p for p in points if (p["profile"], p["dim"]) == (profile, dim)]
            rows = [p["rows"] for p in line]
            panel.plot(rows, [p["server_ns_per_row"] for p in line], "o-", color=f"C{number}", label=f"d = {dim}")
            panel.plot(rows, [p["faiss_ns_per_row"] for p in line], ":", color=f"C{number}")
        panel.set(xscale="log", yscale="log", xlabel="rows", title=f"{profile} (dotted: FAISS IndexFlatIP)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("server, ns a row")
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Server time a row, by rows, dimension and profile."
    )
    parser.add_argument("--max-gb", type=float, default=2.0, help="largest index (default 2)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the points to this file")
    parser.add_argument("--plot", type=Path, help="draw them into this file (.svg)")
    arguments = parser.parse_args()
    points = []
    for profile in PROFILES:
        for dim in DIMS:
            parameters = Parameters.choose(profile, dim)
            for rows in sizes(parameters.block_words * 4 / parameters.rows_per_block, arguments.max_gb * 1e9):
                with tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder:
                    points.append(measure(parameters, rows, Path(folder), arguments.rounds))
                point = points[-1]
                print(
                    f"{profile:8} d={dim:<5} {rows:>9,} rows {point['server_ns_per_row']:8.1f} ns a row "
                    f"{point['server_gb_s']:6.1f} GB/s   FAISS {point['faiss_ns_per_row'] or float('nan'):8.1f}",
                    flush=True,
                )
    if arguments.json:
        machine = {"machine": describe(), "arguments": {"max_gb": arguments.max_gb, "rounds": arguments.rounds}}
        arguments.json.write_text(json.dumps({**machine, "points": points}, indent=1) + "\n")
    if arguments.plot:
        plot(points, arguments.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

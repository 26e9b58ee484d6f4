"""What `hesearch plan --cluster` knows of costs, from the committed figures: he_client/scaling/measured.json.

    python -m benchmarks.scale_costs

JSON keys (stable): `scan` and `sharing` (rows, dim and threads of the runs), `machine` (of both), `scan_bytes_per_s`
(of index, by one query on all threads: memory limits it, so it is the median of the profiles' runs),
`answer_bytes_per_s` (through one process's gRPC), `spread` (below), and `profiles`: name → {`sharing` (queries → times
faster a query than alone, asked by so many callers at once), `sharing_of` (the profile in whose run that was measured),
`query_s` (to encrypt one), `recover_row_s` (to verify and decrypt, one thread)}.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.markdown import Figures, Run
from he_client.scaling import measured
from he_engine.params import Profile

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COSTS = Path(measured.__file__).with_name("measured.json")
RUNS = ("1m_1t", "1m_2t")
SHARED_QUERIES = 32  #: at a time, at most (he_server.search.scan)


def spread(run: Figures) -> float:
    """c of a minimum m and an exponential rest of mean c·m, from the extremes of n rounds.

    The rest of the least of n rounds is c·m/n in the mean, and by the exponential's lack of memory the range is
    c·m·(1 + 1/2 + … + 1/(n − 1)).
    """
    rounds, times = run["arguments"]["rounds"], run["times_s"]["server"]
    rest_s = (times["max"] - times["min"]) / sum(1 / i for i in range(1, rounds))
    return float(rest_s / (times["min"] - rest_s / rounds))


def costs(run: Run) -> str:
    """measured.json. Raises FileNotFoundError."""
    names = [profile.value for profile in Profile]
    runs = {name: [run.load(f"overhead_{name}_{kind}") for kind in RUNS] for name in names}
    shared = {name: run.load(f"concurrency_{name}") for name in ("exact", "compact")}
    found = {
        "scan": {key: runs["exact"][1]["arguments"][key] for key in ("rows", "dim", "threads")},
        "sharing": {key: shared["exact"]["arguments"][key] for key in ("rows", "dim", "threads")},
        "machine": {key: runs["exact"][1]["machine"][key] for key in ("cpu", "cores", "memory_gb")},
        "scan_bytes_per_s": _short(statistics.median(some[1]["server_gb_s"] for some in runs.values()) * 1e9),
        "answer_bytes_per_s": _short(run.load("wire")["answer_mb_s"] * 1e6),
        "spread": _short(statistics.mean(spread(one) for some in runs.values() for one in some)),
        "profiles": {name: _profile(runs[name][0], shared, name) for name in names},
    }
    return json.dumps(found, indent=1) + "\n"


def _profile(alone: Figures, shared: dict[str, Figures], name: str) -> dict[str, Any]:
    of = name if name in shared else "exact"  # precise has as many bytes, and no run
    curve = shared[of]["concurrent"]
    return {
        "sharing": {n: _short(f["times_faster_than_alone"]) for n, f in curve.items() if int(n) <= SHARED_QUERIES},
        "sharing_of": of,
        "query_s": _short(alone["client_query_s"]),
        "recover_row_s": _short(alone["client_recover_s"] / alone["arguments"]["rows"]),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> int:
    COSTS.write_text(costs(Run(FIGURES)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

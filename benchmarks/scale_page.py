"""docs/scale.md: the model's tables, the simulation's, and what was measured of both.

    python -m benchmarks.scale_page --simulate      (minutes: docs/figures/scale_simulated.json, then the page)
    python -m benchmarks.scale_page                 (the page alone)

The text is docs/scale.md's own; what stands between two marks is written. Tables of the model are those that `hesearch
plan --cluster` prints at its defaults. JSON keys of scale_simulated.json (stable): `queries`, `seed`, and `clusters`: a
list of {`rows`, `shards`, `share` (of the capacity), `queries_per_s`, `outcome` (he_client.scaling.simulated.Outcome)}.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.markdown import Figures, command, ms, number, table
from he_client.commands.units import duration, size
from he_client.plan import Sizes
from he_client.scaling.cluster import ENTRY_BYTES, Between, ClusterPlan, Demand, Node, plan_cluster
from he_client.scaling.measured import facts
from he_client.scaling.simulated import Simulated
from he_client.scaling.simulation import simulate
from he_client.scaling.stragglers import expected_maximum
from he_engine.params import Parameters, Profile
from he_proto.wire import MAX_MANIFEST_BYTES

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "scale.md", ROOT / "docs" / "figures"
SIMULATED, MEASURED = FIGURES / "scale_simulated.json", FIGURES / "scale.json"
DIM = 768
ROWS = (10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
SHARDS, SHARES = (1, 10, 100, 1000), (0.1, 0.4, 0.7)
QUERIES, SEED = 1000, 1
NODE, BETWEEN = Node(scan_bytes_per_s=facts()["scan_bytes_per_s"]), Between()


def _demand(rows: int, profile: Profile = Profile.COMPACT, **more: Any) -> Demand:
    return Demand(rows=rows, dim=DIM, profile=profile, **more)


def _rows(rows: int) -> str:
    return f"{rows // 10**9} B" if rows >= 10**9 else f"{rows // 10**6} M"


# ---- the model -----------------------------------------------------------------------------------------------
_LINES: dict[str, Callable[[ClusterPlan], str]] = {
    "index": lambda p: size(p.index_bytes),
    "nodes of 64 GB, for memory": lambda p: f"{p.nodes:,}",
    "front ends": lambda p: f"{p.front_ends:,}",
    "collections, at least": lambda p: f"{p.collections:,}",
    "index of a node": lambda p: size(round(p.node_index_bytes)),
    "a pass over it, alone": lambda p: duration(p.pass_s),
    "… the slowest node's": lambda p: duration(p.pass_s * p.straggling),
    "… of 32 queries at once": lambda p: duration(p.batch_pass_s),
    "queries a second, at most": lambda p: f"{p.capacity_per_s:.1f}",
    "query to every node, together": lambda p: size(p.fan_out_bytes),
    "answer to the client": lambda p: size(p.answer_bytes),
    "… over its 1 Gbit/s": lambda p: duration(p.answer_bytes / BETWEEN.link_bytes_per_s),
    "… through one front end": lambda p: duration(p.stages_s["front end's answers"]),
    "client verifies and decrypts": lambda p: duration(p.stages_s["client's work"]),
    "client downloads once": lambda p: size(p.client_cache_bytes),
    "client's memory": lambda p: size(p.client_memory_bytes),
    "a query": lambda p: duration(p.latency_s),
    "USD an hour, machines": lambda p: f"{p.price_per_hour:,.1f}",
    "USD a query, answers sent": lambda p: f"{p.answer_bytes / 1e9 * BETWEEN.price_per_gb:.3g}",
    "USD a million queries": lambda p: f"{p.price_per_million:,.0f}",
    "limit": lambda p: p.limit,
}


def sizes_table(profile: Profile) -> list[str]:
    plans = [plan_cluster(_demand(rows, profile), NODE, BETWEEN) for rows in ROWS]
    lines = [[title, *map(show, plans)] for title, show in _LINES.items()]
    return [
        *table([f"`{profile.value}`, × {DIM}: extrapolated", *map(_rows, ROWS)], lines),
        f"`hesearch plan --cluster --rows ROWS --dim {DIM} --profile {profile.value}`",
    ]


def limits_table() -> list[str]:
    """How many rows until something takes too long, or does not fit."""

    def most(profile: Profile, fits: Callable[[Sizes], bool]) -> str:
        low, high = 1, 10**12
        while high - low > low // 1000:
            middle = math.isqrt(low * high) if high > 2 * low else (low + high) // 2
            parameters = Parameters.choose(profile, DIM)
            low, high = (middle, high) if fits(Sizes(parameters, middle)) else (low, middle)
        return f"{low / 1e6:,.0f} M"

    limits: dict[str, Callable[[Sizes], bool]] = {
        "an answer takes 1 s over 1 Gbit/s": lambda s: s.answer_bytes <= 125e6,
        "… over 10 Gbit/s": lambda s: s.answer_bytes <= 1.25e9,
        "… through the gRPC of one process": lambda s: s.answer_bytes <= facts()["answer_bytes_per_s"],
        "a client downloads 10 GB before its first query": lambda s: s.cache_bytes <= 10e9,
        "a client needs 16 GB of memory": lambda s: s.client_memory_bytes <= 16e9,
        "… 64 GB": lambda s: s.client_memory_bytes <= 64e9,
        "one manifest names all segments": lambda s: s.segments * ENTRY_BYTES <= MAX_MANIFEST_BYTES,
        "a node of 64 GB holds the index": lambda s: s.index_bytes <= 0.85 * 64e9,
    }
    profiles = (Profile.COMPACT, Profile.EXACT)
    return table(
        [f"up to so many rows × {DIM} …", *(f"`{p.value}`" for p in profiles)],
        [[title, *(most(p, fits) for p in profiles)] for title, fits in limits.items()],
    )


def stages_table() -> list[str]:
    """A first stage of fewer dimensions, a billion rows."""
    lines = []
    for dim in (DIM, 256, 64):
        plan = plan_cluster(replace(_demand(10**9), dim=dim), NODE, BETWEEN)
        lines.append([str(dim), size(plan.index_bytes), f"{plan.nodes:,}", size(plan.answer_bytes),
                      size(plan.client_cache_bytes), duration(plan.latency_s)])  # fmt: skip
    return table(
        ["dimensions, 1 B rows: extrapolated", "index", "nodes", "answer", "client downloads", "a query"], lines
    )


def partitions_table() -> list[str]:
    """Ten billion rows in equal partitions, of which a query asks eight, one after the other's bytes."""
    lines = []
    for rows in (10_000_000, 1_000_000, 100_000):
        whole, one = (plan_cluster(_demand(n), NODE, BETWEEN) for n in (10**10, rows))
        lines.append([_rows(rows) if rows >= 10**6 else f"{rows:,}", f"{10**10 // rows:,}", size(8 * one.index_bytes),
                      size(8 * one.answer_bytes), size(8 * one.client_cache_bytes),
                      f"{whole.answer_bytes / (8 * one.answer_bytes):,.0f}"])  # fmt: skip
    return table(
        ["rows a partition: extrapolated", "partitions of 10 B rows", "index read by 8", "answers of 8",
         "client downloads for 8", "answers of all ÷ of 8"],
        lines,
    )  # fmt: skip


def hedging_table() -> list[str]:
    spread, lines = facts()["spread"], []
    for c in (spread, 0.5, 2.0):
        for shards in (10, 100, 1000):
            plain, hedged = (expected_maximum(shards, c, hedge) for hedge in (None, 0.95))
            lines.append([f"{c:g}" + (" (measured)" if c == spread else ""), f"{shards:,}", f"{plain:.2f}",
                          f"{hedged:.2f}"])  # fmt: skip
    return table(["c", "shards", "slowest, × the least time of a pass", "… asked again after the quantile 0.95"], lines)


# ---- the simulation ------------------------------------------------------------------------------------------
def simulated(shards: int, share: float, queries: int = QUERIES) -> Figures:
    """As many rows as fill so many nodes; clients on a link that is no limit, so that what is left is the cluster."""
    between = replace(BETWEEN, link_bytes_per_s=math.inf, client_threads=10**9)
    one = Sizes(Parameters.choose(Profile.COMPACT, DIM), 10**6).index_bytes / 10**6
    rows = int(shards * 0.85 * NODE.memory_bytes / one * 0.999)
    idle = plan_cluster(_demand(rows), NODE, between)
    rate = share * idle.capacity_per_s
    demand = _demand(rows, queries_per_s=rate)
    plan = plan_cluster(demand, NODE, between)
    outcome = simulate(Simulated.of(plan, demand, NODE, between), queries, SEED)
    return {"rows": rows, "shards": plan.shards, "share": share, "queries_per_s": rate, "outcome": asdict(outcome)}


def everything_simulated() -> Figures:
    clusters = [simulated(shards, share) for shards in SHARDS for share in SHARES]
    return {"queries": QUERIES, "seed": SEED, "clusters": clusters}


def simulated_table(figures: Figures) -> list[str]:
    lines = []
    for one in figures["clusters"]:
        o = one["outcome"]
        lines.append([
            f"{one['shards']:,}", f"{one['rows'] / 1e6:,.0f} M", f"{one['share']:.0%}", f"{o['throughput_per_s']:.2f}",
            duration(o["p50_s"]), duration(o["p99_s"]), f"{o['riders']:.1f}", f"{o['utilisation']:.0%}",
            f"{o['front_end_utilisation']:.0%}",
        ])  # fmt: skip
    return table(
        ["nodes: simulated", "rows", "load", "queries a second", "p50", "p99", "queries at a node", "nodes busy",
         "front ends' network"],
        lines,
    )  # fmt: skip


# ---- what was measured ---------------------------------------------------------------------------------------
def measured_lines(path: Path) -> Iterator[str]:
    if not path.exists():
        yield "Not measured yet on a quiet machine. The command:"
        yield from ("", "```sh", "python -m benchmarks.scale --json docs/figures/scale.json", "```")
        return
    figures: Figures = json.loads(path.read_text())
    names = {"one_node": "one node", "two_nodes": "two nodes", "two_nodes_alone": "… from times with the other idle"}
    compared = [(title, figures[name]) for name, title in names.items()]
    compared += [(f"one node, load {one['share']:.0%}", one) for one in figures["load"]]
    a, m = figures["arguments"], figures["machine"]
    yield (
        f"{a['rows']:,} × {a['dim']}, `{a['profile']}`, {a['rounds']} rounds, {a['queries']} queries at each load; "
        f"{m['cpu']}, {m['cores']} cores, {m['kernel_targets'][0]}. The goal is a median within {figures['goal']:.0%}."
    )
    yield from table(
        ["", "p50, measured, ms", "simulated", "÷", "mean, measured, ms", "simulated", "÷", "within the goal"],
        [[title, ms(f["measured"]["p50_s"]), ms(f["simulated"]["p50_s"]), number(f["ratio_p50"]),
          ms(f["measured"]["mean_s"]), ms(f["simulated"]["mean_s"]), number(f["ratio_mean"]),
          "yes" if f["within_goal"] else "no"] for title, f in compared],
    )  # fmt: skip
    yield from ("```sh", command("scale", a), "```")


# ---- the page ------------------------------------------------------------------------------------------------
def sections() -> dict[str, list[str]]:
    return {
        "compact": sizes_table(Profile.COMPACT),
        "exact": sizes_table(Profile.EXACT),
        "limits": limits_table(),
        "partitions": partitions_table(),
        "stages": stages_table(),
        "hedging": hedging_table(),
        "simulated": simulated_table(json.loads(SIMULATED.read_text())),
        "measured": list(measured_lines(MEASURED)),
    }


def written(page: str) -> str:
    """The page with each section between its marks. Raises KeyError for a mark that is not known."""
    found = sections()

    def fill(mark: re.Match[str]) -> str:
        text = "\n".join(found[mark["name"]]).strip("\n")
        return f"<!-- written: {mark['name']} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- written: (?P<name>\w+) -->.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_page", description="The tables of docs/scale.md.")
    parser.add_argument("--simulate", action="store_true", help="simulate anew, too (minutes)")
    if parser.parse_args().simulate:
        SIMULATED.write_text(json.dumps(everything_simulated(), indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

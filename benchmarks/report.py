"""docs/benchmarks.md, from the JSON files of one `make bench`: nothing in it is typed by hand but what the tables mean.

    python -m benchmarks.report build/bench build/bench/benchmarks.md

Draws the plots into the folder, too (without matplotlib: not). A section whose figures are missing says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import plots, sections
from benchmarks.layers import GOAL
from benchmarks.markdown import FOLDER, Figures, Run, table
from benchmarks.sections import PROFILES

SECTIONS: dict[str, Callable[[Run], list[str]]] = {
    "One query at the server": sections.server,
    "A whole query": sections.whole,
    "Several queries at once": sections.several,
    "Encryption and the client": sections.client,
    "Precision on real data": sections.precision,
    "The wire": sections.wire,
    "Cold start": sections.cold,
    "Encryption at rest": sections.at_rest,
    "A start from object storage": sections.object_storage,
    "A catalogue in PostgreSQL": sections.catalogue,
    "The layers around a search": sections.layers,
    "Growth": sections.growth,
    "The plan": sections.plan,
    "Other encryption": sections.encrypted_peers,
    "Approximate plaintext indexes": sections.approximate,
    "Instructions": sections.instructions,
}


def _flatness(figures: Figures, profile: str) -> float | None:
    return max((one["server"] for one in figures["flatness"] if one["profile"] == profile), default=None)


def _overhead(run: str, key: str) -> tuple[str, Callable[[Figures, str], float | None]]:
    return f"overhead_{{}}{run}", lambda figures, _: figures.get(key)


def _service(key: str, scale: float = 1) -> tuple[str, Callable[[Figures, str], float | None]]:
    return "service_{}", lambda figures, _: None if figures.get(key) is None else figures[key] * scale


_BEST, _READ, _SCAN = "ratio_server_vs_best_plaintext", "ratio_server_vs_plain_read", (1.0, 2.0, 2.0)
#: What, at most (or else at least), the goal of each profile, the file and how the figure is read from it.
GOALS: list[tuple[str, bool, tuple[float | None, ...], tuple[str, Callable[[Figures, str], float | None]]]] = [
    ("server ÷ the faster of FAISS and NumPy, 100k, 1 thread", True, _SCAN, _overhead("", _BEST)),
    ("… 100k, 2 threads", True, _SCAN, _overhead("_100k_2t", _BEST)),
    ("… 1M, 1 thread", True, _SCAN, _overhead("_1m_1t", _BEST)),
    ("… 1M, 2 threads", True, _SCAN, _overhead("_1m_2t", _BEST)),
    ("server's share of the plain read rate, 100k, 1 thread", False, (0.8,) * 3, _overhead("", _READ)),
    ("… 1M, 2 threads", False, (0.8,) * 3, _overhead("_1m_2t", _READ)),
    ("whole query ÷ FAISS, both over gRPC", True, (1.5,) * 3, _service("ratio_query_vs_plaintext")),
    ("client's work ÷ server", True, (1.0,) * 3, _service("ratio_client_vs_server")),
    ("server memory beyond the index, MB", True, (200,) * 3, _service("server_rss_beyond_index_bytes", 1e-6)),
    ("times faster a query, 32 in one call", False, (1.8, 1.8, None),
     ("concurrency_{}", lambda figures, _: figures["batch"].get("32", {}).get("times_faster_than_alone"))),
    ("… 32 callers at once", False, (1.8, 1.8, None),
     ("concurrency_{}", lambda figures, _: figures["concurrent"].get("32", {}).get("times_faster_than_alone"))),
    ("query with TLS, policies, audit log and verification ÷ without", True, (GOAL, GOAL, None),
     ("layers_{}", lambda figures, _: figures.get("ratio_goal"))),
    ("encryption, rows/s a core", False, (100_000, 50_000, 50_000), _overhead("", "encrypt_rows_per_s")),
    ("hint, bytes a row", True, (40, 140, 140), _overhead("", "hint_bytes_per_row")),
    ("slowest ÷ fastest ns a row, sizes past the cache", True, (1.2,) * 3, ("scaling", _flatness)),
    ("TenSEAL, one dot product a row ÷ ours", False, (30_000, None, None), _overhead("", "ratio_tenseal_vs_hint")),
    ("TenSEAL, dimension-packed, one row a slot, as usual ÷ ours", False, (200, None, None),
     _overhead("", "ratio_tenseal_packed_one_row_a_slot_vs_hint")),
    ("… two rows a slot, its strongest form", False, (200, None, None), _overhead("", "ratio_tenseal_packed_vs_hint")),
]  # fmt: skip


def _short(value: float) -> str:
    return format(value, ",.0f" if value >= 20 else ".2f")


def goals(run: Run) -> list[str]:
    """What the project holds itself to, beside what was measured."""
    rows = []
    for title, at_most, wanted, (file, read) in GOALS:
        cells, met = [], []
        for profile, goal in zip(PROFILES, wanted, strict=True):
            try:
                value = read(run.load(file.format(profile)), profile)
            except FileNotFoundError:
                value = None
            cells.append("–" if value is None else _short(value))
            if value is not None and goal is not None:
                met.append(value <= goal if at_most else value >= goal)
        limits = ", ".join(_short(goal) for goal in dict.fromkeys(wanted) if goal is not None)
        if None in wanted:
            meant = (f"`{profile}`" for profile, goal in zip(PROFILES, wanted, strict=True) if goal is not None)
            limits += f" ({', '.join(meant)})"
        said = "yes" if met and all(met) else f"{sum(met)} of {len(met)}" if met else "–"
        rows.append([title, f"{'≤' if at_most else '≥'} {limits}", *cells, said])
    return [
        "What the project holds itself to, on a machine of two cores, beside this run. Where a goal is two numbers, "
        "the second is that of `exact` and `precise`.",
        *table(["", "goal", *(f"`{profile}`" for profile in PROFILES), "met"], rows),
    ]


def machine(run: Run, prefix: str = "") -> list[str]:
    """Every machine and set of versions that a file of the run names; of files whose name begins so."""
    seen: dict[str, list[str]] = {}
    for name, figures in run.everything().items():
        if name.startswith(prefix) and "machine" in figures:
            m: dict[str, Any] = figures["machine"] | {k: v for k, v in figures.get("versions", {}).items() if v}
            kernels = ", ".join(m.pop("kernel_targets"))
            said = f"{m.pop('cpu')}, {m.pop('cores')} cores, {m.pop('memory_gb')} GB; kernels for {kernels}; "
            seen.setdefault(said + m.pop("system"), []).append(name)
            seen.setdefault("", []).extend(f"{library} {version}" for library, version in m.items())
    libraries = sorted(set(seen.pop("", [])))
    if len(seen) == 1:
        lines = [f"{next(iter(seen))}."]
    else:
        lines = [f"* {said}: {', '.join(names)}" for said, names in seen.items()]
    return [*lines, "", f"Versions: {', '.join(libraries)}."]


def render(folder: Path, link: str) -> str:
    """Markdown. `link`: from where it will be to the folder of plots."""
    run = Run(folder)
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from the figures of that run; each section names its commands. Ratios are of medians "
        "of alternating runs in one process or on one machine; times are of that machine and that run.",
        "",
        *machine(run),
        "",
        "## Goals",
        "",
        *goals(run),
    ]
    for title, section in SECTIONS.items():
        try:
            body = section(run)
        except FileNotFoundError as error:
            body = [f"Not measured in this run: {Path(error.filename or str(error)).name} is missing."]
        except KeyError as error:  # a file that an earlier version wrote
            body = [f"Not measured in this run: the figure {error} is missing; delete the file and measure anew."]
        lines += ["", f"## {title}", "", *(line.replace(FOLDER, link) for line in body)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def draw(folder: Path) -> None:
    """The plots of what was measured, as SVG beside the figures. Raises ImportError without matplotlib."""
    figures = Run(folder).everything()
    if scaling := figures.get("scaling"):
        plots.scaling(scaling["points"], folder / "scaling.svg")
        plots.strides(scaling["strides"], folder / "strides.svg")
    if runs := [figures[name] for name in figures if name.startswith("concurrency_")]:
        plots.concurrency(runs, folder / "concurrency.svg")
    if runs := [figures[name] for name in sorted(figures, reverse=True) if name.startswith("layers_")]:
        plots.layers(runs, GOAL, folder / "layers.svg")
    if pareto := figures.get("pareto"):
        plots.pareto(pareto["points"], folder / "pareto.svg")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="The report of one `make bench`.")
    parser.add_argument("folder", type=Path, help="the JSON files; the plots are drawn here")
    parser.add_argument("output", type=Path, nargs="?", default=Path("docs/benchmarks.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        draw(arguments.folder)
    except ImportError:
        print("matplotlib is not installed, no plots: pip install '.[bench]'", file=sys.stderr)
    link = os.path.relpath(arguments.folder, arguments.output.parent)
    arguments.output.write_text(render(arguments.folder, Path(link).as_posix()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

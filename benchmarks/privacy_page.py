"""The tables of docs/privacy.md, and its plot, from the figures of benchmarks.privacy.

python -m benchmarks.privacy_page
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.markdown import Figures, Run, command, number, table
from benchmarks.plots import privacy

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "privacy.md"
BEGIN, END = "<!-- measured: python -m benchmarks.privacy_page -->", "<!-- end -->"


def render(figures: Figures) -> str:
    """What stands between the marks."""
    lines = [*_retrieval(figures), *_training(figures)]
    speed, dim = figures["speed"]["values_per_s"], figures["dim"]
    lines += [
        f"Drawing the noise costs more than anything else: {speed:,.0f} values a second on one core, so "
        f"{speed / dim:,.0f} rows of {dim} coordinates.",
        "",
        f"Figures: [privacy.json](figures/privacy.json), from `{command('privacy', figures['arguments'])}`; "
        f"{figures['machine']['cpu']}.",
    ]
    return "\n".join(lines)


def write(page: str, measured: str) -> str:
    """The page with this between the marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{measured}\n{END}", page, flags=re.DOTALL)


def _retrieval(figures: Figures) -> Iterator[str]:
    dims = list(dict.fromkeys(point["dim"] for point in figures["retrieval"]))
    yield (
        f"**Search.** {figures['rows']:,} titles, {figures['queries']} questions, δ = {figures['delta']:g}, one row a "
        "person, C = 1. recall@10: against the search without noise in all dimensions. hit@10: the right code is among "
        "ten."
    )
    header = ["ε", "σ"]
    for dim in dims:
        header += [f"recall, {dim}-d", f"hit, {dim}-d", f"recall, {dim}-d, noisy questions too"]
    rows = []
    for epsilon in dict.fromkeys(point["epsilon"] for point in figures["retrieval"]):
        points = [point for point in figures["retrieval"] if point["epsilon"] == epsilon]
        row = [_epsilon(epsilon), number(points[0]["sigma"], ".3f")]
        for point in points:
            row += [
                number(point[name], ".3f")
                for name in ("recall_at_10", "hit_at_10", "noisy_queries_recall_at_10")
            ]  # fmt: skip
        rows.append(row)
    yield from table(header, rows)
    yield "![recall and accuracy against ε](figures/privacy.svg)"
    yield ""


def _training(figures: Figures) -> Iterator[str]:
    sizes = list(dict.fromkeys(point["rows"] for point in figures["training"]))
    yield (
        f"**Training.** The chapter of a code, one of 22, from the embedding of its title; "
        f"{figures['largest_class']:.1%} of all rows are of the largest chapter. Accuracy on a fifth that was held "
        "out; balanced: mean over chapters."
    )
    header = ["ε"]
    for size in sizes:
        header += [f"accuracy, {size:,} rows", f"balanced, {size:,} rows"]
    rows = []
    for epsilon in dict.fromkeys(point["epsilon"] for point in figures["training"]):
        points = [point for point in figures["training"] if point["epsilon"] == epsilon]
        row = [_epsilon(epsilon)]
        for point in points:
            row += [number(point["accuracy"], ".3f"), number(point["balanced_accuracy"], ".3f")]
        rows.append(row)
    yield from table(header, rows)


def _epsilon(value: float | None) -> str:
    return "∞" if value is None else f"{value:g}"


def main() -> int:
    figures = Run(DOCS / "figures").load("privacy")
    PAGE.write_text(write(PAGE.read_text(), render(figures)))
    privacy(figures, DOCS / "figures" / "privacy.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The page's table and plot, from the figures of a run: examples/healthcare/README.md, between its marks.

    python -m examples.healthcare.page docs/figures/healthcare.json examples/healthcare/README.md

The plot goes beside the figures, or nowhere without matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.markdown import ms, number, table

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- measured: make healthcare -->", "<!-- end -->"
HALF_A_POINT = 0.005


def render(figures: dict[str, Any], plot: str = "") -> str:
    """Markdown. plot: a link to it."""
    return "\n".join(
        [
            *_data(figures),
            *_methods(figures),
            *([f"![accuracy against cost and ε]({plot})", ""] if plot else []),
            *_encrypted(figures),
            *_ran(figures),
        ]
    )


def write(page: str, measured: str) -> str:
    """The page with this between the marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{measured}\n{END}", page, flags=re.DOTALL)


def _data(figures: dict[str, Any]) -> Iterator[str]:
    hospitals = ", ".join(f"{count:,}" for count in figures["hospitals"].values())
    yield (
        f"{figures['train']:,} patients to learn from, in {len(figures['hospitals'])} hospitals ({hospitals}), and "
        f"{figures['test']:,} others to test on; {figures['chapters']} chapters; k = {figures['k']}; "
        f"δ = {figures['delta']:g}. Of {figures['identifiers']:,} family names, record numbers and telephones in the "
        f"notes, {figures['identifiers_left']} are left when they are embedded. A note as it is written, and as it is "
        "embedded:"
    )
    yield from ("", f"> {figures['note']}", "", f"> {figures['embedded']}", "")


def _methods(figures: dict[str, Any]) -> Iterator[str]:
    header = [
        "method", "accuracy, % (95 %)", "ε", "preparing, s", "…, MB that leave", "a prediction, ms", "…, KB that leave",
        "who learns what",
    ]  # fmt: skip
    rows = []
    for row in figures["rows"]:
        interval = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})".replace("%", "")
        megabytes, kilobytes = number(row["prepare_bytes"], ".2f", 1e-6), number(row["predict_bytes"], ",.0f", 1e-3)
        epsilon = number(row["epsilon"], "g")
        cost = number(row["prepare_s"], ".1f"), megabytes, _ms(row["predict_s"]), kilobytes
        rows.append([row["method"], interval, epsilon, *cost, row["learns"]])
    yield from table(header, rows)


def _encrypted(figures: dict[str, Any]) -> Iterator[str]:
    yield "Encrypted k-NN beside k-NN in the clear, on the same patients:"
    rows = []
    for one in figures["against"]:
        points = f"{one['difference'] * 100:+.2f} ({one['low'] * 100:+.2f} to {one['high'] * 100:+.2f})"
        within = "yes" if max(-one["low"], one["high"]) <= HALF_A_POINT else "no"
        agreement = f"{one['agreement']:.2%}".replace("%", "")
        answer = number(one["answer_bytes"], ",.0f", 1e-3)
        rows.append([f"`{one['profile']}`", agreement, points, within, answer])
    header = ["profile", "same prediction, %", "accuracy, points more (95 %)", "interval within ± 0.5", "answer, KB"]
    yield from table(header, rows)


def _ran(figures: dict[str, Any]) -> Iterator[str]:
    machine = figures["machine"]
    yield f"{figures['total_s']:.0f} s for all of it; {machine['cpu']}, {machine['cores']} cores."


def _ms(seconds: float | None) -> str:
    return ms(seconds) if seconds is None or seconds >= 1e-6 else "0"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.healthcare.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", type=Path, help="of examples.healthcare.run --json")
    parser.add_argument("page", type=Path, help="is written; the text around the marks is the committed page's")
    given = parser.parse_args()
    figures = json.loads(given.figures.read_text(encoding="utf-8"))
    drawing = given.figures.with_suffix(".svg")
    try:
        plots.healthcare(figures, drawing)
    except ImportError:
        print("no plot: matplotlib is not installed (pip install '.[bench]')", file=sys.stderr)
    measured = render(figures, os.path.relpath(drawing, given.page.parent))
    given.page.write_text(write(README.read_text(encoding="utf-8"), measured), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

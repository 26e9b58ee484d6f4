"""The README's figures are those that were measured: its table is made from the committed JSON files."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.table import render

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_is_the_measured_one() -> None:
    assert render(ROOT / "docs" / "figures") in (ROOT / "README.md").read_text(), "run `python -m benchmarks.table`"


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("[CS]*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

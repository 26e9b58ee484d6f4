"""The figures in the documents are those that were measured: made from the committed JSON files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report, table

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_is_the_measured_one() -> None:
    measured = table.render(ROOT / "docs" / "figures")
    assert measured in (ROOT / "README.md").read_text(), "run `python -m benchmarks.table`"


def test_the_report_is_the_measured_one() -> None:
    written = ROOT / "docs" / "benchmarks.md"
    if not written.exists():
        pytest.skip("docs/benchmarks.md is not written yet")
    measured = report.render(ROOT / "docs" / "figures", "figures")
    assert written.read_text() == measured, "run `python -m benchmarks.report docs/figures`"


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("[CS]*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

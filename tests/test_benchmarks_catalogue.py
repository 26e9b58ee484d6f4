"""The benchmark of the catalogue in PostgreSQL, small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sections
from benchmarks.markdown import Run
from tests.postgres_fixture import _programs


@pytest.mark.skipif(_programs() is None, reason="PostgreSQL is not installed (Debian: apt install postgresql)")
def test_a_small_run_and_its_section(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.catalogue", "--segments", "30", "--rounds", "5"]
    subprocess.run([*command, "--json", tmp_path / "catalogue.json"], check=True, capture_output=True, timeout=120)
    figures = json.loads((tmp_path / "catalogue.json").read_text())
    assert figures["arguments"] == {"segments": 30, "rounds": 5}
    for name in ("look", "refresh", "add", "commit", "open"):
        assert 0 < figures[f"{name}_s"] < 60
    assert 32 + 16 + 80 < figures["bytes_per_segment"] < 100_000, "an id, its collection's and a cell, at least"
    assert 32 < figures["memory_bytes_per_segment"] < 10_000
    text = "\n".join(sections.catalogue(Run(tmp_path)))
    assert re.search(r"catalogue of 30 segments", text)
    assert "python -m benchmarks.catalogue --segments 30 --rounds 5" in text

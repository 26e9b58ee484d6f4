"""A seeded sample of tests.faults.run, and that it finds what is wrong with a disk whose syncs do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 300


def _run(target: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults.run", *arguments, "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
    return done.returncode, json.loads(target.read_text())


def test_a_sample_of_power_losses_errors_and_kills_loses_nothing(tmp_path: Path) -> None:
    status, figures = _run(tmp_path / "figures.json", "power", "errors", "kill", "--every", "400")
    assert figures["problems"] == []
    assert (status, figures["failures"], figures["lost"], figures["phantom"]) == (0, 0, 0, 0)
    assert figures["runs"] > 25
    assert {"raised ReadOnlyError", "read-only afterwards", "done in spite of it"} <= set(figures["counts"])


def test_a_repair_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """At every write of it: a catalogue that is made anew takes the old one's place when all of it is in its file."""
    status, figures = _run(tmp_path / "figures.json", "errors", "--only", "errors/copies/plain-repair/short-full/")
    assert (status, figures["problems"]) == (0, [])
    assert figures["runs"] > 25


def test_a_disk_that_lies_about_syncs_is_found_out(tmp_path: Path) -> None:
    status, figures = _run(tmp_path / "figures.json", "power", "--lying-disk", "--every", "800")
    assert status == 1
    assert figures["lost"] > 0

"""The healthcare example: at small size, as its page says; its patients, intervals and votes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.healthcare import page
from examples.healthcare.evaluation import accuracy, difference
from examples.healthcare.identifiers import left, without_identifiers
from examples.healthcare.neighbours import vote
from examples.healthcare.patients import CHAPTERS, HOSPITALS, Patient, make_patients

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures" / "healthcare.json"


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return make_patients(400, seed=3)


def test_patients_are_those_of_their_seed(patients: list[Patient]) -> None:
    def seen(some: list[Patient]) -> list[tuple[str, str, str]]:
        return [(p.note, p.chapter, p.hospital) for p in some]

    assert seen(make_patients(400, seed=3)) == seen(patients)
    assert seen(make_patients(400, seed=4)) != seen(patients)
    assert {p.chapter for p in patients} == set(CHAPTERS)
    assert {p.hospital for p in patients} == set(HOSPITALS)
    assert {len(p.diagnoses) for p in patients} == {1, 2, 3, 4}
    assert len({p.record for p in patients}) == len(patients)


def test_identifiers_become_labels(patients: list[Patient]) -> None:
    assert left(patients, [p.note for p in patients]) == 3 * len(patients)
    notes = without_identifiers(patients)
    assert left(patients, notes) == 0
    for p, note in zip(patients, notes, strict=True):  # and nothing else is changed
        expected = p.note.replace(f"{p.given} {p.family}", "[PERSON]").replace(p.family, "[PERSON]")
        assert note == expected.replace(p.record, "[MRN]").replace(p.phone, "[PHONE_NUMBER]")


def test_votes() -> None:
    assert vote([("9", 0.9), ("2", 0.8), ("2", 0.75), ("4", 0.5)]) == "2"  # 0.4; 0.3 + 0.25; 0
    assert vote([("9", 0.9), ("2", 0.6), ("2", 0.55), ("4", 0.5)]) == "9"
    assert vote([("9", 0.5), ("2", 0.5)]) == "9"  # nothing between them: the nearest


def test_intervals_hold_what_they_say() -> None:
    """Of 2,000 experiments whose truth is known, 95 % of the intervals have it, within 1.5 points."""
    rng = np.random.default_rng(1)
    n, holds, holds_difference = 300, 0, 0
    for _ in range(2000):
        draw = rng.random(n)
        one, other = draw < 0.66, (draw > 0.02) & (draw < 0.67)  # 0.66 and 0.65, mostly on the same patients
        _, low, high = accuracy(float(one.mean()), n)
        holds += low <= 0.66 <= high
        _, low, high = difference(one, other)
        holds_difference += low <= 0.01 <= high
    assert 0.935 <= holds / 2000 <= 0.97
    assert 0.935 <= holds_difference / 2000 <= 0.98
    same = np.ones(n, bool)
    estimate, low, high = difference(same, same)
    assert estimate == 0
    assert low < 0 < high


def test_the_example_runs_small(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "examples.healthcare.run", "--small", "--json", str(file)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert page.render(figures) in ran.stdout
    committed = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert set(figures) == set(committed)
    assert figures["identifiers_left"] == 0
    rows = {row["method"]: row for row in figures["rows"]}
    assert set(rows) == {row["method"] for row in committed["rows"]}
    assert rows["k-NN"]["accuracy"] > rows["the most frequent chapter"]["accuracy"] + 0.1
    for one in figures["against"]:
        assert one["agreement"] > 0.95
        assert rows[f"k-NN, encrypted, `{one['profile']}`"]["accuracy"] == pytest.approx(
            rows["k-NN"]["accuracy"] + one["difference"]
        )
        assert one["low"] <= one["difference"] <= one["high"]
    for row in figures["rows"]:
        assert (row["epsilon"] is not None) == ("DP" in row["method"])


def test_bad_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from examples.healthcare.run import main

    with pytest.raises(SystemExit) as ended:
        main(["--json", str(tmp_path / "no" / "figures.json")])
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


# ---- the page --------------------------------------------------------------------------------------------
@pytest.fixture
def committed() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def test_the_page_is_the_measured_one(committed: dict[str, Any]) -> None:
    written = page.README.read_text(encoding="utf-8")
    measured = page.render(committed, "../../docs/figures/healthcare.svg")
    assert page.write(written, measured) == written, "run `make healthcare HEALTHCARE=docs/figures`"
    assert measured in written


def test_what_the_page_claims_was_measured(committed: dict[str, Any]) -> None:
    assert not committed["arguments"]["small"]
    assert committed["total_s"] < 300
    assert {one["profile"] for one in committed["against"]} == {"exact", "compact"}
    for one in committed["against"]:  # "within half a point"
        assert -0.005 <= one["low"] <= one["high"] <= 0.005


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.README.read_text(encoding="utf-8")):
        assert (page.README.parent / target).exists(), target

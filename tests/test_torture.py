"""Short runs of the torture tests, and their oracle, which sees what it is there to see; `make torture` is longer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from he_client import Hit, collection
from tests.s3_fixture import ENVIRONMENT
from tests.torture import crash_postgres, crowd, kill_client, kill_server, lose_server, overload, report, restarts, soak
from tests.torture.oracle import Findings, examine
from tests.torture.rows import OWNED, Owner, Rows, payload, vector
from tests.torture.slope import robust_slope
from tests.torture.tally import Tally
from tests.torture.verdict import ALL, queries

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures" / "torture"


@pytest.fixture(autouse=True)
def segment_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `small_segments` changes is as it was for the next test."""
    monkeypatch.setattr(collection, "SEGMENT_BYTES", collection.SEGMENT_BYTES)
    yield


# ---- the oracle ----------------------------------------------------------------------------------------------
MINE: Rows = {OWNED + number: number // 3 for number in range(20)}
BEFORE: Rows = {2 * OWNED + number: 0 for number in range(10)}
AFTER: Rows = {2 * OWNED + number: 1 for number in range(5, 12)}
STATES = {1: [MINE], 2: [BEFORE, AFTER]}
QUERY = queries(np.random.default_rng(5), 1)[0]


def right(rows: Rows, k: int = ALL) -> list[Hit]:
    hits = [Hit(row, float(vector(row, revision) @ QUERY), payload(row, revision)) for row, revision in rows.items()]
    return sorted(hits, key=lambda hit: -hit.score)[:k]


def judged(hits: list[Hit], k: int = ALL) -> Findings:
    return examine(hits, k, QUERY, STATES)


@pytest.mark.parametrize("state", [BEFORE, AFTER])
@pytest.mark.parametrize("k", [ALL, 5, 1])
def test_right_results_are_right(state: Rows, k: int) -> None:
    findings = judged(right(MINE | state, k), k)
    assert not findings.problems
    if k == ALL:
        assert findings.found == {1: MINE, 2: state}


def moved(hits: list[Hit], place: int, **changes: object) -> list[Hit]:
    return [replace(hit, **changes) if number == place else hit for number, hit in enumerate(hits)]  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[list[Hit]], list[Hit]], str]] = {
    "a row too few": (lambda hits: [hit for hit in hits if hit.id != OWNED], "is missing"),
    "nothing at all": (lambda _: [], "is missing"),
    "a row twice": (lambda hits: [*hits, hits[-1]], "twice"),
    "a row that never was": (lambda hits: [*hits, Hit(OWNED + 50, -0.99, payload(OWNED + 50, 0))], "cannot be"),
    "a row of an older revision": (lambda hits: moved(hits, 3, payload=payload(int(hits[3].id), 99)), "cannot be"),
    "another row's payload": (lambda hits: moved(hits, 3, payload=hits[4].payload), "cannot be"),
    "no payload": (lambda hits: moved(hits, 3, payload=None), "cannot be"),
    "a score that is a little off": (lambda hits: moved(hits, 0, score=hits[0].score + 0.02), "a wrong score"),
    "two hits in the wrong order": (lambda hits: [hits[-1], *hits[1:-1], hits[0]], "do not descend"),
    "half of what was done": (
        lambda _: right(MINE | {row: 0 for row in BEFORE if row < 2 * OWNED + 5} | AFTER),
        "none of 2 states",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_results_are_seen(what: str) -> None:
    change, problem = WRONG[what]
    findings = judged(change(right(MINE | BEFORE)))
    assert any(problem in found for found in findings.problems), findings.problems


def test_a_nearest_row_left_out_is_seen() -> None:
    """Also where as many hits come as were asked for, none of them wrong in itself."""
    hits = right(MINE | BEFORE)
    nearest = next(place for place, hit in enumerate(hits) if hit.id in MINE)
    findings = judged([hit for place, hit in enumerate(hits) if place != nearest][:10], 10)
    assert findings.lost == 1


def test_histories_are_those_of_owners() -> None:
    owner, history, past = Owner(7, 3), crowd.History(7, 3), [{}]
    for _ in range(200):
        owner.begin()
        owner.acknowledged()
        past.append(owner.rows)
    assert history.states(0, 3) == past[:4]
    assert history.states(150, 152) == past[150:153]
    assert history.states(200, 200) == past[200:]
    assert any(len(rows) > 30 for rows in past) and all(len(rows) < 80 for rows in past)


def test_slope() -> None:
    rng = np.random.default_rng(3)
    seconds = np.arange(1200.0)
    noise = rng.normal(size=1200) + 50 * (rng.random(1200) < 0.05)  # and jumps now and then
    found = robust_slope(seconds.tolist(), (1000 + seconds / 3600 * 30 + noise).tolist())
    assert found["low"] < 3 < found["high"]
    assert abs(found["percent_per_h"] - 3) < 1


# ---- short runs ----------------------------------------------------------------------------------------------
def tortured(run: Callable[..., None], seed: int, amount: float, **more: int) -> Tally:
    tally = Tally()
    run(seed, amount, tally, **more)
    assert not tally.problems, tally.figures()
    assert not tally.lost and not tally.phantom
    return tally


@pytest.mark.parametrize("seed", [1, 2], ids=["sealed", "unsealed"])
def test_kill_server(seed: int) -> None:
    tally = tortured(kill_server.run, seed, 30)
    assert tally.runs == 30
    assert {f"{kind} acknowledged" for kind in ("insert", "upsert", "delete", "compact")} <= tally.counts.keys()


def test_kill_client() -> None:
    tally = tortured(kill_client.run, 1, 60)
    assert tally.runs == 60
    assert any(what.endswith(("undone", "kept")) for what in tally.counts)


def test_lose_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    try:
        tally = tortured(lose_server.run, 2, 8)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert tally.runs == 8
    assert tally.counts["disks lost"] > 0


def test_crash_postgres() -> None:
    try:
        tally = tortured(crash_postgres.run, 2, 8)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert tally.runs == 8
    assert "insert acknowledged" in tally.counts


def test_soak() -> None:
    tally = tortured(soak.run, 1, 180.0)
    assert tally.counts["searches checked"] > 100
    assert tally.counts["compact acknowledged"] > 0


def test_restarts() -> None:
    tally = tortured(restarts.run, 1, 4)
    assert tally.special["failed_searches"] == 0
    assert tally.counts["searches checked"] > 4


def test_overload() -> None:
    """Some are refused, sooner than others are answered, and as much is done as without the overload."""
    tally = tortured(overload.run, 1, 4.0, rows=20_000)
    for figures in (tally.special["scans_1"], tally.special["scans_2"]):
        assert figures["refused_share"] > 0.1
        assert figures["refused_s"]["p50"] < figures["accepted_s"]["p99"]
        assert figures["accepted_per_s"] > figures["capacity_per_s"] / 4


# ---- the report ----------------------------------------------------------------------------------------------
def test_the_report_is_the_measured_one() -> None:
    assert (ROOT / "docs" / "reliability.md").read_text() == report.render(FIGURES), (
        "run `python -m tests.torture.report`"
    )


def test_every_defect_has_its_test() -> None:
    for defect in report.defects():
        file, _, function = defect["test"].partition("::")
        assert re.search(rf"^\s*(async )?def {function}\(", (ROOT / file).read_text(), re.M), defect["test"]

"""Compaction: fewer segments, the same rows, whatever else happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, Collection, CollectionKey, Conflict, NotFound, TamperedDataError, Unavailable
from he_client.upkeep.compaction import groups
from he_proto.v1 import hesearch_pb2 as pb
from tests.compaction_fixture import DIM, FULL_ROWS, before, contents, make, segments, shrink_segments
from tests.conftest import unit_rows
from tests.lying_fixture import dying, lying_client
from tests.sdk_fixture import connect, grpc_address


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_segments(monkeypatch)


# ---- which segments ---------------------------------------------------------------------------------------------
def entry(number: int, rows: int, deleted: int = 0) -> pb.SegmentEntry:
    return pb.SegmentEntry(segment_id=bytes([number]), rows=rows, deleted_rows=range(deleted))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([(100, 0)], []),  # small, but alone
        ([(10, 0)], []),
        ([(10, 0), (10, 0)], [[0, 1]]),
        ([(49, 0), (50, 0), (49, 0)], [[0, 2]]),  # half full is not small
        ([(100, 50), (10, 0)], []),  # half of it deleted is not half-dead
        ([(100, 51)], [[0]]),  # half-dead, alone
        ([(10, 6)], [[0]]),
        ([(100, 51), (40, 0), (100, 0), (11, 0)], [[0, 1, 3]]),
        ([(49, 0), (49, 0), (49, 0)], [[0, 1]]),
        ([(49, 0), (49, 0), (49, 0), (2, 0), (49, 0)], [[0, 1, 3], [2, 4]]),
        ([(300, 160), (300, 160)], [[0], [1]]),  # from a version whose segments were larger
    ],
)
def test_which_segments(sizes: list[tuple[int, int]], expected: list[list[int]]) -> None:
    found = groups([entry(i, *size) for i, size in enumerate(sizes)], 100)
    assert [[e.segment_id[0] for e in group] for group in found] == expected


@pytest.mark.parametrize("seed", range(50))
def test_a_second_compaction_finds_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 101, rng.integers(0, 60))
    entries = [entry(i, int(n), int(rng.integers(0, n))) for i, n in enumerate(rows)]
    chosen = groups(entries, 100)
    taken = [e.segment_id for group in chosen for e in group]
    assert len(set(taken)) == len(taken)
    made = [sum(e.rows - len(e.deleted_rows) for e in group) for group in chosen]
    assert all(n <= 100 for n in made)
    after = [e for e in entries if e.segment_id not in taken] + [entry(100 + i, n) for i, n in enumerate(made)]
    assert groups(after, 100) == []
    assert sum(2 * e.rows < 100 for e in after) <= 1
    assert sum(e.rows for e in after) <= 2 * sum(e.rows - len(e.deleted_rows) for e in after)


# ---- the same rows ----------------------------------------------------------------------------------------------
COLLECTIONS: list[dict[str, Any]] = [
    {}, {"metric": "ip", "norm_bound": 3.0}, {"metric": "l2", "norm_bound": 3.0}, {"profile": "compact", "stride": 16},
    {"profile": "precise"}, {"engine": "tenseal", "profile": None, "stride": None, "metric": "l2", "norm_bound": 3.0},
]  # fmt: skip
TOLERANCE = {"exact": 0.0, "compact": 2e-2, "precise": 1e-6, None: 1e-4}


@pytest.mark.parametrize("options", COLLECTIONS, ids=str)
def test_nothing_changes_but_the_segments(
    tmp_path: Path, key: CollectionKey, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    """Ids of both kinds, payloads of all kinds, scores: to the bit under `exact`. For readers new and old."""
    rows = 2 * unit_rows(rng, 900, DIM)
    ids = [i if i % 3 else f"row {i}" for i in range(900)]
    payloads = [None if i % 5 == 0 else f"text {i}" if i % 2 else b"bytes %d" % i for i in range(900)]
    with connect("grpc", tmp_path / "data") as client:
        made = make(client, key, **options)
        stale = client.open_collection("c", key=key)
        for first, last in ((0, 600), (600, 601), (601, 640), (640, 800), (800, 900)):
            made.insert(ids[first:last], rows[first:last], payloads[first:last] if first != 640 else None)
        made.delete(ids[100:500] + ids[620:630])
        queries = unit_rows(rng, 3, DIM)
        assert stale.count() == made.count() == 490
        want = contents(made, queries)
        version, stored = made.version, client.describe("c").stored_bytes

        report = made.compact(progress=False)
        assert segments(made) == [(490, 0)]
        assert (report.segments_before, report.segments_after, report.rewritten, report.commits) == (5, 1, 5, 1)
        assert (report.rows, report.dropped_rows) == (490, 410)
        assert report.freed_bytes == stored - client.describe("c").stored_bytes > 0
        assert made.version == version + 1
        for reader in (stale, made, client.open_collection("c", key=key)):
            found = contents(reader, queries)
            for one, other in zip(found, want, strict=True):
                assert {i: p for i, (_, p) in one.items()} == {i: p for i, (_, p) in other.items()}
                worst = max(abs(score - other[i][0]) for i, (score, _) in one.items())
                assert worst <= TOLERANCE[options.get("profile", "exact")]

        again = made.compact()
        assert (again.commits, again.rows, made.version) == (0, 0, version + 1)
        stale.upsert([ids[0], "new"], rows[:2], ["changed", None])
        made.delete([ids[1]])
        assert made.count() == stale.count() == 490


def test_payloads_fetched_one_by_one(tmp_path: Path, key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 20, DIM)
    with connect("grpc", tmp_path / "data") as client:
        made = make(client, key, payloads="direct")
        stale = client.open_collection("c", key=key, payloads="direct")
        for i in (0, 10):
            made.insert(range(i, i + 10), rows[i : i + 10], [f"{j}" if j % 3 else None for j in range(i, i + 10)])
        want = contents(stale, rows[:1])
        assert made.compact().rows == 20
        assert contents(stale, rows[:1]) == contents(made, rows[:1]) == want


def test_several_groups(key: CollectionKey, rng: np.random.Generator) -> None:
    """More than a full segment's worth, beside segments that stay as they are."""
    rows = unit_rows(rng, 4 * FULL_ROWS, DIM)
    with Client(":memory:") as client:
        made = make(client, key)
        made.insert(range(2 * FULL_ROWS), rows[: 2 * FULL_ROWS])
        first = 2 * FULL_ROWS
        for size in (300, 400, 500, 200, 300, 100):
            made.insert(range(first, first + size), rows[first : first + size])
            first += size
        made.delete(range(FULL_ROWS // 2 + 1))
        kept = made._state.manifest.message.segments[1].segment_id
        want = contents(made, rows[:2])
        version = made.version
        report = made.compact()
        assert segments(made) == [(300, 0), (1000, 0), (1011, 0), (FULL_ROWS, 0)]
        assert made.version == version + report.commits == version + 2
        assert kept in {e.segment_id for e in made._state.manifest.message.segments}
        assert contents(made, rows[:2]) == want


def test_an_empty_collection(key: CollectionKey) -> None:
    with Client(":memory:") as client:
        made = make(client, key)
        assert made.compact().commits == 0
        assert made.version == 1


def test_progress(key: CollectionKey, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    rows = unit_rows(rng, 20, DIM)
    with Client(":memory:") as client:
        made = make(client, key)
        for i in (0, 10):
            made.insert(range(i, i + 10), rows[i : i + 10])
        made.compact(progress=True)
    assert "compact: 100%" in (shown := capsys.readouterr().err) and "20/20" in shown


# ---- others write meanwhile -------------------------------------------------------------------------------------
def two_collections(client: Client, key: CollectionKey, rows: Any) -> tuple[Collection, Collection]:
    """Ids 0 to 29 in three small segments, and another client's view of them."""
    one = make(client, key)
    for i in (0, 10, 20):
        one.insert(range(i, i + 10), rows[i : i + 10], [f"old {j}" for j in range(i, i + 10)])
    return one, client.open_collection("c", key=key)


MEANWHILE: dict[str, tuple[Callable[[Collection, Any], object], dict[int, str]]] = {
    "delete": (lambda c, _: c.delete([3, 25]), {i: f"old {i}" for i in range(30) if i not in (3, 25)}),
    "upsert": (
        lambda c, rows: c.upsert([3, 99], rows[:2], ["new"] * 2),
        {i: f"old {i}" for i in range(30)} | {3: "new", 99: "new"},
    ),
    "delete and insert again": (
        lambda c, rows: (c.delete([3]), c.insert([3], rows[:1], ["back"])),
        {i: f"old {i}" for i in range(30)} | {3: "back"},
    ),
    "insert": (lambda c, rows: c.insert([77], rows[:1], ["new"]), {i: f"old {i}" for i in range(30)} | {77: "new"}),
    "delete a segment": (lambda c, _: c.delete(range(10)), {i: f"old {i}" for i in range(10, 30)}),
    "delete all": (lambda c, _: c.delete(range(30)), {}),
    "compact": (lambda c, _: c.compact(), {i: f"old {i}" for i in range(30)}),
    "compact and delete": (
        lambda c, _: (c.compact(), c.delete([4])),
        {i: f"old {i}" for i in range(30) if i != 4},
    ),
}


@pytest.mark.parametrize("moment", ["rows", "upload", "commit"])
@pytest.mark.parametrize("what", MEANWHILE)
def test_others_write_meanwhile(key: CollectionKey, rng: np.random.Generator, what: str, moment: str) -> None:
    """Between the choice and the download, between that and the upload, between that and the commit."""
    rows = unit_rows(rng, 30, DIM)
    action, want = MEANWHILE[what]
    with Client(":memory:") as client:
        one, two = two_collections(client, key, rows)
        target: Any = one._state if moment == "commit" else one._store
        setattr(target, moment, before(getattr(target, moment), lambda: action(two, rows)))
        one.compact()
        for reader in (one, two, client.open_collection("c", key=key)):
            if want:
                assert {i: p for i, (_, p) in contents(reader, rows[:1])[0].items()} == want
            assert reader.count() == len(want)
        two.compact()
        assert len(segments(two)) <= 1
        assert two.count() == len(want)


def test_a_segment_of_the_manifest_that_is_lost(key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 30, DIM)
    with lying_client() as (client, transport):
        one, two = two_collections(client, key, rows)

        def lost(_: Any) -> Any:
            raise NotFound("segment: no such segment")

        transport.lies["ReadSegmentPart"] = lost
        with pytest.raises(TamperedDataError, match="no longer has"):
            one.compact()
        transport.lies.clear()
        assert two.count() == 30


def test_damage_is_not_encrypted_anew(key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 30, DIM)
    with lying_client() as (client, transport):
        one, _ = two_collections(client, key, rows)

        def damaged(responses: list[Any]) -> list[Any]:
            changed = bytearray(responses[0].chunk)
            changed[0] ^= 1
            responses[0].chunk = bytes(changed)
            return responses

        transport.lies["ReadSegmentPart"] = damaged
        version = one.version
        with pytest.raises(TamperedDataError, match="INDEX part does not match"):
            one.compact()
        transport.lies.clear()
        assert (one.count(), one.version, len(segments(one))) == (30, version, 3)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_at_any_call(key: CollectionKey, rng: np.random.Generator, after: bool) -> None:
    """The client dies at its n-th call to the server, or when that was answered; for every n. The next one goes on."""
    rows = unit_rows(rng, 4 * 500, DIM)

    def run(fatal: int) -> bool:
        with lying_client() as (client, transport):
            made = make(client, key)
            for i in range(4):
                made.insert(range(500 * i, 500 * i + 500), rows[500 * i : 500 * i + 500], ["p"] * 500)
            made.delete(range(0, 2000, 7))
            want = contents(made, rows[:1])
            with dying(transport, fatal, after) as ended:
                made.compact()
            reader = client.open_collection("c", key=key)
            assert contents(reader, rows[:1]) == want
            reader.compact()
            assert [deleted for _, deleted in segments(reader)] == [0] * 2
            assert contents(reader, rows[:1]) == want
            return bool(ended)

    calls = 1
    while run(calls):
        calls += 1
    assert calls > 2 * 4


def test_a_lost_reply_is_one_commit(key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 30, DIM)
    with lying_client() as (client, transport):
        one, two = two_collections(client, key, rows)

        def lost(_: Any) -> Any:
            transport.lies.clear()
            two.delete([5])
            raise Unavailable("the connection broke")

        transport.lies["CommitManifest"] = lost
        assert one.compact().commits == 1
        assert segments(one) == [(30, 1)]
        assert contents(one, rows[:1]) == contents(two, rows[:1])


# ---- all at once ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["memory", "grpc"])
def test_writers_searchers_and_compactors_at_full_speed(
    tmp_path: Path, key: CollectionKey, rng: np.random.Generator, kind: str
) -> None:
    """Two writers insert, replace and delete their own ids; two compactors and two searchers run until they end.

    A search sees one version: of each writer, the state after one of its commits, exactly.
    """
    rounds = 12
    rows = unit_rows(rng, 2 * rounds * 8, DIM)
    query = rows[-1]
    scores = rows @ query
    errors: list[BaseException] = []
    ended = threading.Event()
    shared = threading.Lock()
    states: dict[int, list[dict[int, str]]] = {0: [{}], 1: [{}]}  # id → number of its row, after each commit

    def attempt(action: Callable[..., object], *arguments: Any) -> None:
        while True:
            try:
                action(*arguments)
                return
            except Conflict:  # announced: others were faster 16 times
                continue

    def write(collection: Collection, writer: int) -> None:
        state: dict[int, str] = {}
        random = np.random.default_rng(writer)

        def commit(action: Callable[..., object], after: dict[int, str], *arguments: Any) -> dict[int, str]:
            with shared:
                states[writer].append(after)
            attempt(action, *arguments)
            return after

        def put(action: Callable[..., object], ids: list[int], first: int) -> dict[int, str]:
            numbers = [str(first + j) for j in range(len(ids))]
            vectors = rows[first : first + len(ids)]
            return commit(action, state | dict(zip(ids, numbers, strict=True)), ids, vectors, numbers)

        for number in range(rounds):
            first = 8 * (writer * rounds + number)
            old = [int(i) for i in random.permutation(sorted(state))[:3]]
            state = put(collection.insert, [1000 * writer + 4 * number + j for j in range(4)], first)
            if old:
                state = put(collection.upsert, old, first + 4)
                state = commit(collection.delete, {i: n for i, n in state.items() if i != old[0]}, old[:1])

    def compact(collection: Collection) -> None:
        while not ended.is_set():
            attempt(collection.compact)

    def search(collection: Collection) -> None:
        while not ended.is_set():
            try:
                hits = collection.search(query, k=1000)
            except Conflict:
                continue
            found = {hit.id: hit.payload for hit in hits}
            assert len(found) == len(hits), "no id twice"
            assert all(abs(hit.score - scores[int(str(hit.payload))]) < 3e-3 for hit in hits)
            for writer in (0, 1):
                part = {i: p for i, p in found.items() if i // 1000 == writer}
                with shared:
                    assert part in states[writer], "a version that some commit made"

    def guarded(action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except BaseException as error:
            errors.append(error)
            ended.set()

    if kind == "grpc":
        with grpc_address(tmp_path) as address:
            clients = [Client(address, insecure=True, threads=1) for _ in range(6)]
            _run_all(clients, key, guarded, write, compact, search, ended)
            final = _final(clients[0], key, query)
            for client in clients:
                client.close()
    else:
        with Client(":memory:", threads=1) as client:
            _run_all([client] * 6, key, guarded, write, compact, search, ended)
            final = _final(client, key, query)
    if errors:
        raise errors[0]
    assert final == states[0][-1] | states[1][-1], "nothing lost, nothing brought back"


def _run_all(
    clients: list[Client], key: CollectionKey, guarded: Any, write: Any, compact: Any, search: Any, ended: Any
) -> None:
    make(clients[0], key)
    opened = [client.open_collection("c", key=key) for client in clients]
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(guarded, compact, c) for c in opened[2:4]]
        others += [pool.submit(guarded, search, c) for c in opened[4:]]
        writers = [pool.submit(guarded, write, opened[i], i) for i in (0, 1)]
        for writer in writers:
            writer.result()
        ended.set()
        for other in others:
            other.result()


def _final(client: Client, key: CollectionKey, query: Any) -> dict[Any, Any]:
    fresh = client.open_collection("c", key=key)
    fresh.compact()
    assert len(segments(fresh)) <= 1
    hits = fresh.search(query, k=1000)
    assert len(hits) == fresh.count()
    return {hit.id: hit.payload for hit in hits}

"""One conformance suite: {hint exact, compact, precise, tenseal} × {in process, gRPC}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    AlreadyExists,
    Client,
    Collection,
    CollectionKey,
    DimensionError,
    DuplicateIdError,
    InvalidInput,
    NormError,
    NotFound,
    ParameterError,
    RollbackError,
    WrongKeyError,
)
from he_client.arrival import grouped
from he_client.manifest import Manifest
from he_client.rows import RowTable
from he_client.segments import Segment
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import block_by_block, lying_client
from tests.sdk_fixture import connect, grpc_address

DIM = 24
ENGINES: list[dict[str, Any]] = [
    {"profile": "exact"}, {"profile": "compact"}, {"profile": "precise"}, {"engine": "tenseal"},
]  # fmt: skip
TOLERANCE = {"exact": 3e-3, "compact": 8e-3, "precise": 1e-6, "tenseal": 1e-4}


def _name(options: dict[str, Any]) -> str:
    return str(options.get("engine") or options["profile"])


@pytest.fixture(params=["memory", "grpc"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with connect(request.param, tmp_path / "data") as connected:
        yield connected


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.mark.parametrize("options", ENGINES, ids=_name)
def test_life_of_a_collection(
    client: Client, key: CollectionKey, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    if "engine" in options:
        pytest.importorskip("tenseal")
    rows = unit_rows(rng, 60, DIM).astype(np.float32)
    ids: list[int | str] = [*range(30), *(f"row-{i}" for i in range(30, 60))]
    texts = [f"text {i}" for i in range(59)] + [None]
    notes = client.create_collection("notes", dim=DIM, key=key, **options)
    assert notes.search(rows[0], k=3) == []
    assert notes.insert(ids[:40], rows[:40], payloads=texts[:40]) == 40
    assert notes.insert(ids[40:], rows[40:], payloads=texts[40:]) == 20
    assert notes.count() == 60

    tolerance = TOLERANCE[_name(options)]
    queries = unit_rows(rng, 3, DIM)
    for vector, hits in zip(queries, notes.search(queries, k=60), strict=True):
        assert {h.id for h in hits} == set(ids)
        truth = dict(zip(ids, rows @ vector, strict=True))
        for hit in hits:
            assert abs(hit.score - truth[hit.id]) < tolerance
            assert hit.payload == texts[ids.index(hit.id)]
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert notes.search(rows[7], k=1)[0].id == 7
    assert notes.search(rows[45], k=1)[0].id == "row-45"
    assert len(notes.search(rows[0], k=1000)) == 60, "k over count gives count"

    assert notes.delete([7, "row-45"]) == 2
    assert notes.count() == 58
    assert all(h.id not in (7, "row-45") for h in notes.search(rows[7], k=60))
    with pytest.raises(NotFound):
        notes.delete([3, 7])
    assert notes.count() == 58, "all or nothing"
    notes.insert([7], rows[7:8], payloads=[b"\x00bytes"])
    assert notes.search(rows[7], k=1)[0].payload == b"\x00bytes"

    again = client.open_collection("notes", key=key)
    assert again.count() == 59
    for mine, other in zip(notes.search(queries, k=5), again.search(queries, k=5), strict=True):
        assert [h.id for h in mine] == [h.id for h in other]
    assert client.describe("notes").segments == 3
    notes.delete(ids[:40])
    assert client.describe("notes").segments == 1, "segments without a live row leave the manifest"
    client.drop_collection("notes")
    assert client.list_collections() == []
    with pytest.raises(NotFound):
        notes.search(rows[0])


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("options", ENGINES, ids=_name)
def test_metrics(key: CollectionKey, rng: np.random.Generator, metric: str, options: dict[str, Any]) -> None:
    if "engine" in options:
        pytest.importorskip("tenseal")
    rows = rng.standard_normal((50, DIM)) * rng.uniform(0.1, 3, (50, 1))
    bound = float(np.linalg.norm(rows, axis=1).max())
    query = rng.standard_normal(DIM) * 2
    scale = bound * float(np.linalg.norm(query))
    with Client(":memory:") as client:
        collection = client.create_collection("c", dim=DIM, key=key, metric=metric, norm_bound=bound, **options)
        collection.insert(range(50), rows)
        hits = collection.search(query, k=50)
    tolerance = TOLERANCE[_name(options)] * scale
    for hit in hits:
        row = rows[int(hit.id)]
        truth = row @ query if metric == "ip" else np.linalg.norm(row - query)
        slack = tolerance if metric == "ip" else 2 * tolerance / max(1e-9, truth)
        assert abs(hit.score - truth) <= slack
    scores = [h.score for h in hits]
    assert scores == sorted(scores, reverse=metric == "ip")


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_any_grouping_and_any_order_of_arrival_give_the_same_hits(
    key: CollectionKey, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Many small segments, of four vectors only: ties within groups and across them go by insertion."""
    bound = None if metric == "cosine" else 1.0
    distinct, query = unit_rows(rng, 4, DIM), unit_rows(rng, 1, DIM)[0]
    which = rng.integers(0, 4, 140)
    with lying_client() as (client, transport):
        made = client.create_collection("c", dim=DIM, key=key, stride=128, metric=metric, norm_bound=bound)
        start = 0
        for size in (1, 70, 1, 1, 2, 33, 1, 3, 20, 8):  # 32 rows a block
            made.insert(range(start, start + size), distinct[which[start : start + size]])
            start += size
        gone = {0, 5, 40, 71, 77, 78, 79, 80, 139}  # one of them a whole segment
        made.delete(gone)
        live = [i for i in range(start) if i not in gone]
        truth = distinct @ query if metric != "l2" else -np.linalg.norm(distinct - query, axis=1)
        expected = sorted(live, key=lambda i: -truth[which[i]])
        whole = made.search(query, k=1000)
        assert [h.id for h in whole] == expected
        assert len({h.score for h in whole}) == 4, "equal vectors have equal scores"
        transport.lies["Answer"] = lambda p: [block_by_block(p)[i] for i in rng.permutation(len(block_by_block(p)))]
        for blocks in (1, 2, 3, 5, 1000):
            monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", blocks)
            for k in (1, 2, 30, 60, len(live) - 1, 1000):
                assert made.search(query, k=k) == whole[:k]


def test_groups() -> None:
    """Consecutive, each closed by the segment with which it has 256 blocks; rows keep their places."""
    blocks = [1] * 300 + [256, 100, 200, 255, 1, 1, 7]
    sizes = [3 * b for b in blocks]
    entries = [
        pb.SegmentEntry(segment_id=bytes([i % 256, i // 256]), blocks=b, rows=n, deleted_rows=range(i % 3))
        for i, (b, n) in enumerate(zip(blocks, sizes, strict=True))
    ]
    table = RowTable([], None, b"", b"", np.zeros(0, np.uint64))
    segments = [Segment(e, table, None) for e in entries]
    groups = grouped(Manifest(pb.Manifest(segments=entries), b""), segments)
    assert [s for g in groups for s in g.segments] == segments
    assert [g.blocks for g in groups] == [256, 44 + 256, 300, 256, 8]
    assert [g.first_row for g in groups] == [3 * b for b in (0, 256, 556, 856, 1112)]
    starts = np.cumsum([0, *sizes])
    expected = [int(start) + row for start, e in zip(starts, entries, strict=False) for row in e.deleted_rows]
    assert [g.first_row + row for g in groups for row in g.deleted.tolist()] == expected
    assert grouped(Manifest(pb.Manifest(), b""), []) == []


def test_groups_of_their_real_size(key: CollectionKey, rng: np.random.Generator) -> None:
    """Three of them, and what the report says of the search."""
    rows, queries = unit_rows(rng, 25_000, 8), unit_rows(rng, 3, 8)
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=8, stride=128, key=key)  # 32 rows a block
        for first in range(0, 25_000, 5000):
            made.insert(range(first, first + 5000), rows[first : first + 5000])
        hits = made.search(queries, k=100)
        report = made.last_search
        assert len(grouped(*made._state.current)) == 3
    p = made._parameters
    x, y = (np.rint(v * p.quantiser) for v in (rows, queries))
    for products, found in zip((x @ y.T).T, hits, strict=True):
        order = np.argsort(-products, kind="stable")[:100]
        assert [h.id for h in found] == order.tolist()
        assert [h.score for h in found] == (products[order] / p.quantiser**2).tolist()
    assert report is not None
    assert (report.queries, report.rows) == (3, 25_000)
    assert report.answer_bytes == 3 * 5 * -(-5000 // 32) * 32 * 8
    assert report.recover_work_s > 0 and report.recover_s > 0


def _collection(client: Client, key: CollectionKey, rng: np.random.Generator) -> Collection:
    made = client.create_collection("c", dim=DIM, key=key)
    made.insert(range(10), unit_rows(rng, 10, DIM))
    return made


ROW = np.ones((1, DIM))


@pytest.mark.parametrize(
    ("ids", "vectors", "payloads", "error"),
    [
        ([20], np.full((1, DIM), np.nan), None, NormError),
        ([20], np.full((1, DIM), np.inf), None, NormError),
        ([20], np.zeros((1, DIM)), None, NormError),
        ([20], np.full((1, DIM), 1e200), None, NormError),
        ([20], np.ones((1, DIM), int), None, DimensionError),
        ([20], np.ones((1, DIM), complex), None, DimensionError),
        ([20], [["a"] * DIM], None, DimensionError),
        ([20], np.ones((1, DIM + 1)), None, DimensionError),
        ([20], np.ones(DIM), None, DimensionError),
        ([20, 21], ROW, None, DimensionError),
        ([], np.ones((0, DIM)), None, InvalidInput),
        ([20, 20], np.ones((2, DIM)), None, DuplicateIdError),
        ([3], ROW, None, DuplicateIdError),
        ([True], ROW, None, InvalidInput),
        ([1.5], ROW, None, InvalidInput),
        ([None], ROW, None, InvalidInput),
        ([1 << 63], ROW, None, InvalidInput),
        ([""], ROW, None, InvalidInput),
        ([20], ROW, ["a", "b"], DimensionError),
        ([20], ROW, [{"a": 1}], InvalidInput),
    ],
)
def test_bad_inserts_change_nothing(
    key: CollectionKey, rng: np.random.Generator, ids: Any, vectors: Any, payloads: Any, error: type[Exception]
) -> None:
    with Client(":memory:") as client:
        collection = _collection(client, key, rng)
        version, stored = collection.version, client.describe("c").stored_bytes
        with pytest.raises(error):
            collection.insert(ids, vectors, payloads)
        assert collection.count() == 10
        assert (collection.version, client.describe("c").stored_bytes) == (version, stored)


@pytest.mark.parametrize(
    ("query", "k", "error"),
    [
        (np.ones(DIM + 1), 10, DimensionError),
        (np.ones((2, 2, DIM)), 10, DimensionError),
        (np.zeros(DIM), 10, NormError),
        (np.full(DIM, np.nan), 10, NormError),
        (np.ones(DIM, int), 10, DimensionError),
        (np.ones(DIM), 0, InvalidInput),
        (np.ones(DIM), -1, InvalidInput),
        (np.ones(DIM), 1.5, InvalidInput),
        (np.ones(DIM), True, InvalidInput),
    ],
)
def test_bad_queries(key: CollectionKey, rng: np.random.Generator, query: Any, k: Any, error: type[Exception]) -> None:
    with Client(":memory:") as client:
        collection = _collection(client, key, rng)
        with pytest.raises(error):
            collection.search(query, k=k)


def test_bad_collections(client: Client, key: CollectionKey) -> None:
    for options in (
        {"dim": 0}, {"dim": 1 << 20}, {"dim": 8, "metric": "hamming"}, {"dim": 8, "profile": "best"},
        {"dim": 8, "stride": 3}, {"dim": 8, "engine": "magic"}, {"dim": 8, "metric": "ip"},
        {"dim": 8, "metric": "l2", "norm_bound": -1.0}, {"dim": 8, "norm_bound": 2.0},
        {"dim": 8, "engine": "tenseal", "profile": "exact"},
    ):  # fmt: skip
        with pytest.raises(ParameterError):
            client.create_collection("bad", key=key, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        client.create_collection("../bad", dim=8, key=key)
    assert client.list_collections() == []
    client.create_collection("good", dim=8, key=key)
    with pytest.raises(AlreadyExists):
        client.create_collection("good", dim=8, key=key)
    with pytest.raises(NotFound):
        client.open_collection("other", key=key)
    with pytest.raises(WrongKeyError):
        client.open_collection("good", key=CollectionKey.generate())


def test_norms_over_the_bound(key: CollectionKey) -> None:
    with Client(":memory:") as client:
        collection = client.create_collection("c", dim=4, key=key, metric="ip", norm_bound=1.0)
        with pytest.raises(NormError, match="norm_bound"):
            collection.insert([1], np.ones((1, 4)))


def test_a_folder_keeps_its_collections(tmp_path: Path, key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 10, DIM)
    with Client(tmp_path / "data") as client:
        client.create_collection("c", dim=DIM, key=key).insert(range(10), rows, payloads=["t"] * 10)
    with Client(tmp_path / "data", cache=tmp_path / "cache") as client:
        assert client.open_collection("c", key=key).search(rows[4], k=1)[0].id == 4
    cached = {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()}
    assert len(cached) == 4, "hint, row table, fingerprint and payloads"
    assert not any(b"tttt" in content for content in cached.values())
    next(iter((tmp_path / "cache").iterdir())).write_bytes(b"damaged")
    with Client(tmp_path / "data", cache=tmp_path / "cache") as client:
        assert client.open_collection("c", key=key).search(rows[5], k=1)[0].payload == "t"
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir()} == cached, "damage is fetched anew"


def test_two_writers_lose_nothing(tmp_path: Path, key: CollectionKey, rng: np.random.Generator) -> None:
    """Each writes in turn; both see all."""
    rows = unit_rows(rng, 40, DIM)
    with grpc_address(tmp_path) as address, Client(address, insecure=True) as a, Client(address, insecure=True) as b:
        one = a.create_collection("c", dim=DIM, key=key)
        two = b.open_collection("c", key=key)
        for i in range(0, 20, 2):
            one.insert([i], rows[i : i + 1])
            two.insert([i + 1], rows[i + 1 : i + 2])
        assert one.count() == two.count() == 20
        with pytest.raises(DuplicateIdError):
            one.insert([1], rows[:1])
        two.delete([0])
        assert one.search(rows[0], k=20)[0].id != 0, "a search notices the new version"


def test_a_conflicting_commit_is_rebased(key: CollectionKey, rng: np.random.Generator) -> None:
    rows = unit_rows(rng, 4, DIM)
    with Client(":memory:") as client:
        one = client.create_collection("c", dim=DIM, key=key)
        two = client.open_collection("c", key=key)
        upload = one._upload

        def interrupted(*arguments: Any) -> Any:
            built = upload(*arguments)
            two.insert([100 + two.count()], rows[2:3])
            return built

        one._upload = interrupted  # type: ignore[method-assign]
        one.insert([0], rows[:1])
        one.insert([1], rows[1:2])
        assert one.count() == 4
        with pytest.raises(DuplicateIdError):
            one.insert([102], rows[3:4])  # two takes 104 meanwhile; 102 is there
        one._upload = lambda *a: (two.insert([7], rows[3:4]), upload(*a))[1]  # type: ignore[method-assign]
        with pytest.raises(DuplicateIdError):
            one.insert([7], rows[3:4])


def test_a_lost_reply_commits_once(key: CollectionKey, rng: np.random.Generator) -> None:
    from he_engine.errors import Unavailable

    with Client(":memory:") as client:
        collection = client.create_collection("c", dim=DIM, key=key)
        call = client._remote.transport.call
        lost = []

        def flaky(method: str, request: Any, *, timeout_s: float) -> Any:
            response = call(method, request, timeout_s=timeout_s)
            if method == "CommitManifest" and not lost:
                lost.append(method)
                raise Unavailable("the connection broke")
            return response

        client._remote.transport.call = flaky  # type: ignore[method-assign]
        collection.insert([1, 2], unit_rows(rng, 2, DIM))
        assert lost
        assert (collection.count(), collection.version) == (2, 2)


def test_rollback_is_refused(key: CollectionKey, rng: np.random.Generator) -> None:
    with Client(":memory:") as client:
        collection = client.create_collection("c", dim=DIM, key=key)
        call = client._remote.transport.call
        saved: list[Any] = []

        def replay(method: str, request: Any, *, timeout_s: float) -> Any:
            if method == "ReadManifest":
                saved.append(call(method, request, timeout_s=timeout_s))
                return saved[0]
            return call(method, request, timeout_s=timeout_s)

        client._remote.transport.call = replay  # type: ignore[method-assign]
        collection.insert([1], unit_rows(rng, 1, DIM))
        with pytest.raises(RollbackError, match="went back or forked"):
            collection.count()


@pytest.mark.parametrize(("mode", "ranges"), [("cache", [(0, 20)]), ("direct", [(5, 1), (6, 1)])])
def test_what_fetching_payloads_shows(
    tmp_path: Path, key: CollectionKey, rng: np.random.Generator, mode: Any, ranges: list[tuple[int, int]]
) -> None:
    """By default the whole column, once: the server cannot tell what was found. "direct" shows it each record."""
    rows, record = unit_rows(rng, 20, DIM), 1 + 100 + 16
    with Client(tmp_path) as client:
        client.create_collection("c", dim=DIM, key=key).insert(range(20), rows, payloads=["x" * 100] * 20)
    with Client(tmp_path) as client:
        reads: list[tuple[int, int]] = []
        stream = client._remote.transport.stream

        def watch(method: str, request: Any, *, timeout_s: float) -> Any:
            if method == "ReadSegmentPart" and request.kind == pb.PART_KIND_PAYLOADS:
                reads.append((request.offset_bytes, request.length_bytes))
            return stream(method, request, timeout_s=timeout_s)

        client._remote.transport.stream = watch  # type: ignore[method-assign]
        collection = client.open_collection("c", key=key, payloads=mode)
        for row in (5, 6):
            assert collection.search(rows[row], k=1)[0].payload == "x" * 100
    assert reads == [(record * first, record * count) for first, count in ranges]

"""What users may hand to the SDK, at its edges: types, sizes, norms; closed objects; and what reprs show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    DimensionError,
    HesearchError,
    InvalidInput,
    NormError,
    ParameterError,
    TamperedDataError,
    Unavailable,
)
from he_client.rows import RowTable
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows

DIM = 8
EYE = np.eye(DIM)


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(":memory:", threads=1) as connected:
        yield connected


@pytest.fixture
def made(client: Client, key: CollectionKey) -> Collection:
    collection = client.create_collection("c", dim=DIM, key=key)
    collection.insert(["a", "b", "abc"], EYE[:3])
    return collection


# ---- arguments -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda c: c.delete("abc"), InvalidInput),
        (lambda c: c.delete(b"abc"), InvalidInput),
        (lambda c: c.delete(5), InvalidInput),
        (lambda c: c.delete(None), InvalidInput),
        (lambda c: c.delete(np.array([[1, 2]])), InvalidInput),
        (lambda c: c.delete([1.0]), InvalidInput),
        (lambda c: c.delete([-(1 << 63) - 1]), InvalidInput),
        (lambda c: c.insert("xyz", EYE[:3]), InvalidInput),
        (lambda c: c.insert(b"xyz", EYE[:3]), InvalidInput),
        (lambda c: c.insert(7, EYE[:1]), InvalidInput),
        (lambda c: c.insert(["\ud800"], EYE[:1]), InvalidInput),
        (lambda c: c.insert(["é" * 513], EYE[:1]), InvalidInput),
        (lambda c: c.insert([1, 2, 3], EYE[:3], payloads="pqr"), InvalidInput),
        (lambda c: c.insert([1, 2, 3], EYE[:3], payloads=b"pqr"), InvalidInput),
        (lambda c: c.insert([1], EYE[:1], payloads=5), InvalidInput),
        (lambda c: c.insert([1], EYE[:1], payloads=[5]), InvalidInput),
        (lambda c: c.insert([1, 2], EYE[:2], payloads=["a"]), DimensionError),
        (lambda c: c.insert([1, 2], [[1.0] * DIM, [1.0] * (DIM - 1)]), DimensionError),
        (lambda c: c.insert([1], None), DimensionError),
        (lambda c: c.insert([1], EYE[:1] * 1e-101), NormError),
        (lambda c: c.insert([1], EYE[:1] * 1.1e100), NormError),
        (lambda c: c.insert([1, 2], EYE[:2] * [[1.0], [np.nan]]), NormError),
        (lambda c: c.search([[1.0] * DIM, [1.0]]), DimensionError),
        (lambda c: c.search(np.float64(1.0)), DimensionError),
        (lambda c: c.search(None), DimensionError),
        (lambda c: c.search(["a"] * DIM), DimensionError),
        (lambda c: c.search(EYE[0] * 1e-101), NormError),
        (lambda c: c.search(EYE[0] * 1.1e100), NormError),
        (lambda c: c.search(EYE[0], k="1"), InvalidInput),
        (lambda c: c.search(EYE[0], k=None), InvalidInput),
        (lambda c: c.search(EYE[0], k=2.0), InvalidInput),
    ],
)
def test_bad_arguments(made: Collection, action: Callable[[Collection], Any], error: type[HesearchError]) -> None:
    version = made.version
    with pytest.raises(error):
        action(made)
    assert (made.count(), made.version) == (3, version)


@pytest.mark.parametrize(
    "action",
    [
        lambda c: c.delete(np.array(5)),
        lambda c: c.insert(np.array(5), EYE[:1]),
        lambda c: c.insert([5], EYE[:1], payloads=np.array("text")),
    ],
)
def test_arrays_without_an_axis(made: Collection, action: Callable[[Collection], Any]) -> None:
    with pytest.raises(InvalidInput):
        action(made)


BAD_OPTIONS: list[dict[str, Any]] = [
    {"dim": 8.0}, {"dim": "8"}, {"dim": None}, {"dim": -1}, {"dim": 16385}, {"dim": 8, "stride": 0},
    {"dim": 8, "stride": -1}, {"dim": 8, "metric": None}, {"dim": 8, "profile": 1},
    {"dim": 8, "metric": "ip", "norm_bound": "1"}, {"dim": 8, "metric": "ip", "norm_bound": 0},
    {"dim": 8, "metric": "ip", "norm_bound": float("nan")}, {"dim": 8, "metric": "ip", "norm_bound": float("inf")},
    {"dim": 8, "metric": "l2", "norm_bound": 1e100}, {"dim": 8, "metric": "l2", "norm_bound": 1j},
    {"dim": 8, "norm_bound": "1"},
]  # fmt: skip
UNCHECKED: list[dict[str, Any]] = [
    {"dim": True}, {"dim": 8, "stride": 4.0}, {"dim": 8, "stride": "4"}, {"dim": 8, "stride": True},
    {"dim": 8.0, "engine": "tenseal"}, {"dim": "8", "engine": "tenseal"},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_parameters(client: Client, key: CollectionKey, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        client.create_collection("c", key=key, **options)
    assert client.list_collections() == []


@pytest.mark.parametrize("options", UNCHECKED, ids=str)
def test_bad_types_of_parameters(client: Client, key: CollectionKey, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        client.create_collection("c", key=key, **options)


def test_a_bad_payload_mode_creates_nothing(client: Client, key: CollectionKey) -> None:
    with pytest.raises(InvalidInput, match="payloads"):
        client.create_collection("c", dim=DIM, key=key, payloads="both")  # type: ignore[arg-type]
    assert client.list_collections() == []


@pytest.mark.parametrize("target", ["localhost", "", "host:", ":50051", "host:port", "memory"])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(InvalidInput, match="target"):
        Client(target)


def test_what_is_accepted(made: Collection) -> None:
    """Generators, NumPy scalars, half floats, lone surrogates in payloads, integers at both ends of 64 bits."""
    made.insert(iter([-(1 << 63), (1 << 63) - 1]), EYE[3:5], payloads=(p for p in ("\ud800", b"")))
    made.insert(np.array([7]), EYE[5:6].astype(np.float16))
    made.insert([np.int64(8), "é" * 512], EYE[6:8].tolist(), payloads=[None, ""])
    assert [(h.id, h.payload) for h in made.search(EYE[3:5].astype(np.float32), k=1)[0]] == [(-(1 << 63), "\ud800")]
    assert [made.search(EYE[i], k=np.int64(1))[0].payload for i in (4, 5, 6, 7)] == [b"", None, None, ""]
    assert made.search(np.ones((0, DIM))) == []
    assert made.delete([]) == made.delete({}) == 0
    assert made.delete(iter(["a"])) == 1


# ---- norms ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_float32_normalised_rows_fit_a_bound_of_one(
    client: Client, key: CollectionKey, rng: np.random.Generator, profile: str
) -> None:
    rows = unit_rows(rng, 300, 96).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (np.linalg.norm(rows.astype(np.float64), axis=1) > 1).any(), "or this would show nothing"
    made = client.create_collection("c", dim=96, key=key, metric="ip", norm_bound=1.0, profile=profile)
    assert made.insert(range(300), rows) == 300
    assert [hits[0].id for hits in made.search(rows[:20], k=1)] == list(range(20))
    with pytest.raises(NormError, match="row 1 is longer"):
        made.insert([300, 301], rows[:2] * np.array([[1], [1.00001]], np.float32))


@pytest.mark.parametrize("scale", [1e-99, 1e-30, 1e30, 1e99])
def test_cosine_ignores_lengths(client: Client, key: CollectionKey, rng: np.random.Generator, scale: float) -> None:
    rows = unit_rows(rng, 20, DIM)
    made = client.create_collection("c", dim=DIM, key=key)
    made.insert(range(20), rows)
    made.insert(range(20, 40), rows * scale)
    for row, hits in enumerate(made.search(rows * (1 / scale), k=2)):
        assert [h.id for h in hits] == [row, row + 20]
        assert hits[0].score == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize(
    "bound",
    [
        1e-99,
        1e-30,
        1e30,
        9e99,
    ],
)
def test_bounds_of_any_size(client: Client, key: CollectionKey, metric: str, bound: float) -> None:
    made = client.create_collection("c", dim=DIM, key=key, metric=metric, norm_bound=bound)
    made.insert([0, 1, 2], EYE[:3] * [[bound], [bound / 2], [0]])
    hits = {h.id: h.score for h in made.search(EYE[0] * min(bound, 1e50), k=3)}
    size = min(bound, 1e50)
    for row, length in ((0, bound), (1, bound / 2), (2, 0.0)):
        products = length * size if row == 0 else 0.0
        truth = products if metric == "ip" else np.hypot(length, size) if row else bound - size
        assert hits[row] == pytest.approx(truth, abs=1e-2 * bound * (size if metric == "ip" else 1))


@pytest.mark.parametrize(("profile", "tolerance"), [("exact", 5e-3), ("precise", 5e-6)])
def test_near_duplicates_under_l2(
    client: Client, key: CollectionKey, rng: np.random.Generator, profile: str, tolerance: float
) -> None:
    """recall@1 = 1 at distance 0.05 between unit vectors; distances 0.05 < 0.1 < 0.2 come in their order."""
    rows = unit_rows(rng, 100, 64)
    aside = unit_rows(rng, 100, 64)
    aside -= (aside * rows).sum(axis=1, keepdims=True) * rows
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    made = client.create_collection("c", dim=64, key=key, metric="l2", norm_bound=1.0, profile=profile)
    distances = (0.0, 0.05, 0.1, 0.2)
    for number, distance in enumerate(distances):
        angle = 2 * np.arcsin(distance / 2)
        made.insert(range(100 * number, 100 * number + 100), np.cos(angle) * rows + np.sin(angle) * aside)
    for row, hits in enumerate(made.search(rows, k=4)):
        assert [h.id for h in hits] == [row + 100 * n for n in range(4)]
        for hit, distance in zip(hits[1:], distances[1:], strict=True):
            assert abs(hit.score - distance) < tolerance
        assert hits[0].score < 1e-3
    made.delete(range(100))
    assert [hits[0].id for hits in made.search(rows, k=1)] == list(range(100, 200))


def test_the_distance_of_a_row_to_itself_under_exact(
    client: Client, key: CollectionKey, rng: np.random.Generator
) -> None:
    rows = unit_rows(rng, 100, 64)
    made = client.create_collection("c", dim=64, key=key, metric="l2", norm_bound=1.0)
    made.insert(range(100), rows)
    assert max(hits[0].score for hits in made.search(rows, k=1)) < 1e-7, "zero, but for the rounding of float64 norms"


# ---- row tables ----------------------------------------------------------------------------------------------
def message_of(rows: int, *, norms: bool = True) -> pb.RowTable:
    table = RowTable(
        ids=[f"t{i}" if i % 3 else i for i in range(rows)],
        squares=np.ones(rows) if norms else None,
        seed=bytes(32),
        payload_salt=bytes(32),
        payload_lengths=np.arange(rows, dtype=np.uint64),
    )
    return pb.RowTable.FromString(table.to_bytes())


def counted_wrong(name: str, change: Callable[[Any], Any]) -> pb.RowTable:
    table = message_of(10)
    value = getattr(table, name)
    if isinstance(value, int | bytes):
        setattr(table, name, change(value))
    else:
        values = change(list(value))
        del value[:]
        value.extend(values)
    return table


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda n: n - 1), ("rows", lambda n: n + 1), ("rows", lambda _: 0),
        ("is_text", lambda b: b[:-1]), ("is_text", lambda _: b""), ("is_text", lambda b: bytes(len(b))),
        ("is_text", lambda b: bytes([b[0] ^ 1]) + b[1:]),
        ("numbers", lambda v: v[:-1]), ("numbers", lambda v: [*v, 99]), ("numbers", lambda _: []),
        ("texts", lambda v: v[:-1]), ("texts", lambda v: [*v, "x"]), ("texts", lambda _: []),
        ("squares", lambda b: b[:-8]), ("squares", lambda b: b[:-1]), ("squares", lambda b: b + bytes(8)),
        ("payload_lengths", lambda v: v[:-1]), ("payload_lengths", lambda v: [*v, 0]),
    ],
)  # fmt: skip
def test_a_row_table_with_a_wrong_count_is_refused(name: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises(TamperedDataError, match="does not describe 10 rows"):
        RowTable.parse(counted_wrong(name, change).SerializeToString(), 10)


def test_row_tables_are_parsed_as_they_were_made() -> None:
    for norms in (True, False):
        table = message_of(10, norms=norms)
        parsed = RowTable.parse(table.SerializeToString(), 10)
        assert parsed.ids == [f"t{i}" if i % 3 else i for i in range(10)]
        assert (parsed.squares is not None) == norms
        assert RowTable.parse(parsed.to_bytes(), 10).ids == parsed.ids
        for rows in (0, 9, 11, 16):
            with pytest.raises(TamperedDataError):
                RowTable.parse(table.SerializeToString(), rows)
    shifted, short = message_of(10), message_of(10)
    shifted.numbers.append(5)  # one text is a number now: the sum is right
    del shifted.texts[-1]
    short.is_text = b"\x01"  # all other counts are right, but two rows have no bit
    short.texts[:] = ["a"]
    short.numbers[:] = range(9)
    for table in (shifted, short):
        with pytest.raises(TamperedDataError):
            RowTable.parse(table.SerializeToString(), 10)
    for raw in (b"", b"\xff", b"\x0a\x05a"):
        with pytest.raises(TamperedDataError):
            RowTable.parse(raw, 10)


# ---- closing; what is shown ----------------------------------------------------------------------------------
def test_closing(key: CollectionKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    client = Client(":memory:", threads=1)
    made, other = (client.create_collection(name, dim=DIM, key=key) for name in "ab")
    made.insert([1], EYE[:1])
    made.search(EYE[0])
    for _ in range(2):
        made.close()
    calls: list[Callable[[], Any]] = [
        made.count, lambda: made.search(EYE[0]), lambda: made.delete([1]), lambda: made.insert([2], EYE[:1])
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidInput, match="closed"):
            call()
    assert client.open_collection("a", key=key).count() == 1
    for _ in range(2):
        client.close()
    with pytest.raises(InvalidInput, match="closed"):
        other.count()
    for late in (client.list_collections, lambda: client.open_collection("a", key=key)):
        with pytest.raises(HesearchError) as raised:
            late()
        assert isinstance(raised.value, Unavailable | InvalidInput)


def test_reprs_show_no_secret(client: Client, rng: np.random.Generator) -> None:
    root = rng.bytes(32)
    key = CollectionKey(root)
    made = client.create_collection("c", dim=DIM, key=key, metric="l2", norm_bound=1.0)
    made.insert(["secret-id"], EYE[:1] * 0.123456789, payloads=["secret-text"])
    made.search(EYE[0])
    manifest, (segment,) = made._state.current
    query = made._engine.query(EYE[0])
    shown = [manifest, segment, segment.table, segment.engine, query, key, made, made._engine, made._state, client]
    shown += [made._store, made._searcher, segment.engine.fingerprint]
    state, seed = manifest.message.engine_state, segment.table.seed
    assert len(seed) == len(state) == 32
    for thing in shown:
        assert max(len(repr(thing)), len(str(thing))) < 100, "a type, an address, public parameters"
        text = repr(thing) + str(thing) + f"{thing}"
        for secret in (root, seed, state, segment.engine.fingerprint.salt, segment.table.payload_salt):
            assert secret.hex()[:12] not in text and repr(secret[:6])[2:-1] not in text
        assert "secret-" not in text and "0.1234" not in text and "array" not in text

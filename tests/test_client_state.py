"""What a client believes of a collection: manifests and their order, lost replies, other writers, threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    Conflict,
    FormatVersionError,
    InvalidInput,
    NotFound,
    RollbackError,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_client.manifest import EPOCH, PURPOSE, Manifest, open_manifest, seal_manifest
from he_client.pins import Pin
from he_client.transport import ATTEMPTS, FIRST_ATTEMPTS, FIRST_PAUSE_S, MAX_PAUSE_S, GrpcTransport, Repeats, Security
from he_engine.hint_client import HintClient, HintQuery
from he_engine.keys import length_prefixed
from he_engine.sealing import seal
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import LyingTransport, copy_of, forget_parts, lying_client
from tests.sdk_fixture import connect, grpc_address

DIM = 8
Connected = tuple[Client, LyingTransport]


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


@pytest.fixture
def connected() -> Iterator[Connected]:
    with lying_client() as both:
        yield both


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr("he_client.transport.time.sleep", asked.append)
    return asked


# ---- one manifest --------------------------------------------------------------------------------------------
def response_for(client: Client, key: CollectionKey) -> tuple[pb.ReadManifestResponse, pb.Manifest]:
    """An honest response, and what is sealed in it."""
    made = client.create_collection("c", dim=DIM, key=key)
    for ids in ([1, 2], [3]):
        made.insert(ids, np.eye(len(ids), DIM))
    request = pb.ReadManifestRequest(context=client._describe("c").context)
    response = copy_of(client._remote.transport.call("ReadManifest", request, timeout_s=1.0))
    return response, open_manifest(key, "c", response).message


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("collection_id", bytes(16), TamperedDataError),
        ("version", 2, TamperedDataError),
        ("version", 4, TamperedDataError),
        ("format_version", 3, FormatVersionError),
        ("format_version", 0, FormatVersionError),
        ("parameter_digest", bytes(32), FormatVersionError),
        ("parameter_digest", b"", FormatVersionError),
    ],
)
def test_what_is_sealed_must_agree(
    connected: Connected, key: CollectionKey, field: str, value: Any, error: type[Exception]
) -> None:
    """Under the right key and the right associated data, so that nothing but the field's own check objects."""
    response, message = response_for(connected[0], key)
    setattr(message, field, value)
    aad = length_prefixed(PURPOSE, "c", response.collection_id, EPOCH, response.version)
    response.sealed_manifest = seal(key, PURPOSE, aad, message.SerializeToString())
    with pytest.raises(error) as raised:
        open_manifest(key, "c", response)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    "live",
    [lambda ids: ids[:1], lambda ids: [*ids, ids[0]], lambda ids: [*ids, bytes(32)], lambda _: [],
     lambda ids: [ids[0], bytes(32)]],
)  # fmt: skip
def test_live_segments_must_agree(connected: Connected, key: CollectionKey, live: Callable[[Any], Any]) -> None:
    response, _ = response_for(connected[0], key)
    ids = list(response.live_segments)
    response.live_segments[:] = ids[::-1]
    open_manifest(key, "c", response)  # the order says nothing
    response.live_segments[:] = live(ids)
    with pytest.raises(TamperedDataError, match="live segments"):
        open_manifest(key, "c", response)


def test_a_manifest_is_bound_to_its_place(connected: Connected, key: CollectionKey) -> None:
    """Name, collection id and version are associated data: elsewhere, the right key does not open it."""
    response, _ = response_for(connected[0], key)
    assert open_manifest(key, "c", response).version == 3
    for name, fields in (
        ("d", {}), ("c", {"version": 2}), ("c", {"version": 4}), ("c", {"collection_id": bytes(16)}),
        ("c", {"sealed_manifest": response.sealed_manifest[:-1]}), ("c", {"sealed_manifest": b""}),
    ):  # fmt: skip
        moved = copy_of(response)
        for field, value in fields.items():
            setattr(moved, field, value)
        with pytest.raises(WrongKeyError):
            open_manifest(key, name, moved)
    with pytest.raises(WrongKeyError):
        open_manifest(CollectionKey.generate(), "c", response)


def test_one_collection_is_not_served_as_another(connected: Connected, key: CollectionKey) -> None:
    client, transport = connected
    for name in "ab":
        client.create_collection(name, dim=DIM, key=key)
    seen = {}
    for name in "ab":
        transport.lies["ReadManifest"] = lambda r, name=name: seen.setdefault(name, r)
        client.open_collection(name, key=key)
    forged = copy_of(seen["b"])
    forged.collection_id = seen["a"].collection_id
    for served in (seen["b"], forged):
        transport.lies["ReadManifest"] = lambda _, served=served: served
        with pytest.raises(WrongKeyError):
            client.open_collection("a", key=key)


# ---- one after another ---------------------------------------------------------------------------------------
def chain(key: CollectionKey, first: Manifest, length: int, segment: bytes = b"") -> list[Manifest]:
    """`first` and its successors; another history for another `segment`."""
    made = [first]
    entries = [pb.SegmentEntry(segment_id=segment, rows=1)] if segment else []
    for _ in range(length):
        made.append(seal_manifest(key, "c", made[-1].successor(entries))[1])
    return made


def test_only_descendants_extend(key: CollectionKey) -> None:
    first = seal_manifest(key, "c", pb.Manifest(version=1, collection_id=bytes(16)))[1]
    ours = chain(key, first, 300)
    fork = [*ours[:10], *chain(key, ours[9], 290, b"fork")[1:]]
    for gap in (0, 1, 2, 100, 255, 256):
        Pin.of(ours[10]).require_successor(ours[10 + gap])
        with pytest.raises(RollbackError):
            Pin.of(ours[10]).require_successor(fork[10 + gap])
    assert len(ours[-1].message.ancestors_sha256) == 256
    Pin.of(ours[10]).require_successor(ours[267])
    Pin.of(ours[10]).require_successor(fork[267])  # over 256 versions only the numbers can be compared
    for newer, older in ((10, 9), (10, 0), (299, 10), (299, 0)):
        with pytest.raises(RollbackError):
            Pin.of(ours[newer]).require_successor(ours[older])


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_a_short_list_of_ancestors_does_not_extend(key: CollectionKey, keep: int) -> None:
    ours = chain(key, seal_manifest(key, "c", pb.Manifest(version=1, collection_id=bytes(16)))[1], 5)
    message = copy_of(ours[5].message)
    del message.ancestors_sha256[keep:]
    with pytest.raises(RollbackError):
        Pin.of(ours[0]).require_successor(seal_manifest(key, "c", message)[1])


def test_the_same_version_sealed_twice_is_a_fork(key: CollectionKey) -> None:
    message = pb.Manifest(version=1, collection_id=bytes(16))
    (sealed, one), (_, two) = (seal_manifest(key, "c", message) for _ in range(2))
    assert one.sha256 == hashlib.sha256(sealed).digest() != two.sha256
    with pytest.raises(RollbackError):
        Pin.of(one).require_successor(two)


@pytest.mark.parametrize("action", ["count", "insert", "delete"])
def test_an_older_manifest_is_refused(connected: Connected, key: CollectionKey, action: str) -> None:
    client, transport = connected
    made = client.create_collection("c", dim=DIM, key=key)
    made.insert([1, 2], np.eye(2, DIM))
    seen: list[Any] = []
    transport.lies["ReadManifest"] = lambda r: seen.append(r) or r
    made.count()
    made.delete([1])
    transport.lies["ReadManifest"] = lambda _: seen[0]
    arguments = {"count": (), "insert": ([5], np.eye(1, DIM)), "delete": ([2],)}[action]
    with pytest.raises(RollbackError):
        getattr(made, action)(*arguments)
    transport.lies.clear()
    assert made.count() == 1


def test_another_collection_of_the_name(connected: Connected, key: CollectionKey) -> None:
    client, _ = connected
    made = client.create_collection("c", dim=DIM, key=key)
    client.drop_collection("c")
    client.create_collection("c", dim=DIM, key=key)
    with pytest.raises(NotFound, match="another has its name"):
        made.count()


@pytest.fixture
def reader_of_twins(connected: Connected, key: CollectionKey, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """Has seen version 2. Version 3 has an id twice: no server can make that; a client that checks nothing can."""
    client, _ = connected
    made = client.create_collection("c", dim=DIM, key=key)
    made.insert([1, 2], np.eye(2, DIM))
    reader = client.open_collection("c", key=key)
    monkeypatch.setattr(made, "_require_new", lambda _: None)
    with pytest.raises(TamperedDataError, match="live in two rows"):
        made.insert([2, 3], np.eye(2, DIM))
    return reader


def test_an_id_in_two_rows_is_noticed(connected: Connected, key: CollectionKey, reader_of_twins: Collection) -> None:
    for action in (reader_of_twins.count, lambda: connected[0].open_collection("c", key=key)):
        with pytest.raises(TamperedDataError, match="live in two rows"):
            action()


def test_a_refused_manifest_is_not_adopted(reader_of_twins: Collection) -> None:
    with pytest.raises(TamperedDataError):
        reader_of_twins.count()
    assert reader_of_twins.version == 2, "all or nothing"


def test_a_lost_segment_is_not_mistaken_for_a_newer_manifest(connected: Connected, key: CollectionKey) -> None:
    client, transport = connected
    client.create_collection("c", dim=DIM, key=key).insert([1], np.eye(1, DIM))
    forget_parts(client)

    def lost(_: Any) -> Any:
        raise NotFound("segment: no such segment")

    transport.lies["ReadSegmentPart"] = lost
    with pytest.raises(TamperedDataError, match="no longer has a segment"):
        client.open_collection("c", key=key)


@pytest.mark.parametrize("opening", [True, False])
def test_a_segment_retired_while_it_is_opened(connected: Connected, key: CollectionKey, opening: bool) -> None:
    """Between the manifest and its segments: the newer manifest is read."""
    client, transport = connected
    writer = client.create_collection("c", dim=DIM, key=key)
    reader = client.open_collection("c", key=key)
    for i in (1, 2):
        writer.insert([i], np.eye(1, DIM))

    def retire() -> None:
        transport.before.clear()
        writer.delete([1])

    transport.before["ReadSegmentPart"] = retire
    assert (client.open_collection("c", key=key) if opening else reader).count() == 1


# ---- repeating calls -----------------------------------------------------------------------------------------
class Flaky:
    """Lost before the server sees them: the first `times` calls of a method."""

    def __init__(self, transport: LyingTransport, method: str, times: int) -> None:
        self.left = times
        transport.before[method] = self

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise Unavailable("the connection broke")


@pytest.mark.parametrize(
    "method", ["DescribeCollection", "ReadManifest", "WriteSegment", "Answer", "ReadSegmentPart", "ListCollections"]
)
def test_calls_that_change_nothing_are_repeated(
    connected: Connected, key: CollectionKey, pauses: list[float], method: str
) -> None:
    client, transport = connected
    made = client.create_collection("c", dim=DIM, key=key)
    actions: dict[str, Callable[[], Any]] = {
        "DescribeCollection": lambda: client.describe("c").segments,
        "ReadManifest": lambda: made.count(),
        "WriteSegment": lambda: made.insert([1], np.eye(1, DIM)),
        "Answer": lambda: made.search(np.eye(DIM)[0])[0].id,
        "ReadSegmentPart": lambda: client.open_collection("c", key=key).count(),
        "ListCollections": lambda: len(client.list_collections()),
    }
    if method != "WriteSegment":
        made.insert([1], np.eye(1, DIM))
    forget_parts(client)
    transport.calls.clear()
    Flaky(transport, method, 2)
    assert actions[method]() == 1
    assert len(pauses) == 2
    for number, pause in enumerate(pauses):
        assert 0.5 <= pause / (FIRST_PAUSE_S * 2**number) <= 1.5, "pauses double, with jitter"
    pauses.clear()
    transport.calls.clear()
    Flaky(transport, method, 1000)
    if method == "WriteSegment":
        actions[method] = lambda: made.insert([2], np.eye(1, DIM))
    with pytest.raises(Unavailable):
        actions[method]()
    assert (transport.calls.count(method), len(pauses)) == (transport.attempts, transport.attempts - 1)


def test_nothing_is_repeated_past_the_deadline(connected: Connected, key: CollectionKey, pauses: list[float]) -> None:
    client, transport = connected
    client.create_collection("c", dim=DIM, key=key)
    client._remote = replace(client._remote, timeout_s=0.0)
    Flaky(transport, "DescribeCollection", 1000)
    transport.calls.clear()
    with pytest.raises(Unavailable):
        client.describe("c")
    assert transport.calls == ["DescribeCollection"] and not pauses


def test_a_commit_is_not_repeated_blindly(connected: Connected, key: CollectionKey, pauses: list[float]) -> None:
    """The manifest is read between two tries; what was committed meanwhile, by whomever, is built upon."""
    client, transport = connected
    made = client.create_collection("c", dim=DIM, key=key)
    transport.calls.clear()
    Flaky(transport, "CommitManifest", 2)
    assert made.insert([1], np.eye(1, DIM)) == 1
    tries = [c for c in transport.calls if c in ("CommitManifest", "ReadManifest")]
    assert tries == ["ReadManifest", *["CommitManifest", "ReadManifest"] * 2, "CommitManifest"]
    assert (made.count(), made.version, len(pauses)) == (1, 2, 2)


@pytest.mark.parametrize("reply", [Unavailable, Conflict])
@pytest.mark.parametrize("committed", [True, False])
def test_a_lost_reply_and_another_writer(
    connected: Connected, key: CollectionKey, pauses: list[float], reply: type[Exception], committed: bool
) -> None:
    """The rows are in the collection once, whether the first commit got through or not."""
    client, transport = connected
    mine = client.create_collection("c", dim=DIM, key=key)
    theirs = client.open_collection("c", key=key)

    def interfere() -> None:
        del transport.before["CommitManifest"]
        if committed:
            transport.honest.call("CommitManifest", transport.requests[-1], timeout_s=1.0)
        theirs.insert([10, 11], np.eye(2, DIM))
        theirs.delete([10])
        raise reply("lost")

    transport.before["CommitManifest"] = interfere
    assert mine.insert([1, 2], np.eye(2, DIM)) == 2
    assert mine.count() == theirs.count() == 3
    assert {h.id for h in mine.search(np.eye(DIM)[0])} == {1, 2, 11}
    assert (mine.version, client.describe("c").segments) == (4, 2)
    assert len(pauses) == (reply is Unavailable)


def test_a_commit_that_never_gets_through(connected: Connected, key: CollectionKey, pauses: list[float]) -> None:
    client, transport = connected
    made = client.create_collection("c", dim=DIM, key=key)
    Flaky(transport, "CommitManifest", 1000)
    transport.calls.clear()
    with pytest.raises(Unavailable):
        made.insert([1], np.eye(1, DIM))
    assert (transport.calls.count("CommitManifest"), len(pauses)) == (transport.attempts, transport.attempts - 1)
    transport.before.clear()
    assert (made.count(), made.version) == (0, 1)
    assert made.insert([1], np.eye(1, DIM)) == made.count() == 1


def test_a_restart_is_waited_for_but_not_a_wrong_address(pauses: list[float]) -> None:
    """Half a minute of pauses once a server has answered; two or three seconds before; none when closed."""
    transport = GrpcTransport("127.0.0.1:1", Security(insecure=True))

    def asked() -> list[float]:
        pauses.clear()
        repeats = Repeats(transport, 120.0)
        with pytest.raises(Unavailable, match="gone"):
            for _ in range(1000):
                repeats.pause(Unavailable("gone"))
        return list(pauses)

    assert len(asked()) == FIRST_ATTEMPTS - 1
    assert sum(pauses) < 4
    transport._reached = True
    assert len(asked()) == ATTEMPTS - 1
    assert 15 < sum(pauses) < 45
    assert max(pauses) <= 1.5 * MAX_PAUSE_S
    transport.close()
    assert asked() == []


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


@pytest.mark.parametrize("error", [Unavailable, Interrupted, TamperedAnswerError, InvalidInput])
def test_an_answer_that_breaks_off(
    connected: Connected,
    key: CollectionKey,
    rng: np.random.Generator,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    """In mid-stream, while a worker recovers what came: the query stays open until that is done. What could be
    asked again is, as a whole, and gives the hits."""
    client, transport = connected
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 1)
    made = client.create_collection("c", dim=DIM, key=key, profile="exact")
    rows = unit_rows(rng, 4, DIM)
    for i in range(4):
        made.insert([i], rows[i : i + 1])
    expected = made.search(rows[0], k=4)
    started, closing = threading.Event(), threading.Event()
    closed_meanwhile: list[bool] = []
    recover, close = HintClient._recover_one, HintQuery.close

    def slow(*arguments: Any) -> Any:
        started.set()
        closed_meanwhile.append(closing.wait(0.2))
        return recover(*arguments)

    def closes(query: HintQuery) -> None:
        closing.set()
        close(query)

    monkeypatch.setattr(HintClient, "_recover_one", slow)
    monkeypatch.setattr(HintQuery, "close", closes)

    def breaks(pieces: list[Any]) -> Iterator[Any]:
        del transport.lies["Answer"]
        yield from pieces[:2]
        assert started.wait(10)
        if error is TamperedAnswerError:
            yield pieces[0]
        elif error is InvalidInput:
            made.close()
            yield pieces[2]
        else:
            raise error("broken")

    transport.lies["Answer"] = breaks
    transport.calls.clear()
    if error is Unavailable:
        assert made.search(rows[0], k=4) == expected
        assert (transport.calls.count("Answer"), len(pauses)) == (2, 1)
    else:
        with pytest.raises(error):
            made.search(rows[0], k=4)
        assert (transport.calls.count("Answer"), len(pauses)) == (1, 0)
    assert closing.is_set()
    assert closed_meanwhile and not any(closed_meanwhile)


# ---- readers and writers side by side ------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["ReadManifest", "CommitManifest"])
def test_nothing_is_adopted_between_a_call_and_its_adoption(
    connected: Connected, key: CollectionKey, method: str
) -> None:
    """While a manifest is read or committed, no other thread may adopt one: it could be newer."""
    client, transport = connected
    made = client.create_collection("c", dim=DIM, key=key)
    free: list[bool] = []

    def is_free() -> None:
        free.append(made._state._lock.acquire(blocking=False))
        if free[-1]:
            made._state._lock.release()

    def try_lock() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(is_free).result()

    transport.before[method] = try_lock
    made.insert([1], np.eye(1, DIM))
    assert made.count() == 1
    assert free and not any(free)


@pytest.mark.parametrize("kind", ["memory", "grpc"])
def test_threads_share_a_collection(
    tmp_path: Path, key: CollectionKey, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two writers, one deleter, two counters and two searchers: no id is lost, nothing is called a rollback, and no
    answer a lie, although each commit changes which segments make a group.

    15 commits: fewer than the times that a search or another commit tries again.
    """
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 3)
    rows = unit_rows(rng, 40, DIM)
    start = threading.Barrier(7)

    def run(shared: Any) -> None:
        def insert(first: int) -> None:
            start.wait()
            for i in range(first, first + 10, 2):
                shared.insert([i, i + 1], rows[i : i + 2], payloads=[str(i), str(i + 1)])

        def delete() -> None:
            start.wait()
            for i in range(20, 30, 2):
                shared.delete([i, i + 1])

        def count() -> None:
            start.wait()
            for _ in range(20):
                assert 10 <= shared.count() <= 40

        def search() -> None:
            start.wait()
            for _ in range(15):
                hits = shared.search(rows[35], k=40)
                assert hits[0].id == 35
                assert len({h.id for h in hits}) == len(hits)
                assert all(h.payload == str(h.id) for h in hits)

        with ThreadPoolExecutor(7) as pool:
            work = [pool.submit(insert, f) for f in (0, 10)]
            work += [pool.submit(f) for f in (delete, count, count, search, search)]
            for done in work:
                done.result()
        assert shared.count() == 30
        assert {h.id for h in shared.search(rows[0], k=40)} == {*range(20), *range(30, 40)}

    with connect(kind, tmp_path) as client:
        made = client.create_collection("c", dim=DIM, key=key)
        made.insert(range(20, 40), rows[20:], payloads=[str(i) for i in range(20, 40)])
        run(made)


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_a_stale_reader_catches_up(tmp_path: Path, key: CollectionKey, rng: np.random.Generator, mode: Any) -> None:
    """From empty to full, over deletions that retire segments it has opened, with a search as its only call."""
    rows = unit_rows(rng, 30, DIM)
    with grpc_address(tmp_path) as address, Client(address, insecure=True) as a, Client(address, insecure=True) as b:
        writer = a.create_collection("c", dim=DIM, key=key)
        reader = b.open_collection("c", key=key, payloads=mode)
        for first in (0, 10, 20):
            writer.insert(range(first, first + 10), rows[first : first + 10], payloads=[f"{i}" for i in range(10)])
            assert [(h.id, h.payload) for h in reader.search(rows[first], k=1)] == [(first, "0")]
        writer.delete(range(10))
        assert {h.id for h in reader.search(rows[0], k=30)} == set(range(10, 30))
        late = b.open_collection("c", key=key, payloads=mode)
        writer.delete(range(10, 20))
        assert {(h.id, h.payload) for h in late.search(rows[0], k=30)} == {(20 + i, f"{i}") for i in range(10)}
        writer.delete(range(20, 30))
        assert late.search(rows[0]) == reader.search(rows[0]) == []


def test_a_segment_retired_while_payloads_are_fetched(
    connected: Connected, key: CollectionKey, rng: np.random.Generator
) -> None:
    """The answer came in time, the record did not: the search starts again from the newer manifest."""
    client, transport = connected
    writer = client.create_collection("c", dim=DIM, key=key)
    rows = unit_rows(rng, 2, DIM)
    for i in range(2):
        writer.insert([i], rows[i : i + 1], payloads=[str(i)])
    reader = client.open_collection("c", key=key, payloads="direct")

    def retire() -> None:
        transport.before.clear()
        writer.delete([0])

    transport.before["ReadSegmentPart"] = retire
    assert [(h.id, h.payload) for h in reader.search(rows[0], k=2)] == [(1, "1")]

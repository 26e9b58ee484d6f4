"""Overload: who finds no place is told at once, and nothing else suffers; what takes too long is cancelled."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from he_client import Client
from he_client.transport import GrpcTransport, Remote, Security
from he_engine.errors import LimitExceeded, Overloaded
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.rpc.admission import Admission, Gate
from he_server.search import answering, scan
from he_server.service import Service
from he_server.storage.segment_file import Description
from tests.server_fixture import (
    ANSWER_BYTES,
    BLOCK_BYTES,
    PARAMETERS,
    Endpoint,
    FakeClient,
    FakeSegment,
    residues,
    running,
)
from tests.test_server_answering import Call, SlowEngine, _filled
from tests.test_server_cli import Served


def _waiting(gate: Gate, count: int) -> None:
    """Returns when so many callers wait."""
    while gate._waiting != count:
        threading.Event().wait(0.001)


# ---- gates ---------------------------------------------------------------------------------------------------
def test_what_is_taken_is_given_back() -> None:
    gate = Gate("calls", 3, waiting=0, wait_s=60)
    with gate.taken(2):
        with gate.taken(), pytest.raises(Overloaded, match="calls: this server serves 3 at the same time"):
            gate._take(1)
        with pytest.raises(Overloaded):
            gate._take(2)
        assert gate.used == 2
    with pytest.raises(KeyError), gate.taken():
        raise KeyError
    assert gate.used == 0


def test_it_may_be_given_back_early_and_once() -> None:
    gate = Gate("calls", 1, waiting=0, wait_s=60)
    with gate.taken() as give_back:
        give_back()
        with gate.taken():
            give_back()
            assert gate.used == 1
    assert gate.used == 0


def test_more_than_there_is_counts_as_all() -> None:
    gate = Gate("bytes", 10, waiting=0, wait_s=60)
    with gate.taken(1000), pytest.raises(Overloaded):
        gate._take(1)
    assert gate.used == 0


def test_a_wait_ends_with_a_place_or_soon() -> None:
    gate = Gate("calls", 1, waiting=1, wait_s=0.01)
    with gate.taken(), pytest.raises(Overloaded):
        gate._take(1)
    patient = Gate("calls", 1, waiting=1, wait_s=60)
    with ThreadPoolExecutor(1) as pool:
        with patient.taken():
            waits = pool.submit(patient._take, 1)
            _waiting(patient, 1)
            with pytest.raises(Overloaded):  # the queue is full, too
                patient._take(1)
            with pytest.raises(Overloaded):
                patient.refuse_if_full()
        waits.result()
    assert patient.used == 1
    assert patient._waiting == 0


def test_what_can_be_spared_goes_to_who_needs_it() -> None:
    gate = Gate("searches", 2, waiting=0, wait_s=0)
    spare = [False]
    with gate.taken(spare=lambda: spare[0]) as give_back, gate.taken():
        with pytest.raises(Overloaded):
            gate.refuse_if_full()
        spare[0] = True
        gate.refuse_if_full()
        with gate.taken():
            assert gate.used == 2
            give_back()
            with pytest.raises(Overloaded):
                gate.refuse_if_full()
        assert gate.used == 1
    assert gate.used == 0
    assert not gate._holders


def test_nobody_overtakes_who_waits() -> None:
    gate = Gate("bytes", 10, waiting=1, wait_s=60)
    with ThreadPoolExecutor(1) as pool, gate.taken(6) as give_back:
        large = pool.submit(gate._take, 8)
        _waiting(gate, 1)
        with pytest.raises(Overloaded):
            gate._take(1)  # would fit
        give_back()
        large.result()
    assert gate.used == 8


def test_each_kind_of_call_has_its_places(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path, max_answers=1, max_transfers=2, max_other_calls=3, max_waiting=4)
    admission = Admission(config)
    transfers = [admission.place(name) for name in ("WriteSegment", "ReadSegmentPart")]
    assert transfers[0] is transfers[1]
    assert [admission.place(name)._limit for name in ("Answer", "WriteSegment", "ListCollections")] == [1, 2, 3]
    assert Admission.most_calls(config) == 1 + 2 + 3 + 3 * 4


# ---- calls ---------------------------------------------------------------------------------------------------
def test_full_transfers_leave_room_for_the_rest(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True, max_transfers=1, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment()
        client.write(segment)
        with endpoint.service.admission.place("WriteSegment").taken():
            for call in (lambda: client.write(segment), lambda: client.read_part(segment, pb.PART_KIND_HINT)):
                with pytest.raises(Overloaded, match="transfers: this server serves 1"):
                    call()
            assert client.commit(1, [segment]) == 2
            assert client.answer(2, residues(client.rng, 1))
        assert client.write(segment).existed


def _refused_before_the_queries_come(client: FakeClient) -> None:
    """The header alone is sent, and the stream stays open: only a server that refuses at once answers."""
    header = client.answer_requests(2, residues(client.rng, 1))[0]
    refused = threading.Event()

    def requests() -> Iterator[pb.AnswerRequest]:
        yield header
        refused.wait(60)

    assert client.endpoint.stub is not None
    call = client.endpoint.stub.Answer(requests(), timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    refused.set()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("hesearch-error", "Overloaded") in caught.value.trailing_metadata()


def test_a_search_too_many_is_refused_before_its_queries_come(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True, max_scans=2, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 2)
        with endpoint.service.admission.scans.taken(2):
            _refused_before_the_queries_come(client)
            assert client.describe().version == 2
        assert client.answer(2, residues(client.rng, 1))


def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    with running(
        tmp_path, over_grpc=True, max_waiting=0, max_query_bytes=1 << 20, max_inflight_bytes=1 << 20
    ) as server:
        client = FakeClient(server).create()
        _filled(client, 2)
        queries = residues(client.rng, 3)
        needed = queries.nbytes + 3 * 2 * ANSWER_BYTES  # two blocks
        inflight = server.service.admission.inflight_bytes
        with inflight.taken((1 << 20) - needed):
            assert client.answer(2, queries)
        with inflight.taken((1 << 20) - needed + 1):
            with pytest.raises(Overloaded, match="bytes in flight"):
                client.answer(2, queries)
            assert client.answer(2, queries[:1])
        assert inflight.used == 0


def test_a_message_too_large_is_not_sent_again(tmp_path: Path) -> None:
    """gRPC refuses it with the status of an overload, and this one does not pass."""
    limits = {"max_manifest_bytes": 1 << 20, "max_segments": 1000, "max_message_bytes": 2 << 20}
    with running(tmp_path, over_grpc=True, **limits) as endpoint:
        client = FakeClient(endpoint).create()
        with pytest.raises(LimitExceeded, match="sealed_manifest: bytes: got 1048577"):
            client.commit(1, [], sealed_manifest=bytes((1 << 20) + 1))
        transport = GrpcTransport(endpoint.address, Security(insecure=True))
        request = pb.CommitManifestRequest(context=client.context, sealed_manifest=bytes(3 << 20))
        with pytest.raises(LimitExceeded, match="a message is larger"):
            Remote(transport, 60).call("CommitManifest", request)
        transport.close()


def test_a_message_waits_for_its_place(tmp_path: Path) -> None:
    """What is refused has not been read: a crowd of large messages takes no memory."""
    served = Served("--data", str(tmp_path), "--listen", "127.0.0.1:0", "--insecure", "--max-other-calls", "1",
                    "--max-waiting", "0")  # fmt: skip
    address, going = served.line().split()[-1], threading.Event()
    endpoint = Endpoint(None, address)  # type: ignore[arg-type]
    client = FakeClient(endpoint).create()
    request = pb.CommitManifestRequest(
        context=client.context, collection_id=client.collection_id, expected_version=1, sealed_manifest=bytes(15 << 20)
    )

    def never() -> Iterator[bytes]:
        going.wait(60)
        yield from ()

    with grpc.insecure_channel(address) as channel:
        hold = channel.stream_unary("/hesearch.v1.HeSearch/ListCollections")
        holder = hold.future(never(), timeout=60)
        with pytest.raises(Overloaded):
            while True:  # until the other one has the place, which this one may have when it comes
                if holder.done():
                    holder = hold.future(never(), timeout=60)
                client.describe()
        before = _peak_bytes(served.process.pid)
        assert endpoint.stub is not None
        calls = [endpoint.stub.CommitManifest.future(request, timeout=60) for _ in range(24)]
        assert {call.exception().code() for call in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert _peak_bytes(served.process.pid) - before < 24 * (15 << 20) * 0.75, (
            "gRPC's own buffers, on a busy machine"
        )
        going.set()
        assert holder.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
    endpoint.close()
    served.process.terminate()
    served.process.communicate(timeout=60)


def _peak_bytes(pid: int) -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(line) << 10


def test_manifests_count_as_bytes_in_flight(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        inflight = endpoint.service.admission.inflight_bytes
        with inflight.taken(inflight._limit - endpoint.service.config.max_message_bytes + 1):
            with pytest.raises(Overloaded, match="bytes in flight"):
                client.commit(1, [])
            assert client.describe().version == 1
        assert client.commit(1, []) == 2


def test_every_call_has_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    method = Service.list_collections

    def noted(service: Service, request: pb.ListCollectionsRequest, call: Any) -> pb.ListCollectionsResponse:
        seen.append(call.request_id)
        return method(service, request, call)

    monkeypatch.setattr(Service, "list_collections", noted)
    with running(tmp_path, over_grpc=True) as endpoint, Client(endpoint.address, insecure=True) as client:
        for _ in range(2):
            client.list_collections()
    assert len(set(seen)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in seen)


def test_a_collection_is_bounded(tmp_path: Path) -> None:
    """Also where nothing is committed."""
    with running(tmp_path, over_grpc=True, max_collection_bytes=60_000) as endpoint:
        client = FakeClient(endpoint).create()
        first = client.segment()  # 25,481 bytes
        client.write(first)
        client.write(client.segment())
        with pytest.raises(LimitExceeded, match="collection: bytes: got 76443, and this server admits at most 60000"):
            client.write(client.segment())
        assert client.write(first).existed
        FakeClient(endpoint, "other", seed=2).create().write(FakeClient(endpoint, "other", seed=2).segment())


@pytest.fixture
def one_block_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_MIN_INDEX_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(answering, "UNIT_INDEX_BYTES", BLOCK_BYTES)


@pytest.mark.usefixtures("one_block_units")
def test_a_reader_too_slow_keeps_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken one piece of many, and there is no room for more; others search meanwhile."""
    monkeypatch.setattr(scan, "CALL_ANSWER_BYTES", 2 * ANSWER_BYTES)
    monkeypatch.setattr(answering, "SLOW_S", 0.05)
    with running(tmp_path, over_grpc=False, max_scans=1, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 40)
        scans = endpoint.service.admission.scans
        slow = endpoint.service.answer(iter(client.answer_requests(2, residues(client.rng, 1))), Call())
        next(slow)
        for _ in range(3):
            while True:
                with contextlib.suppress(Overloaded):
                    assert client.answer(2, residues(client.rng, 1))
                    break
                threading.Event().wait(0.001)
        assert len(list(slow)) == 39
        assert scans.used == endpoint.service.admission.inflight_bytes.used == 0


@pytest.mark.usefixtures("one_block_units")
def test_a_reader_that_takes_its_time_takes_no_place(tmp_path: Path) -> None:
    """All has been computed for the first, who has taken one piece; so a second may come."""
    engine = SlowEngine()
    with running(tmp_path, over_grpc=False, make_engine=lambda *_: engine, max_scans=1, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 4)
        scans = endpoint.service.admission.scans
        slow = endpoint.service.answer(iter(client.answer_requests(2, residues(client.rng, 1))), Call())
        next(slow)
        while scans.used:
            threading.Event().wait(0.001)
        assert client.answer(2, residues(client.rng, 1))
        assert len(list(slow)) == 3
        assert scans.used == endpoint.service.admission.inflight_bytes.used == 0


@pytest.mark.usefixtures("one_block_units")
def test_a_call_without_end_is_cancelled(tmp_path: Path) -> None:
    """Its client set no deadline. The work ends with the units that run, and its place is free again."""
    engine = SlowEngine(open_for=1)
    with running(
        tmp_path, over_grpc=True, make_engine=lambda *_: engine, max_call_s=0.1, max_scans=1, max_waiting=0
    ) as endpoint:
        client = FakeClient(endpoint).create()
        _filled(client, 20)
        assert endpoint.stub is not None
        answers = endpoint.stub.Answer(iter(client.answer_requests(2, residues(client.rng, 1))))
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert endpoint.service.admission.scans.used <= 1
        engine.let(20)
        while endpoint.service.admission.scans.used:
            threading.Event().wait(0.001)
        assert engine.units <= 1 + 2, "one was taken, two were under way"


def test_uploads_under_way_count(tmp_path: Path) -> None:
    """Several at a time do not each take the same room."""
    with running(tmp_path, over_grpc=False, max_collection_bytes=60_000) as endpoint:
        client = FakeClient(endpoint).create()
        store, record = endpoint.service.store, endpoint.service.store.find("notes")
        first, second, third = (_description(endpoint, client.segment()) for _ in range(3))  # 25,481 bytes each
        refused = pytest.raises(LimitExceeded, match="got 76443")
        with store.upload(first, 60_000), store.upload(second, 60_000), refused:
            store.upload(third, 60_000)
        with store.upload(third, 60_000):
            assert store.states()[0].record == record
        assert len(store._uploads) == 0


def _description(endpoint: Endpoint, segment: FakeSegment) -> Description:
    with endpoint.service._engines.using(PARAMETERS) as engine:
        return endpoint.service._checks.segment(segment.header, engine)

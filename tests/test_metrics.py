"""Metrics as Prometheus reads them: every call counted once, with the code that its client saw; the store as it is."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from he_engine.errors import Conflict, HesearchError, InvalidInput, MissingExtra, NotFound, Unavailable
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Access
from he_server.config import ServerConfig
from he_server.observe import endpoint
from he_server.observe.endpoint import MetricsEndpoint
from he_server.observe.metrics import Metrics
from he_server.observe.observing import Observing
from tests.observing_fixture import Observed, observed
from tests.server_fixture import ANSWER_BYTES, BLOCK_BYTES, FakeClient, residues

CALL = 'hesearch_calls_total{{code="{1}",method="{0}"}}'


def _calls(endpoint: Observed, method: str, code: str) -> float:
    return endpoint.value(CALL.format(method, code))


def _of(endpoint: Observed, name: str, method: str) -> float:
    return endpoint.value(f'hesearch_{name}{{method="{method}"}}')


@contextlib.contextmanager
def _collection(folder: Path, **settings: Any) -> Any:
    """An endpoint and a client of a collection with three blocks."""
    with observed(folder, **settings) as endpoint:
        client = FakeClient(endpoint).create()
        segments = [client.segment(2), client.segment(1)]
        for segment in segments:
            client.write(segment)
        client.commit(1, segments)
        yield endpoint, client, segments


def test_every_call_is_counted_with_its_sizes(tmp_path: Path) -> None:
    with _collection(tmp_path) as (endpoint, client, segments):
        queries = residues(client.rng, 2)
        client.answer(2, queries)
        requests = client.answer_requests(2, queries)
        assert _calls(endpoint, "CreateCollection", "OK") == 1
        assert _calls(endpoint, "WriteSegment", "OK") == 2
        assert _calls(endpoint, "Answer", "OK") == 1
        assert _of(endpoint, "received_bytes_total", "Answer") == sum(r.ByteSize() for r in requests)
        assert 2 * 3 * ANSWER_BYTES < _of(endpoint, "sent_bytes_total", "Answer") < 2 * 3 * ANSWER_BYTES + 4096
        read = client.read_part(segments[0], pb.PART_KIND_HINT)
        assert len(read) <= _of(endpoint, "sent_bytes_total", "ReadSegmentPart") < len(read) + 256
        described = client.describe()
        assert _of(endpoint, "sent_bytes_total", "DescribeCollection") == described.ByteSize()
        for method in ("Answer", "WriteSegment", "DescribeCollection", "ReadSegmentPart"):
            assert _of(endpoint, "call_seconds_count", method) == sum(
                _calls(endpoint, method, code) for code in ("OK", "CANCELLED")
            )
            assert _of(endpoint, "calls_in_flight", method) == 0


def test_the_work_is_counted(tmp_path: Path) -> None:
    with _collection(tmp_path) as (endpoint, client, _):
        assert endpoint.value("hesearch_sync_seconds_count") >= 2 * 2, "a file and a folder for each segment"
        assert endpoint.value("hesearch_commit_seconds_count") >= 4
        assert endpoint.value("hesearch_unit_seconds_count") == 0
        client.answer(2, residues(client.rng, 2))
        units = endpoint.value("hesearch_unit_seconds_count")
        assert units >= 2
        assert endpoint.value("hesearch_unit_queries_total") == 2 * units
        assert endpoint.value("hesearch_unit_index_bytes_total") == 3 * BLOCK_BYTES
        assert endpoint.value("hesearch_scan_seconds_count") == 1


def test_the_store_is_looked_at_when_asked(tmp_path: Path) -> None:
    with _collection(tmp_path) as (endpoint, client, segments):
        described = client.describe()
        for name in ("segments", "blocks", "stored_bytes", "index_bytes"):
            assert endpoint.value(f"hesearch_{name}") == getattr(described, name) > 0
        assert endpoint.value("hesearch_collections") == 1
        FakeClient(endpoint, "others", seed=2).create()
        client.commit(2, segments[:1])
        assert endpoint.value("hesearch_collections") == 2
        assert endpoint.value("hesearch_segments") == 1
        assert endpoint.value("hesearch_read_only") == 0
        assert endpoint.value("hesearch_scans_limit") == endpoint.service.config.max_scans


def test_a_store_that_takes_no_writes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _collection(tmp_path) as (endpoint, client, _):

        def failing(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fsync", failing)
        with pytest.raises(HesearchError):
            client.write(client.segment())
        monkeypatch.undo()
        assert endpoint.value("hesearch_read_only") == 1
        assert endpoint.value('hesearch_calls_refused_total{reason="ReadOnlyError"}') == 1
        assert _calls(endpoint, "WriteSegment", "FAILED_PRECONDITION") == 1


def test_errors_have_the_code_and_the_class_that_the_client_saw(tmp_path: Path) -> None:
    with _collection(tmp_path) as (endpoint, client, segments):
        with pytest.raises(Conflict):
            client.commit(1, segments[:1])
        with pytest.raises(NotFound):
            client.endpoint.call("DescribeCollection", pb.DescribeCollectionRequest(format_version=1, collection="no"))
        with pytest.raises(InvalidInput):
            client.answer(2, np.zeros((0, *residues(client.rng, 1).shape[1:]), np.uint32))
        assert _calls(endpoint, "CommitManifest", "ABORTED") == 1
        assert _calls(endpoint, "DescribeCollection", "NOT_FOUND") == 1
        assert _calls(endpoint, "Answer", "INVALID_ARGUMENT") == 1
        for reason in ("Conflict", "NotFound", "InvalidInput"):
            assert endpoint.value(f'hesearch_calls_refused_total{{reason="{reason}"}}') == 1


def test_what_is_no_error_of_ours_is_internal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("planted")

    with observed(tmp_path) as endpoint:
        monkeypatch.setattr(endpoint.service._store, "collections", broken)
        with pytest.raises(HesearchError):
            endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
        monkeypatch.undo()
        assert _calls(endpoint, "ListCollections", "INTERNAL") == 1
        assert endpoint.value('hesearch_calls_refused_total{reason="INTERNAL"}') == 1


def _until(endpoint: Observed, sample: str, value: float) -> None:
    """The server's side of a call ends after the client's."""
    end_s = time.monotonic() + 60
    while endpoint.value(sample) != value:
        assert time.monotonic() < end_s, f"{sample} never was {value}"


def _bytes_call(endpoint: Observed, method: str) -> Any:
    """A method that takes and gives any bytes."""
    assert endpoint._channel is not None
    return endpoint._channel.unary_unary(f"/hesearch.v1.HeSearch/{method}")


def test_messages_that_cannot_be_parsed_and_methods_that_are_not_there(tmp_path: Path) -> None:
    with observed(tmp_path) as endpoint:
        with pytest.raises(grpc.RpcError):
            _bytes_call(endpoint, "DescribeCollection")(b"\xff\xff\xff", timeout=60)
        _until(endpoint, CALL.format("DescribeCollection", "INTERNAL"), 1)
        for method in ("Planted1", "Planted2"):
            with pytest.raises(grpc.RpcError):
                _bytes_call(endpoint, method)(b"", timeout=60)
        _until(endpoint, CALL.format("unknown", "UNIMPLEMENTED"), 2)
        assert "Planted" not in endpoint.scrape(), "callers must not be able to make labels"
        assert not re.search(r"calls_in_flight{.*} [^0]", endpoint.scrape())


@pytest.mark.parametrize(("deadline_s", "code"), [(0.3, "DEADLINE_EXCEEDED"), (60.0, "CANCELLED")])
def test_uploads_that_the_client_ends(tmp_path: Path, deadline_s: float, code: str) -> None:
    """Their method waits for the client when it learns of it; a unary response is never made."""
    with observed(tmp_path) as endpoint:
        client = FakeClient(endpoint).create()
        goes_on = threading.Event()

        def requests() -> Any:
            yield client.segment().requests()[0]
            goes_on.wait()

        assert endpoint.stub is not None
        call = endpoint.stub.WriteSegment.future(requests(), timeout=deadline_s)
        if code == "CANCELLED":
            _until(endpoint, 'hesearch_calls_in_flight{method="WriteSegment"}', 1)
            call.cancel()
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            call.result()
        goes_on.set()
        _until(endpoint, CALL.format("WriteSegment", code), 1)
        assert _of(endpoint, "calls_in_flight", "WriteSegment") == 0
        assert _of(endpoint, "call_seconds_count", "WriteSegment") == 1


def test_answers_that_the_client_does_not_take(tmp_path: Path) -> None:
    with _collection(tmp_path) as (endpoint, client, _):
        segments = [client.segment(64, index=np.tile(residues(client.rng, 1), (64, 1, 1, 1, 1)))]
        client.write(segments[0])
        client.commit(2, segments)
        call = endpoint.stub.Answer(iter(client.answer_requests(3, residues(client.rng, 32))), timeout=60)
        next(call)
        call.cancel()
        _until(endpoint, CALL.format("Answer", "CANCELLED"), 1)
        assert _of(endpoint, "calls_in_flight", "Answer") == 0


def test_overload_is_counted(tmp_path: Path) -> None:
    with observed(tmp_path, max_transfers=1, max_waiting=0) as endpoint:
        client = FakeClient(endpoint).create()
        goes_on = threading.Event()

        def requests() -> Any:
            yield client.segment().requests()[0]
            goes_on.wait()

        held = endpoint.stub.WriteSegment.future(requests(), timeout=60)
        _until(endpoint, 'hesearch_calls_in_flight{method="WriteSegment"}', 1)
        while not endpoint.service.admission.place("WriteSegment").used:
            pass
        with pytest.raises(Unavailable):
            client.write(client.segment())
        assert _calls(endpoint, "WriteSegment", "RESOURCE_EXHAUSTED") == 1
        assert endpoint.value('hesearch_calls_refused_total{reason="Overloaded"}') == 1
        held.cancel()
        goes_on.set()


def test_health_checks_are_not_counted(tmp_path: Path) -> None:
    with observed(tmp_path) as endpoint:
        health_pb2_grpc.HealthStub(endpoint._channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert "Check" not in endpoint.scrape()


def test_labels_are_of_a_fixed_kind(tmp_path: Path) -> None:
    """Names of methods, codes and classes; nothing of a caller. `le` is a histogram's, the others the build's."""
    with _collection(tmp_path) as (endpoint, client, _):
        client.answer(2, residues(client.rng, 1))
        families = list(text_string_to_metric_families(endpoint.scrape()))
        labels = {label for f in families for s in f.samples for label in s.labels if f.name.startswith("hesearch_")}
        assert labels == {"method", "code", "reason", "le", "version", "python", "format_version"}
        assert {f.name for f in families} >= {"process_resident_memory_bytes", "hesearch_build_info"}
        assert "notes" not in endpoint.scrape()


def test_a_restart_begins_anew_in_the_same_process(tmp_path: Path) -> None:
    for _ in range(2):
        with observed(tmp_path) as endpoint:
            endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
            assert _calls(endpoint, "ListCollections", "OK") == 1


# ---- the endpoint --------------------------------------------------------------------------------------------
def test_only_metrics_are_served(tmp_path: Path) -> None:
    with observed(tmp_path) as endpoint:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{endpoint.metrics_address}/", timeout=60)
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(f"http://{endpoint.metrics_address}/metrics", data=b"x", timeout=60)
        host, port = endpoint.metrics_address.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_addresses() -> None:
    def endpoint_at(listen: str) -> MetricsEndpoint:
        config = ServerConfig(data=Path("none"), insecure=True, metrics=listen)
        return MetricsEndpoint(config, Metrics().registry, Access())

    with endpoint_at("127.0.0.1:0") as taken, pytest.raises(Unavailable, match=r"metrics: .* is taken"):
        endpoint_at(taken.address)
    for listen in ("9464", "0.0.0.0:9464", "[::]:9464"):
        with pytest.raises(InvalidInput, match="metrics: got"):
            endpoint_at(listen)
    with endpoint_at("[::1]:0") as endpoint:
        urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=60).close()


def test_a_request_that_fails_says_not_whose_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> bytes:
        raise KeyError("9" * 9)  # as the code has no such number

    with observed(tmp_path) as watched:
        monkeypatch.setattr(endpoint, "generate_latest", fails)
        with pytest.raises((OSError, HTTPException)):
            watched.scrape()
    written = capsys.readouterr().err
    assert "KeyError" in written and "9" * 9 not in written and "127.0.0.1" not in written


def test_off_means_no_port_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "he_server.observe.metrics", None)
    with observed(tmp_path, metrics="") as endpoint:
        assert endpoint.metrics_address == ""
    with pytest.raises(MissingExtra, match=r"pip install '\.\[server\]'"):
        Observing(ServerConfig(data=tmp_path, metrics="127.0.0.1:0"))

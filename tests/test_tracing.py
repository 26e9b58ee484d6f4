"""Traces as a collector receives them, over real OTLP: a span for each call, its steps below it, its caller above."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from he_engine.errors import InvalidInput, MissingExtra, NotFound
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.observe.observing import Observing
from tests.observing_fixture import Receiver, observed
from tests.server_fixture import FakeClient, residues

LIST = pb.ListCollectionsRequest(format_version=1)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def _attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_span_for_each_call_with_its_steps(tmp_path: Path) -> None:
    with Receiver() as receiver:
        with observed(tmp_path, traces=receiver.endpoint) as endpoint:
            client = FakeClient(endpoint).create()
            segment = client.segment()
            client.write(segment)
            client.commit(1, [segment])
            client.answer(2, residues(client.rng, 1))
            with pytest.raises(NotFound):
                endpoint.call("DescribeCollection", pb.DescribeCollectionRequest(format_version=1, collection="no"))
        spans = receiver.spans()
    calls = {span.name.rpartition("/")[2]: span for span in spans if not span.parent_span_id}
    assert set(calls) == {"CreateCollection", "WriteSegment", "CommitManifest", "Answer", "DescribeCollection"}
    below = {name: {s.name for s in spans if s.parent_span_id == calls[name].span_id} for name in calls}
    assert below["Answer"] == {"scan"}
    assert below["WriteSegment"] == {"sync", "commit"}
    assert below["DescribeCollection"] == set()
    for span in spans:
        if span.parent_span_id:
            (above,) = [s for s in calls.values() if s.span_id == span.parent_span_id]
            assert above.trace_id == span.trace_id
            slack_ns = 10**8  # the clock of the starts is not that of the lengths
            assert above.start_time_unix_nano - slack_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= above.end_time_unix_nano + slack_ns
    answer = _attributes(calls["Answer"])
    assert answer["rpc.method"] == "Answer" and answer["rpc.grpc.status_code"] == "OK"
    assert answer["hesearch.received_bytes"] > 16 << 10 and answer["hesearch.sent_bytes"] > 4096
    assert len(answer["hesearch.request_id"]) == 32
    missing = calls["DescribeCollection"]
    assert _attributes(missing)["rpc.grpc.status_code"] == "NOT_FOUND"
    assert _attributes(missing)["error.type"] == "NotFound"
    assert missing.status.code == 2, "ERROR"


@pytest.mark.parametrize(
    ("traceparent", "traced", "taken"),
    [
        (f"00-{TRACE}-{PARENT}-01", True, True),
        (f"00-{TRACE}-{PARENT}-00", False, True),  # the caller keeps no trace of it
        (f"00-{'0' * 32}-{PARENT}-01", True, False),
        ("nonsense", True, False),
    ],
)
def test_the_callers_trace_goes_on(tmp_path: Path, traceparent: str, traced: bool, taken: bool) -> None:
    with Receiver() as receiver:
        with observed(tmp_path, traces=receiver.endpoint) as endpoint:
            assert endpoint.stub is not None
            endpoint.stub.ListCollections(LIST, metadata=(("traceparent", traceparent),), timeout=60)
        spans = receiver.spans()
    assert len(spans) == traced
    for span in spans:
        assert (span.trace_id.hex() == TRACE and span.parent_span_id.hex() == PARENT) is taken


def test_a_collector_that_is_not_there_disturbs_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Receiver() as receiver:
        gone = receiver.endpoint
    with observed(tmp_path, traces=gone, log_level="error") as endpoint:
        assert not endpoint.call("ListCollections", LIST).collections
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "ftp://127.0.0.1:1", "http://", "http:4317"])
def test_endpoints_that_are_none(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="traces: got"):
        Observing(ServerConfig(data=tmp_path, traces=endpoint))


@pytest.mark.parametrize("module", ["opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry"])
def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.startswith(("opentelemetry", "he_server.observe.tracing"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[otel\]'"):
        Observing(ServerConfig(data=tmp_path, traces="http://127.0.0.1:1"))


def test_off_means_not_even_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from he_server.config import ServerConfig\n"
        "from he_server.observe.observing import Observing\n"
        "with Observing(ServerConfig(data=Path(sys.argv[1]))): pass\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('opentelemetry', 'prometheus_client')])"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr

"""The log as an operator reads it: a line for every call, its request id in all its lines, and no secret in any."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, CollectionKey
from he_engine.errors import HesearchError, InvalidInput, NotFound
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.observe import logs
from he_server.rpc.calls import Call, current
from he_server.service import Service
from tests.conftest import unit_rows
from tests.observing_fixture import Receiver, lines, observed
from tests.server_fixture import FakeClient, residues

LIST = pb.ListCollectionsRequest(format_version=1)


def _access(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in found if line["logger"] == "he_server.access"]


def test_a_line_for_every_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path, log_format="json") as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment()
        client.write(segment)
        client.commit(1, [segment])
        client.answer(2, residues(client.rng, 1))
        with pytest.raises(NotFound):
            endpoint.call("DescribeCollection", pb.DescribeCollectionRequest(format_version=1, collection="no"))
    found = _access(lines(capsys))
    assert [(line["method"], line["code"]) for line in found] == [
        ("CreateCollection", "OK"),
        ("WriteSegment", "OK"),
        ("CommitManifest", "OK"),
        ("Answer", "OK"),
        ("DescribeCollection", "NOT_FOUND"),
    ]
    expected = {"time", "level", "logger", "message", "method", "code", "milliseconds", "received_bytes", "sent_bytes"}
    assert all(set(line) == expected | {"request_id"} for line in found), "no peer, no name, nothing else"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in found)
    assert found[3]["received_bytes"] > 16 << 10 and found[3]["sent_bytes"] > 4096
    assert len({line["request_id"] for line in found}) == 5


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path) as endpoint:
        endpoint.call("ListCollections", LIST)
    pattern = (
        r"\S+Z INFO he_server\.access [0-9a-f]{32}: method=ListCollections code=OK milliseconds=[\d.]+ "
        r"received_bytes=2 sent_bytes=2\n"
    )
    assert re.fullmatch(pattern, capsys.readouterr().err)


def test_quiet_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path, log_level="warning") as endpoint:
        endpoint.call("ListCollections", LIST)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("sent", "taken"),
    [("0123456789abcdef" * 2, True), ("a" * 31, False), ("A" * 32, False), ("0" * 33, False), ("notes/../..", False)],
)
def test_request_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: str, taken: bool) -> None:
    """One that is not well-formed would be a way to write into the log."""
    with observed(tmp_path, log_format="json") as endpoint:
        assert endpoint.stub is not None
        endpoint.stub.ListCollections(LIST, metadata=(("x-request-id", sent),), timeout=60)
    (line,) = _access(lines(capsys))
    assert (line["request_id"] == sent) is taken
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"])


class Talkative(Service):
    """Says something before the first response of a call, and after each."""

    def read_segment_part(
        self, request: pb.ReadSegmentPartRequest, call: Caller
    ) -> Iterator[pb.ReadSegmentPartResponse]:
        log = logging.getLogger("he_server.test")
        log.info("length %d", request.length_bytes)
        for response in super().read_segment_part(request, call):
            yield response
            log.info("length %d", request.length_bytes)


def test_every_line_of_a_call_has_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight calls at a time, whose responses come from whatever threads gRPC has."""
    with (
        observed(tmp_path, log_format="json", make_service=Talkative) as endpoint,
        ThreadPoolExecutor(8) as pool,
    ):
        client = FakeClient(endpoint).create()
        segment = client.segment(300)
        client.write(segment)

        def one(length_bytes: int) -> tuple[str, int]:
            request_id = uuid.uuid4().hex
            request = pb.ReadSegmentPartRequest(
                context=client.context, segment_id=segment.id, kind=pb.PART_KIND_INDEX, length_bytes=length_bytes
            )
            metadata = (("x-request-id", request_id),)
            assert endpoint.stub is not None
            assert list(endpoint.stub.ReadSegmentPart(request, metadata=metadata, timeout=60))
            return request_id, length_bytes

        expected = set(pool.map(one, range((2 << 20) + 1, (2 << 20) + 25)))
    found = lines(capsys)
    said = [(line["request_id"], int(line["message"].split()[1])) for line in found if "length" in line["message"]]
    assert set(said) == expected
    assert len(said) == 4 * len(expected), "before the first, and after each of three"
    assert {i for i, _ in expected} <= {line["request_id"] for line in _access(found)}


def test_an_exception_of_others_is_named_and_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        try:
            raise InvalidInput("dim: got 3")
        except InvalidInput as error:
            raise KeyError("PLANTED") from error

    for log_format in ("text", "json"):
        with (
            observed(tmp_path, log_format=log_format) as endpoint,
            monkeypatch.context() as patch,
            pytest.raises(HesearchError),
        ):
            patch.setattr(endpoint.service._store, "collections", broken)
            endpoint.call("ListCollections", LIST)
        err = capsys.readouterr().err
        assert "ListCollections failed" in err and "KeyError" in err and "in broken" in err
        assert "caused by" in err and "InvalidInput: dim: got 3" in err
        assert "PLANTED" not in err.replace('raise KeyError("PLANTED")', "").replace(r"raise KeyError(\"PLANTED\")", "")


def test_json_is_one_line_whatever_is_said() -> None:
    record = logging.LogRecord("he_server", logging.INFO, "", 0, "two\nlines \x1b[31m %s", ("é",), None)
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line and "\x1b" not in line
    assert json.loads(line)["message"] == "two\nlines \x1b[31m é"


def test_configured_twice_is_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path / "a"), observed(tmp_path / "b") as endpoint:
        endpoint.call("ListCollections", LIST)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_libraries_are_heard_from_warnings_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with observed(tmp_path, log_level="debug"):
        logging.getLogger("grpc").info("chatter")
        logging.getLogger("grpc").warning("trouble")
    assert "chatter" not in (err := capsys.readouterr().err) and "trouble" in err


def test_outside_of_a_call_there_is_no_id() -> None:
    record = logging.LogRecord("he_server", logging.INFO, "", 0, "hello", (), None)
    assert "request_id" not in json.loads(logs.JsonFormatter().format(record))
    token = current.set(Call("Answer", "0" * 32, {}))
    try:
        assert json.loads(logs.JsonFormatter().format(record))["request_id"] == "0" * 32
    finally:
        current.reset(token)


# ---- secrets -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", ["exact", "compact", "precise"])
def test_nothing_that_is_searched_or_found_is_written_anywhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], profile: str
) -> None:
    """A real client with recognisable ids, payloads, vectors and a name, doing right and wrong; then all that the
    server wrote but its data: the log at its most talkative, the metrics, the traces."""
    key = CollectionKey.generate()
    vectors = unit_rows(np.random.default_rng(5), 40, 16)
    with Receiver() as receiver:
        settings = {"log_format": "json", "log_level": "debug", "traces": receiver.endpoint}
        with observed(tmp_path / "data", **settings) as endpoint, Client(endpoint.address, insecure=True) as client:
            planted = client.create_collection("PLANTEDNAME", dim=16, key=key, profile=profile)
            planted.insert([f"PLANTEDID{i}" for i in range(40)], vectors, [f"PLANTEDTEXT{i}" for i in range(40)])
            hits = planted.search(vectors[3], k=2)
            planted.delete(["PLANTEDID7"])
            for name in ("PLANTEDNAME2", "../PLANTED"):
                with pytest.raises(HesearchError):
                    endpoint.call("DescribeCollection", pb.DescribeCollectionRequest(format_version=1, collection=name))
            with pytest.raises(HesearchError):
                FakeClient(endpoint, "PLANTEDNAME").create()
            collection_id = endpoint.service._store.find("PLANTEDNAME").collection_id
            scraped = endpoint.scrape()
        traced = "".join(str(request) for request in receiver.requests)
    assert (hits[0].id, hits[0].payload) == ("PLANTEDID3", "PLANTEDTEXT3")
    log = "".join(capfd.readouterr())
    secrets = [
        "PLANTED",
        collection_id.hex(),
        repr(collection_id)[2:-1],
        f"{hits[0].score:.5f}",
        f"{hits[1].score:.5f}",
    ]
    secrets += [f"{value:.6f}" for value in vectors[3]]
    for output, sign in ((log, "method=Answer"), (scraped, 'method="Answer"'), (traced, "HeSearch/Answer")):
        assert sign in output
        assert [secret for secret in secrets if secret in output] == []

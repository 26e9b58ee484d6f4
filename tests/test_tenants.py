"""What a tenant learns of another's collection, of which it knows name, id, digest, version and segments: nothing, but
where docs/access.md says so ("What tenants share")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from he_engine.errors import AlreadyExists, HesearchError, LimitExceeded, NotFound
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc
from tests.server_fixture import METHODS, Endpoint, FakeClient, residues
from tests.test_access import World

EVE = "rival/eve"


class Certified(Endpoint):
    """Calls over TLS under a certificate."""

    def __init__(self, world: World, who: str) -> None:
        super().__init__(world.service)
        pair = world.certs / "clients" / f"{who}.pem"
        files = world.certs / "ca.pem", pair.with_suffix(".key"), pair
        credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
        target = f"localhost:{world.server.port}"
        self._channel = grpc.secure_channel(target, credentials, wire.CHANNEL_OPTIONS)
        self.stub = hesearch_pb2_grpc.HeSearchStub(self._channel)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, max_collections=2)
    yield world
    world.close()


@pytest.fixture
def eve(world: World) -> Iterator[Certified]:
    endpoint = Certified(world, EVE)
    yield endpoint
    endpoint.close()


@pytest.fixture
def acme(world: World) -> Iterator[FakeClient]:
    """The owner of "notes", version 2, with one segment."""
    endpoint = Certified(world, "acme/ada")
    client = FakeClient(endpoint).create()
    client.write(segment := client.segment())
    client.commit(1, [segment])
    yield client
    endpoint.close()


def calls(world: World, name: str) -> dict[str, Any]:
    """A request of each method about one collection, with all that is true of acme's "notes" but perhaps the name."""
    record, _, (live,) = world.service.store.manifest(world.service.store.find("notes", tenant="acme"))
    client = FakeClient(Endpoint(world.service), name)
    client.collection_id, context = record.collection_id, client.context
    assert context.parameter_digest == record.parameter_digest
    one = {"context": context, "collection_id": record.collection_id}
    return {
        "DescribeCollection": pb.DescribeCollectionRequest(format_version=1, collection=name),
        "DropCollection": pb.DropCollectionRequest(**one),
        "WriteSegment": client.segment().requests(),
        "DescribeSegment": pb.DescribeSegmentRequest(**one, segment_id=live),
        "ReadSegmentPart": pb.ReadSegmentPartRequest(
            context=context, segment_id=live, kind=pb.PART_KIND_ROWS, length_bytes=1
        ),
        "CommitManifest": pb.CommitManifestRequest(
            **one, expected_version=record.version, sealed_manifest=b"eve's", live_segments=[live]
        ),
        "ReadManifest": pb.ReadManifestRequest(context=context),
        "Answer": client.answer_requests(record.version, residues(client.rng, 1)),
    }


def test_every_method_says_the_same_of_what_another_has_and_what_nobody_has(
    world: World, eve: Certified, acme: FakeClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    assert world.service.access.policies is not None
    decide = world.service.access.policies.decide
    monkeypatch.setattr(world.service.access.policies, "decide", lambda *a: asked.append(a) or decide(*a))
    methods = {m.name for m in METHODS} - {"CreateCollection", "ListCollections"}
    told: dict[str, list[tuple[Any, ...]]] = {}
    for name in ("notes", "xotes"):
        requests = calls(world, name)
        assert requests.keys() == methods
        for method, request in requests.items():
            with pytest.raises(grpc.RpcError) as caught:
                response = getattr(eve.stub, method)(
                    iter(request) if isinstance(request, list) else request, timeout=60
                )
                list(response)
            error: Any = caught.value
            said = error.details().replace(name, "NAME"), dict(error.trailing_metadata())
            told.setdefault(name, []).append((method, error.code(), *said))
    assert told["notes"] == told["xotes"]
    assert {code for _, code, *_ in told["notes"]} == {grpc.StatusCode.NOT_FOUND}
    assert asked == [], "no policy is asked about either, so neither takes longer for it"
    assert acme.manifest().version == 2 and eve.call("ListCollections", listing()).collections == []

    lines = [line for line in world.audited(capsys) if (line.get("principal") or {}).get("tenant") == "rival"]
    of = {name: [plain(line, name) for line in lines if line["resource"].endswith(name)] for name in told}
    assert of["notes"] == of["xotes"] and len(of["notes"]) == len(methods)


def listing() -> pb.ListCollectionsRequest:
    return pb.ListCollectionsRequest(format_version=1)


def plain(line: dict[str, Any], name: str) -> dict[str, Any]:
    """A line of the audit log, without what differs from call to call."""
    kept = {k: v for k, v in line.items() if k in ("principal", "action", "resource", "part", "allowed", "policies",
                                                  "request_bytes", "queries")}  # fmt: skip
    return dict(json.loads(json.dumps(kept).replace(name, "NAME")))


def test_quotas_count_no_other_tenants_collections(tmp_path: Path) -> None:
    (quotas := tmp_path / "quotas.toml").write_text("[tenant]\ncollections = 1\n")
    world = World(tmp_path, quotas=str(quotas))
    ada, eve = Certified(world, "acme/ada"), Certified(world, EVE)
    try:
        FakeClient(ada, seed=1).create()
        FakeClient(eve, seed=2).create()
        with pytest.raises(HesearchError, match="collections of tenant rival: 1 are allowed, and there are 1"):
            FakeClient(eve, "more", seed=3).create()
    finally:
        ada.close()
        eve.close()
        world.close()


def test_what_tenants_share_shows(eve: Certified, acme: FakeClient) -> None:
    """docs/access.md names these: an id that is taken anywhere, and a server that is full."""
    theirs = FakeClient(eve, "mine")
    assert theirs.collection_id == acme.collection_id
    with pytest.raises(AlreadyExists, match="one on this server has this id"):
        theirs.create()
    with pytest.raises(NotFound):
        theirs.describe()
    FakeClient(eve, "mine", seed=2).create()
    with pytest.raises(LimitExceeded, match="this server holds at most 2"):
        FakeClient(eve, "more", seed=3).create()

"""The contract of hesearch.v1, embedded and over gRPC alike: what is stored, refused, answered and reported."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine.errors import (
    AlreadyExists,
    Conflict,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    ParameterError,
    ResidueError,
    TamperedDataError,
)
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES
from he_proto.v1 import hesearch_pb2 as pb
from he_server.service import Service
from tests.server_fixture import (
    BLOCK_BYTES,
    PARAMETERS,
    Endpoint,
    FakeClient,
    FakeSegment,
    naive_answers,
    residues,
    running,
)


@pytest.fixture(params=["embedded", "grpc"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoint]:
    limits: dict[str, Any] = {
        "max_segment_bytes": 8 * BLOCK_BYTES,
        "max_dim": 64,
        "max_segments": 3,
        "max_collections": 4,
    }
    with running(tmp_path, over_grpc=request.param == "grpc", max_queries=5, **limits) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: Endpoint) -> FakeClient:
    return FakeClient(endpoint).create()


# ---- collections ---------------------------------------------------------------------------------------------
def test_a_new_collection(client: FakeClient) -> None:
    found = client.describe()
    assert found == pb.Collection(
        context=client.context,
        collection_id=client.collection_id,
        parameters=wire.parameters_to_wire(PARAMETERS),
        version=1,
        owner="loopback",
    )
    manifest = client.manifest()
    assert (manifest.version, manifest.sealed_manifest, list(manifest.live_segments)) == (1, b"sealed 1", [])


def test_creating_again(client: FakeClient) -> None:
    """The same request is a retry; any other one for the name, or the id, is refused."""
    client.create()
    for changes in (
        {"collection_id": bytes(16)},
        {"sealed_manifest": b"other"},
        {"context": wire.context("namesake", PARAMETERS.digest)},
    ):
        with pytest.raises(AlreadyExists):
            client.endpoint.call("CreateCollection", client.create_request(**changes))
    client.commit(1, [])
    with pytest.raises(AlreadyExists):
        client.create()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"context": pb.Context(format_version=2)}, FormatVersionError),
        ({"context": wire.context("a/b", PARAMETERS.digest)}, InvalidInput),
        ({"context": wire.context("notes", bytes(32))}, FormatVersionError),
        ({"collection_id": bytes(15)}, InvalidInput),
        ({"sealed_manifest": b""}, InvalidInput),
        ({"sealed_manifest": bytes(wire.MAX_MANIFEST_BYTES + 1)}, LimitExceeded),
        ({"parameters": pb.Parameters(engine=pb.ENGINE_HINT, profile="no", dim=4, stride=2)}, ParameterError),
        ({"parameters": pb.Parameters(engine=7, dim=4)}, FormatVersionError),
    ],
)
def test_bad_new_collections(endpoint: Endpoint, changes: dict[str, Any], error: type[HesearchError]) -> None:
    with pytest.raises(error):
        endpoint.call("CreateCollection", FakeClient(endpoint).create_request(**changes))
    assert not endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1)).collections


def test_limits_of_collections(endpoint: Endpoint) -> None:
    wide = Parameters.choose("compact", 128)
    changes = {"context": wire.context("wide", wide.digest), "parameters": wire.parameters_to_wire(wide)}
    with pytest.raises(LimitExceeded, match="dim: got 128, and this server admits at most 64"):
        endpoint.call("CreateCollection", FakeClient(endpoint).create_request(**changes))
    for number in range(4):
        FakeClient(endpoint, f"c{number}", seed=number).create()
    with pytest.raises(LimitExceeded, match="holds at most 4"):
        FakeClient(endpoint, "c4", seed=4).create()


def test_limit_of_query_bytes(tmp_path: Path) -> None:
    """Of a collection whose single query would be too large, and of too many queries in one call."""
    with (
        running(tmp_path / "less", over_grpc=False, max_query_bytes=BLOCK_BYTES - 1) as endpoint,
        pytest.raises(LimitExceeded, match="parameters: bytes in a query: got 16384"),
    ):
        FakeClient(endpoint).create()
    with running(tmp_path / "more", over_grpc=False, max_query_bytes=3 * BLOCK_BYTES - 1) as endpoint:
        client = FakeClient(endpoint).create()
        assert client.answer(1, residues(client.rng, 2)) == {}
        with pytest.raises(LimitExceeded, match="queries: bytes: got 49152"):
            client.answer(1, residues(client.rng, 3))


def test_queries_are_held_once() -> None:
    """Sixteen of 2 MiB as they come, and room for two more at most."""
    chunk, count = pb.AnswerRequest(chunk=bytes(CHUNK_BYTES)), 32
    tracemalloc.start()
    try:
        queries = Service._received(iter([chunk] * count), 16, count * CHUNK_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(query) for query in queries] == [2 * CHUNK_BYTES] * 16
    assert peak_bytes < 18 * 2 * CHUNK_BYTES


def test_list(endpoint: Endpoint) -> None:
    for number, name in enumerate(["b", "a", "B", "c"]):
        FakeClient(endpoint, name, seed=number).create()
    listed = endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=1))
    assert [c.context.collection for c in listed.collections] == ["B", "a", "b", "c"]
    with pytest.raises(FormatVersionError):
        endpoint.call("ListCollections", pb.ListCollectionsRequest(format_version=0))


def test_drop(client: FakeClient) -> None:
    segment = client.segment()
    client.write(segment)
    client.commit(1, [segment])
    request = pb.DropCollectionRequest(context=client.context, collection_id=bytes(16))
    with pytest.raises(NotFound, match="now another collection"):
        client.endpoint.call("DropCollection", request)
    request.collection_id = client.collection_id
    client.endpoint.call("DropCollection", request)
    for call in (client.describe, client.manifest, lambda: client.endpoint.call("DropCollection", request)):
        with pytest.raises(NotFound):
            call()
    client.create()  # the same name and id may begin anew, with nothing of before
    assert client.describe().segments == 0
    assert not client.write(segment).existed


@pytest.mark.parametrize("method", ["ReadManifest", "ReadSegmentPart", "CommitManifest", "DropCollection"])
def test_every_message_is_checked_first(client: FakeClient, method: str) -> None:
    request_type = getattr(pb, f"{method}Request")
    has_id = "collection_id" in request_type.DESCRIPTOR.fields_by_name
    for context, error in (
        (pb.Context(), FormatVersionError),
        (wire.context("", PARAMETERS.digest), InvalidInput),
        (wire.context("../notes", PARAMETERS.digest), InvalidInput),
        (wire.context("notes", b"short"), InvalidInput),
        (wire.context("notes", bytes(32)), FormatVersionError),
        (wire.context("unknown", PARAMETERS.digest), NotFound),
    ):
        fields: dict[str, Any] = {"collection_id": client.collection_id} if has_id else {}
        if method == "ReadSegmentPart":
            fields["kind"] = pb.PART_KIND_HINT
        with pytest.raises(error):
            client.endpoint.call(method, request_type(context=context, **fields))
    if has_id:
        for collection_id, error in ((b"", InvalidInput), (bytes(16), NotFound)):
            with pytest.raises(error):
                client.endpoint.call(method, request_type(context=client.context, collection_id=collection_id))


# ---- segments ------------------------------------------------------------------------------------------------
def test_a_segment_comes_back(client: FakeClient) -> None:
    segment = client.segment(3)
    response = client.write(segment)
    assert response == pb.WriteSegmentResponse(context=client.context, segment_id=segment.id, existed=False)
    for kind, content in segment.contents.items():
        assert client.read_part(segment, kind) == content
    assert client.read_part(segment, pb.PART_KIND_HINT, offset_bytes=7) == segment.contents[pb.PART_KIND_HINT][7:]
    ranged = client.read_part(segment, pb.PART_KIND_INDEX, offset_bytes=4095, length_bytes=2)
    assert ranged == segment.contents[pb.PART_KIND_INDEX][4095:4097]
    assert client.describe().segments == 0, "it is not live before a manifest names it"


def test_writing_twice_changes_nothing(client: FakeClient) -> None:
    segment = client.segment()
    assert not client.write(segment).existed
    assert client.write(segment).existed
    only_header = segment.requests()[:1]
    assert client.endpoint.call("WriteSegment", only_header).existed, "the bytes are not needed again"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"offset_bytes": 5001}, InvalidInput),
        ({"offset_bytes": 5000, "length_bytes": 1}, InvalidInput),
        ({"length_bytes": 5001}, InvalidInput),
        ({"offset_bytes": 2**64 - 1, "length_bytes": 2**64 - 1}, InvalidInput),
        ({"segment_id": bytes(32)}, NotFound),
        ({"segment_id": bytes(31)}, InvalidInput),
    ],
)
def test_bad_part_reads(client: FakeClient, changes: dict[str, Any], error: type[HesearchError]) -> None:
    segment = client.segment()
    client.write(segment)
    with pytest.raises(error):
        client.read_part(segment, pb.PART_KIND_HINT, **changes)
    assert client.read_part(segment, pb.PART_KIND_HINT, offset_bytes=5000) == b""
    for kind in (0, 6):
        with pytest.raises(InvalidInput, match=f"kind: got {kind}, expected a known part"):
            client.read_part(segment, kind)  # type: ignore[arg-type]


def _with_header(segment: FakeSegment, change: Callable[[pb.SegmentHeader], None]) -> list[pb.WriteSegmentRequest]:
    requests = segment.requests()
    change(requests[0].header)
    return requests


def _zero_blocks(header: pb.SegmentHeader) -> None:
    header.blocks = 0


def _one_block_more(header: pb.SegmentHeader) -> None:
    header.blocks += 1


def _huge(header: pb.SegmentHeader) -> None:
    header.parts[0].length_bytes = 2**63


def _wrap(header: pb.SegmentHeader) -> None:
    header.blocks = 2**64 - 1


def _other_id(header: pb.SegmentHeader) -> None:
    header.segment_id = bytes(32)


def _short_id(header: pb.SegmentHeader) -> None:
    header.segment_id = bytes(31)


def _swapped(header: pb.SegmentHeader) -> None:
    header.parts.reverse()


def _other_collection(header: pb.SegmentHeader) -> None:
    header.collection_id = bytes(16)


def _other_version(header: pb.SegmentHeader) -> None:
    header.context.format_version = 9


def _no_parts(header: pb.SegmentHeader) -> None:
    del header.parts[:]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_zero_blocks, InvalidInput),
        (_one_block_more, InvalidInput),
        (_huge, LimitExceeded),
        (_wrap, InvalidInput),
        (_other_id, InvalidInput),
        (_short_id, InvalidInput),
        (_swapped, InvalidInput),
        (_no_parts, InvalidInput),
        (_other_collection, NotFound),
        (_other_version, FormatVersionError),
    ],
)
def test_bad_segment_headers(
    client: FakeClient, change: Callable[[pb.SegmentHeader], None], error: type[HesearchError]
) -> None:
    with pytest.raises(error):
        client.endpoint.call("WriteSegment", _with_header(client.segment(), change))


def test_segments_over_the_limit(client: FakeClient) -> None:
    with pytest.raises(LimitExceeded, match="parts: bytes"):
        client.write(client.segment(8))


def test_bad_segment_streams(client: FakeClient, tmp_path: Path) -> None:
    """Nothing of a refused upload stays, neither stored nor on the disk."""
    segment = client.segment(2)
    header, *chunks = segment.requests()
    (chunk,) = (request.chunk for request in chunks)
    flipped = bytearray(chunk)
    flipped[BLOCK_BYTES] ^= 1

    def piece(data: bytes) -> pb.WriteSegmentRequest:
        return pb.WriteSegmentRequest(chunk=data)

    cases: list[tuple[list[pb.WriteSegmentRequest], type[HesearchError], str]] = [
        ([], InvalidInput, "got no header"),
        ([*chunks, header], InvalidInput, "got no header"),
        ([header], InvalidInput, "part INDEX lacks 32768 bytes"),
        ([header, header, *chunks], InvalidInput, "something else than a chunk"),
        ([header, piece(chunk[:-1])], InvalidInput, "part PAYLOADS lacks 1 bytes"),
        ([header, piece(chunk + b"x")], InvalidInput, "got 1 bytes after the end"),
        ([header, piece(b""), *chunks], InvalidInput, "chunk: got 0 bytes"),
        ([header, piece(chunk + bytes(CHUNK_BYTES))], InvalidInput, "expected 1 to 1048576"),
        ([header, piece(bytes(flipped))], TamperedDataError, "part INDEX does not match its digest"),
        ([header, piece(chunk[:-1] + bytes([chunk[-1] ^ 1]))], TamperedDataError, "part PAYLOADS does not match"),
        ([header, pb.WriteSegmentRequest()], InvalidInput, "something else than a chunk"),
    ]
    for requests, error, message in cases:
        with pytest.raises(error, match=message):
            client.endpoint.call("WriteSegment", requests)
        assert list((tmp_path / "incoming").iterdir()) == []
    with pytest.raises(NotFound):
        client.read_part(segment, pb.PART_KIND_ROWS)
    small_pieces = [piece(chunk[i : i + 1000]) for i in range(0, len(chunk), 1000)]
    assert not client.endpoint.call("WriteSegment", [header, *small_pieces]).existed
    assert client.read_part(segment, pb.PART_KIND_ROWS) == segment.contents[pb.PART_KIND_ROWS]


@pytest.mark.parametrize("residue", [PARAMETERS.ring.primes[0], 2**32 - 1])
def test_non_canonical_residues_are_refused(client: FakeClient, residue: int) -> None:
    words = residues(client.rng, 2)
    words.reshape(-1)[-1] = residue
    segment = client.segment(index=words)
    with pytest.raises(ResidueError, match="not canonical"):
        client.write(segment)
    with pytest.raises(NotFound):
        client.commit(1, [segment])


# ---- the manifest --------------------------------------------------------------------------------------------
def test_commit(client: FakeClient) -> None:
    first, second = client.segment(1), client.segment(2)
    client.write(first)
    client.write(second)
    assert client.commit(1, [second, first]) == 2
    manifest = client.manifest()
    assert (manifest.version, manifest.sealed_manifest) == (2, b"sealed 2")
    assert manifest.collection_id == client.collection_id
    assert list(manifest.live_segments) == [second.id, first.id]
    found = client.describe()
    stored = sum(len(content) for segment in (first, second) for content in segment.contents.values())
    assert (found.version, found.segments, found.blocks) == (2, 2, 3)
    assert (found.stored_bytes, found.index_bytes) == (stored, 3 * BLOCK_BYTES)


def test_conflict(client: FakeClient) -> None:
    client.commit(1, [])
    with pytest.raises(Conflict, match="got 1, but the manifest is at version 2"):
        client.commit(1, [], sealed_manifest=b"another writer's")
    with pytest.raises(Conflict):
        client.commit(7, [])
    with pytest.raises(Conflict):
        client.commit(2**64 - 1, [])
    assert client.manifest().sealed_manifest == b"sealed 2"


def test_committing_again_is_a_retry(client: FakeClient) -> None:
    """The reply may have been lost: the same commit is acknowledged again, until another one follows."""
    assert client.commit(1, []) == client.commit(1, []) == 2
    client.commit(2, [])
    with pytest.raises(Conflict):
        client.commit(1, [])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"live_segments": [bytes(32)]}, NotFound),
        ({"live_segments": [bytes(31)]}, InvalidInput),
        ({"live_segments": [bytes(32)] * 2}, InvalidInput),
        ({"live_segments": [bytes(32)] * 4}, LimitExceeded),
        ({"sealed_manifest": b""}, InvalidInput),
        ({"sealed_manifest": bytes(wire.MAX_MANIFEST_BYTES + 1)}, LimitExceeded),
    ],
)
def test_bad_commits_change_nothing(client: FakeClient, changes: dict[str, Any], error: type[HesearchError]) -> None:
    segment = client.segment()
    client.write(segment)
    client.commit(1, [segment])
    before = client.manifest()
    with pytest.raises(error):
        client.commit(2, [], **changes)
    assert client.manifest() == before


def test_the_largest_manifest_travels(client: FakeClient) -> None:
    largest = bytes(wire.MAX_MANIFEST_BYTES)
    client.commit(1, [], sealed_manifest=largest)
    assert client.manifest().sealed_manifest == largest


def test_another_collections_segment_cannot_be_committed(client: FakeClient) -> None:
    other = FakeClient(client.endpoint, "other", seed=2).create()
    segment = other.segment()
    other.write(segment)
    with pytest.raises(NotFound, match="is not stored here"):
        client.commit(1, [segment])


def test_a_retired_segment_is_gone(client: FakeClient) -> None:
    first, second = client.segment(), client.segment()
    client.write(first)
    client.commit(1, [first])
    client.write(second)
    client.commit(2, [second])
    with pytest.raises(NotFound):
        client.read_part(first, pb.PART_KIND_ROWS)
    assert client.read_part(second, pb.PART_KIND_ROWS)
    assert not client.write(first).existed


# ---- answering -----------------------------------------------------------------------------------------------
def test_answers_are_the_oracles(client: FakeClient) -> None:
    segments = [client.segment(1), client.segment(2)]
    for segment in segments:
        client.write(segment)
    client.commit(1, segments)
    queries = residues(client.rng, 2)
    answers = client.answer(2, queries)
    assert set(answers) == {segment.id for segment in segments}
    for segment in segments:
        assert np.array_equal(answers[segment.id], naive_answers(segment.blocks, queries))


def test_an_empty_collection_has_no_answers(client: FakeClient) -> None:
    assert client.answer(1, residues(client.rng, 1)) == {}


def test_only_live_segments_are_answered(client: FakeClient) -> None:
    live, written, retired = client.segment(), client.segment(), client.segment()
    for segment in (live, written, retired):
        client.write(segment)
    client.commit(1, [live, retired])
    client.commit(2, [live])
    assert set(client.answer(3, residues(client.rng, 1))) == {live.id}


@pytest.mark.parametrize("version", [0, 1, 3, 2**64 - 1])
def test_only_the_current_version_is_answered(client: FakeClient, version: int) -> None:
    client.commit(1, [])
    with pytest.raises(Conflict, match="the manifest is at version 2"):
        client.answer(version, residues(client.rng, 1))


def test_bad_queries(client: FakeClient) -> None:
    segment = client.segment()
    client.write(segment)
    client.commit(1, [segment])
    good = residues(client.rng, 2)
    bad = good.copy()
    bad[1, 0, 0, 0, 0] = PARAMETERS.ring.primes[0]
    header, *chunks = client.answer_requests(2, good)
    cases: list[tuple[list[pb.AnswerRequest], type[HesearchError]]] = [
        ([], InvalidInput),
        (chunks, InvalidInput),
        ([header], InvalidInput),
        ([header, header], InvalidInput),
        ([header, pb.AnswerRequest()], InvalidInput),
        ([header, *chunks, pb.AnswerRequest(chunk=b"x")], InvalidInput),
        (client.answer_requests(2, good, queries=1), InvalidInput),
        (client.answer_requests(2, good, queries=3), InvalidInput),
        (client.answer_requests(2, good, queries=0), InvalidInput),
        (client.answer_requests(2, good, queries=6), LimitExceeded),
        (client.answer_requests(2, good, queries=2**32 - 1), LimitExceeded),
        (client.answer_requests(2, bad), ResidueError),
        (client.answer_requests(2, good, collection_id=bytes(16)), NotFound),
        (client.answer_requests(2, good, context=wire.context("notes", bytes(32))), FormatVersionError),
        (client.answer_requests(2, good, context=wire.context("none", PARAMETERS.digest)), NotFound),
    ]
    for requests, error in cases:
        with pytest.raises(error):
            client.endpoint.call("Answer", requests)
    assert len(client.answer(2, good)) == 1


# ---- what stays ----------------------------------------------------------------------------------------------
def test_everything_survives_a_restart(tmp_path: Path) -> None:
    with running(tmp_path, over_grpc=True) as endpoint:
        client = FakeClient(endpoint).create()
        live, waiting = client.segment(2), client.segment()
        client.write(live)
        client.commit(1, [live])
        client.write(waiting)
        described, manifest = client.describe(), client.manifest()
        queries = residues(client.rng, 1)
        answers = client.answer(2, queries)
    with running(tmp_path, over_grpc=False) as endpoint:
        client.endpoint = endpoint
        assert (client.describe(), client.manifest()) == (described, manifest)
        assert client.write(waiting).existed
        assert client.read_part(live, pb.PART_KIND_HINT) == live.contents[pb.PART_KIND_HINT]
        again = client.answer(2, queries)
        assert again.keys() == answers.keys()
        assert np.array_equal(again[live.id], answers[live.id])
        assert client.commit(2, [live, waiting]) == 3


def test_damaged_files_are_reported_and_repaired(tmp_path: Path) -> None:
    """A bit of the header: found at the start. A bit of a part: found when the part is read."""
    with running(tmp_path, over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment, other = client.segment(), client.segment()
        client.write(segment)
        client.write(other)
        client.commit(1, [segment, other])
    folder = tmp_path / "segments" / client.collection_id.hex()
    for name, position in ((segment.id.hex(), 100), (other.id.hex(), 4096 + BLOCK_BYTES + 17)):
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 4
        (folder / name).write_bytes(content)
    with running(tmp_path, over_grpc=True) as endpoint:
        client.endpoint = endpoint
        queries = residues(client.rng, 1)
        assert client.describe().segments == 2
        with pytest.raises(TamperedDataError, match=f"{segment.id.hex()[:16]}… is damaged; sending it again repairs"):
            client.answer(2, queries)
        with pytest.raises(TamperedDataError, match="is damaged"):
            client.read_part(segment, pb.PART_KIND_ROWS)
        assert client.write(other).existed, "nobody has noticed yet"
        with pytest.raises(TamperedDataError, match="part HINT does not match its digest"):
            client.read_part(other, pb.PART_KIND_HINT)
        assert not client.write(other).existed
        assert not client.write(segment).existed
        for repaired in (segment, other):
            assert client.read_part(repaired, pb.PART_KIND_HINT) == repaired.contents[pb.PART_KIND_HINT]
        assert set(client.answer(2, queries)) == {segment.id, other.id}


# ---- what a client learns of a failure -----------------------------------------------------------------------
def test_internal_errors_leak_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path, over_grpc=True) as endpoint:

        def broken(*_: object) -> None:
            raise RuntimeError(f"secret path {tmp_path}")

        client = FakeClient(endpoint).create()
        endpoint.service._store.totals = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(HesearchError) as caught:
            client.describe()
    assert type(caught.value) is HesearchError
    assert "secret" not in str(caught.value)
    assert "secret path" in caplog.text, "the log has it"


def test_unary_and_streaming_errors_name_their_class(client: FakeClient) -> None:
    for call in (client.manifest, lambda: client.answer(1, residues(client.rng, 1))):
        client.context = wire.context("unknown", PARAMETERS.digest)
        with pytest.raises(NotFound, match="there is no 'unknown'"):
            call()


def test_segment_files_hold_what_was_sent(client: FakeClient, tmp_path: Path) -> None:
    """And nothing in the folder bears a name that a client chose."""
    segment = client.segment()
    client.write(segment)
    path = tmp_path / "segments" / client.collection_id.hex() / segment.id.hex()
    content = path.read_bytes()
    for part in segment.header.parts:
        data = segment.contents[part.kind]
        assert data in content
        assert hashlib.sha256(data).digest() == part.sha256
    assert not [p for p in tmp_path.rglob("*") if "notes" in p.name]

"""Archives: what is exported comes back bit by bit elsewhere, and nothing else is taken for an archive."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    AlreadyExists,
    Client,
    CollectionKey,
    FormatVersionError,
    HesearchError,
    NotFound,
    TamperedDataError,
)
from he_client.upkeep.archive_format import ArchiveWriter, read_archive
from he_engine.params import Parameters
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import lying_client
from tests.sdk_fixture import connect

DIM = 8
DAMAGES = 500


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


def fill(client: Client, key: CollectionKey, *, engine: str = "hint") -> Any:
    """Two segments, one row deleted, payloads in the second."""
    made = client.create_collection("c", dim=DIM, key=key, engine=engine)
    rows = unit_rows(np.random.default_rng(5), 40, DIM)
    made.insert(range(20), rows[:20])
    made.insert([f"row {i}" for i in range(20)], rows[20:], payloads=[f"text {i}" for i in range(20)])
    made.delete([3])
    return made


def archive_of(client: Client, folder: Path, name: str = "c") -> bytes:
    client.export_collection(name, folder / "a")
    content = (folder / "a").read_bytes()
    (folder / "a").unlink()
    return content


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with Client(":memory:", threads=1) as client:
        fill(client, CollectionKey.generate())
        return archive_of(client, tmp_path_factory.mktemp("archive"))


# ---- round trips ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "engine"), [("folder", "hint"), ("grpc", "hint"), ("folder", "tenseal")])
def test_import_elsewhere_gives_the_same_answers(kind: str, engine: str, key: CollectionKey, tmp_path: Path) -> None:
    queries = unit_rows(np.random.default_rng(6), 3, DIM)
    file = tmp_path / "c.archive"
    with connect(kind, tmp_path / "one") as client:
        before = fill(client, key, engine=engine).search(queries, k=40)
        done = client.export_collection("c", file)
        assert (done.version, done.segments, done.archive_bytes) == (4, 2, file.stat().st_size)
        described = client.describe("c")
    with connect(kind, tmp_path / "two") as client:
        assert client.import_collection(file).existed == 0
        assert client.describe("c") == described
        copy = client.open_collection("c", key=key)
        if engine == "hint":
            assert copy.search(queries, k=40) == before  # ids, payloads and scores, to the last bit
        else:  # fresh noise in every query
            assert [[hit.id for hit in hits[:5]] for hits in copy.search(queries, k=40)] == [
                [hit.id for hit in hits[:5]] for hits in before
            ]
        copy.insert(["later"], unit_rows(np.random.default_rng(7), 1, DIM))
        assert copy.count() == 40


def test_an_empty_collection_comes_back_empty(key: CollectionKey, tmp_path: Path) -> None:
    with Client(":memory:") as client:
        client.create_collection("c", dim=DIM, key=key)
        client.export_collection("c", tmp_path / "a")
        client.drop_collection("c")
        client.import_collection(tmp_path / "a")
        assert client.open_collection("c", key=key).count() == 0


def test_a_writer_who_holds_the_first_one_goes_on_with_the_import(key: CollectionKey, tmp_path: Path) -> None:
    """The manifest is the same one: an open collection accepts it, and what follows it."""
    with Client(":memory:") as client:
        first = fill(client, key)
        client.export_collection("c", tmp_path / "a")
        client.drop_collection("c")
        client.import_collection(tmp_path / "a")
        first.insert(["more"], unit_rows(np.random.default_rng(1), 1, DIM))
        assert first.count() == 40


def test_files_and_collections_are_not_overwritten(key: CollectionKey, tmp_path: Path) -> None:
    file = tmp_path / "a"
    with Client(":memory:") as client:
        made = fill(client, key)
        client.export_collection("c", file)
        with pytest.raises(AlreadyExists):
            client.export_collection("c", file)
        assert client.import_collection(file).existed == 2  # the very same: nothing to do
        made.delete([5])
        with pytest.raises(AlreadyExists, match="version 5"):
            client.import_collection(file)
        client.drop_collection("c")
        client.create_collection("c", dim=4, key=key)
        with pytest.raises(AlreadyExists, match="not the one"):
            client.import_collection(file)
        with pytest.raises(NotFound):
            client.export_collection("none", tmp_path / "b")
        with pytest.raises(NotFound):
            client.import_collection(tmp_path / "none")
        with pytest.raises(NotFound):
            client.export_collection("c", tmp_path / "none" / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]  # no temporary file is left


# ---- what the reader refuses ---------------------------------------------------------------------------------
class Stream(io.BytesIO):
    """Counts the bytes that were asked for beyond the end."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None and size >= 0
        self.largest = max(self.largest, size)
        return super().read(size)


def boundaries(content: bytes) -> list[int]:
    """Where records and parts begin, and the end."""
    stream = io.BytesIO(content)
    reader = read_archive(stream)
    found = [0, 8, 12, stream.tell()]
    for segment in reader.segments():
        found.append(stream.tell())
        for part in segment.header.parts:
            found.append(found[-1] + part.length_bytes)
    return sorted({*found, len(content) - 76})


def refused(content: bytes) -> None:
    stream = Stream(content)
    with pytest.raises((TamperedDataError, FormatVersionError)):
        read_archive(stream).verify()
    assert stream.largest <= 1 << 20


def test_every_truncation_at_a_boundary_is_refused(sound: bytes) -> None:
    read_archive(Stream(sound)).verify()
    places = boundaries(sound)
    assert len(places) > 12 and places[-1] < len(sound)
    for place in places:
        for end in (place - 1, place, place + 1):
            refused(sound[: max(0, end)])
    refused(sound + b"\0")


def test_every_flipped_bit_is_refused(sound: bytes) -> None:
    rng = np.random.default_rng(11)
    places = [*boundaries(sound), *rng.integers(0, len(sound), DAMAGES).tolist()]
    for place in places:
        altered = bytearray(sound)
        altered[place] ^= 1 << int(rng.integers(8))
        refused(bytes(altered))
        if place % 5 == 0:
            refused(sound[:place])


def record(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    start = struct.pack("<IQ", kind, len(body) if length is None else length) + body
    return start + hashlib.sha256(start).digest()


def collection_body(**changes: Any) -> bytes:
    parameters = Parameters.choose("exact", DIM, None)
    fields = {
        "id": bytes(16), "digest": parameters.digest, "version": 3, "engine": 1, "dim": DIM,
        "stride": parameters.stride, "profile": b"exact", "name": b"c", "manifest": b"sealed", "ids": [],
        "segments": None,
    } | changes  # fmt: skip
    segments = len(fields["ids"]) if fields["segments"] is None else fields["segments"]
    fixed = struct.pack(
        "<16s32sQiII16sIII", fields["id"], fields["digest"], fields["version"], fields["engine"], fields["dim"],
        fields["stride"], fields["profile"], len(fields["name"]), len(fields["manifest"]), segments,
    )  # fmt: skip
    return fixed + fields["name"] + fields["manifest"] + b"".join(fields["ids"])


def whole(body: bytes, *records: bytes) -> bytes:
    content = struct.pack("<8sI", b"HESARCHV", 1) + record(1, body) + b"".join(records)
    return content + record(3, hashlib.sha256(content).digest())


def test_the_bytes_are_those_of_the_specification() -> None:
    """The writer's, against a layout written down here a second time."""
    read_archive(io.BytesIO(whole(collection_body()))).verify()
    index = b"index bytes"
    part = struct.pack("<iQ32s", 1, len(index), hashlib.sha256(index).digest())
    parameters = Parameters.choose("exact", DIM, None)
    header = wire.segment_header("c", bytes(16), parameters.digest, 2, {pb.PART_KIND_INDEX: index})
    segment = record(2, struct.pack("<32sQI", header.segment_id, 2, 1) + part) + index
    expected = whole(collection_body(ids=[header.segment_id]), segment)
    reader = read_archive(io.BytesIO(expected))
    assert [s.header for s in reader.segments()] == [header]
    stream = io.BytesIO()
    writer = ArchiveWriter(stream)
    writer.collection(reader.collection)
    writer.segment(header)
    writer.write(index)
    writer.end()
    assert stream.getvalue() == expected


@pytest.mark.parametrize(
    "body",
    [
        collection_body(version=0),
        collection_body(version=1 << 48),
        collection_body(manifest=b""),
        collection_body(name=b""),
        collection_body(name=b"/etc"),
        collection_body(name=b"\xe9"),
        collection_body(engine=-1),
        collection_body(engine=0),
        collection_body(dim=0),
        collection_body(stride=3),
        collection_body(profile=b"exact\0."),
        collection_body(digest=bytes(32)),
        collection_body(ids=[bytes(32), bytes(32)]),
        collection_body(ids=[bytes(32)]),  # no segment follows
        collection_body(segments=1),
        collection_body(segments=(1 << 32) - 1),
        collection_body() + b"\0",
        b"",
        bytes(96),
    ],
)  # fmt: skip
def test_collection_records_with_right_digests_and_wrong_contents_are_refused(body: bytes) -> None:
    refused(whole(body))


@pytest.mark.parametrize(
    ("parts", "blocks"),
    [
        ([], 1),
        ([(1, 0)], 0),
        ([(2, 0)], 1),
        ([(1, 0), (1, 0)], 1),
        ([(1, 0), (3, 0), (2, 0)], 1),
        ([(1, 0), (-1, 0)], 1),
        ([(1, 0), (9, 0)], 1),
        ([(1, 1 << 63)], 1),
        ([(1, 1 << 48)], 1),
        ([(1, 0)] * 6, 1),
    ],
)
def test_segment_records_with_right_digests_and_wrong_contents_are_refused(
    parts: list[tuple[int, int]], blocks: int
) -> None:
    empty = hashlib.sha256().digest()
    digest = Parameters.choose("exact", DIM, None).digest
    lines = [pb.Part(kind=kind, length_bytes=length, sha256=empty) for kind, length in parts]  # type: ignore[arg-type]
    body = b"".join(struct.pack("<iQ32s", kind, length, empty) for kind, length in parts)
    if min((kind for kind, _ in parts), default=0) >= 0:
        segment_id = wire.segment_id(bytes(16), digest, blocks, lines)
    else:
        segment_id = bytes(32)
    segment = record(2, struct.pack("<32sQI", segment_id, blocks, len(parts)) + body)
    refused(whole(collection_body(ids=[segment_id]), segment))


def test_each_digest_is_checked_where_the_others_are_right(sound: bytes) -> None:
    end = len(sound) - 76
    refused(sound[:end] + record(3, bytes(32)))
    altered = bytearray(sound[:end])
    altered[-1] ^= 1  # the last byte of the last part
    refused(bytes(altered) + record(3, hashlib.sha256(altered).digest()))


def test_segments_are_those_named_and_in_that_order() -> None:
    digest = Parameters.choose("exact", DIM, None).digest
    segments = {}
    for index in (b"one", b"two"):
        header = wire.segment_header("c", bytes(16), digest, 1, {pb.PART_KIND_INDEX: index})
        part = struct.pack("<iQ32s", 1, 3, hashlib.sha256(index).digest())
        segments[header.segment_id] = record(2, struct.pack("<32sQI", header.segment_id, 1, 1) + part) + index
    (first, one), (second, two) = segments.items()
    read_archive(io.BytesIO(whole(collection_body(ids=[first, second]), one, two))).verify()
    refused(whole(collection_body(ids=[first, second]), two, one))
    refused(whole(collection_body(ids=[first]), two))
    refused(whole(collection_body(ids=[first], id=b"x" * 16), one))


def test_lengths_without_bytes_cost_no_memory() -> None:
    for length in (1 << 24, 1 << 40, (1 << 64) - 1):
        refused(struct.pack("<8sI", b"HESARCHV", 1) + record(1, b"", length=length))


def test_other_files_and_versions_are_told_apart() -> None:
    for content in (b"", b"HESEARCH" + bytes(100), b"PK\3\4" * 9):
        with pytest.raises(FormatVersionError, match="not a hesearch archive"):
            read_archive(io.BytesIO(content))
    with pytest.raises(FormatVersionError, match="got format version 2"):
        read_archive(io.BytesIO(struct.pack("<8sI", b"HESARCHV", 2)))


# ---- damage and interruption ---------------------------------------------------------------------------------
def test_a_damaged_archive_changes_nothing(sound: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a"
    with Client(":memory:") as client:
        for place in (20, len(sound) // 2, len(sound) - 1):
            altered = bytearray(sound)
            altered[place] ^= 1
            file.write_bytes(altered)
            with pytest.raises(TamperedDataError):
                client.import_collection(file)
        assert client.list_collections() == []


class Stop(Exception):
    """Stands for the end of the client's process."""


def stopping_at(number: int) -> Callable[[], None]:
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop

    return count


def test_an_import_stopped_anywhere_is_invisible_and_goes_on(key: CollectionKey, tmp_path: Path) -> None:
    file = tmp_path / "a"
    with Client(":memory:") as client:
        fill(client, key)
        client.export_collection("c", file)
    methods = ("DescribeCollection", "CreateCollection", "WriteSegment", "WriteSegment", "CommitManifest")
    for stop in range(len(methods)):
        with lying_client() as (client, transport):
            transport.before = dict.fromkeys(methods, stopping_at(stop))
            with pytest.raises(Stop):
                client.import_collection(file)
            assert transport.calls == list(methods[: stop + 1])
            transport.before = {}
            with pytest.raises(NotFound):
                client.open_collection("c", key=key)
            if stop > 1:
                with pytest.raises(NotFound, match="being imported"):
                    client.export_collection("c", tmp_path / "b")
            assert client.import_collection(file).existed == max(0, stop - 2)
            assert client.open_collection("c", key=key).count() == 39


def test_a_lost_reply_to_the_commit_is_no_error(key: CollectionKey, tmp_path: Path) -> None:
    with lying_client() as (client, transport):
        fill(client, key)
        client.export_collection("c", tmp_path / "a")
        client.drop_collection("c")

        def lost(_: Any) -> Any:
            raise Stop

        transport.lies["CommitManifest"] = lost
        with pytest.raises(Stop):
            client.import_collection(tmp_path / "a")
        transport.lies.clear()
        assert client.import_collection(tmp_path / "a").existed == 2
        assert client.open_collection("c", key=key).count() == 39


def test_segments_given_up_before_the_commit_are_sent_again(key: CollectionKey, tmp_path: Path) -> None:
    with lying_client() as (client, transport):
        fill(client, key)
        client.export_collection("c", tmp_path / "a")
        client.drop_collection("c")
        leftovers = transport.honest._service._store.leftovers  # type: ignore[attr-defined]

        def a_day_passes() -> None:
            transport.before.pop("CommitManifest")
            leftovers._clock_s = lambda now=leftovers._clock_s: now() + 2 * 24 * 3600.0
            leftovers.collect()

        transport.before["CommitManifest"] = a_day_passes
        client.import_collection(tmp_path / "a")
        assert client.open_collection("c", key=key).count() == 39


# ---- exports of what changes or is wrong ----------------------------------------------------------------------
def test_an_export_is_of_one_version(key: CollectionKey, tmp_path: Path) -> None:
    """Segments retired meanwhile: it begins again, and the file has the newer version only."""
    with lying_client() as (client, transport):
        made = fill(client, key)

        def retire() -> None:
            transport.before.clear()
            made.delete([i for i in range(20) if i != 3])

        transport.before["ReadSegmentPart"] = retire
        assert client.export_collection("c", tmp_path / "a").segments == 1
        client.drop_collection("c")
        client.import_collection(tmp_path / "a")
        assert client.open_collection("c", key=key).count() == 20


def test_a_lying_server_cannot_get_wrong_bytes_into_an_archive(key: CollectionKey, tmp_path: Path) -> None:
    def alter(responses: list[Any]) -> list[Any]:
        responses[0].chunk = bytes([responses[0].chunk[0] ^ 1]) + responses[0].chunk[1:]
        return responses

    def other(header: pb.SegmentHeader) -> pb.SegmentHeader:
        header.blocks += 1
        return header

    with lying_client() as (client, transport):
        fill(client, key)
        for method, lie in (("ReadSegmentPart", alter), ("DescribeSegment", other)):
            transport.lies = {method: lie}
            with pytest.raises(TamperedDataError):
                client.export_collection("c", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_files_are_ours(tmp_path: Path) -> None:
    with Client(":memory:") as client, pytest.raises(HesearchError, match="directory"):
        client.import_collection(tmp_path)

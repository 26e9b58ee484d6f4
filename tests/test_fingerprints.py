"""Fingerprints that verify no more are replaced: the same rows and scores, whatever else happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    InvalidInput,
    NotFound,
    TamperedAnswerError,
    TamperedDataError,
    Unavailable,
    rejections,
)
from he_client.cli import main
from he_client.results import FingerprintReport
from he_proto.v1 import hesearch_pb2 as pb
from tests.compaction_fixture import before
from tests.conftest import unit_rows
from tests.lying_fixture import LyingTransport, dying, forget_parts, lying_client
from tests.sdk_fixture import grpc_address

DIM, STRIDE = 16, 128  # 32 rows a block
ROWS = unit_rows(np.random.default_rng(5), 130, DIM)
QUERIES = unit_rows(np.random.default_rng(6), 2, DIM)


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


def filled(client: Client, key: CollectionKey, **options: Any) -> Collection:
    """Three segments, rows of two deleted, payloads in two."""
    made = client.create_collection("c", dim=DIM, key=key, **{"stride": STRIDE, "profile": "exact", **options})
    for first in (0, 40, 80):
        ids = range(first, first + 40)
        made.insert(ids, ROWS[ids], [f"text {i}" for i in ids] if first else None, progress=False)
    made.delete([3, 41, 79])
    return made


def everything(collection: Collection) -> Any:
    """All hits in their order, with ids, payloads and scores to the bit."""
    return [[(hit.id, float(hit.score).hex(), hit.payload) for hit in hits] for hits in collection.search(QUERIES, 200)]


def rebuilt(collection: Collection, *, everything: bool = True) -> FingerprintReport:
    return collection.reseal_fingerprints(everything=everything, progress=False)


def parts(collection: Collection) -> list[dict[int, bytes]]:
    """The digests of each segment's parts, by kind."""
    return [{p.kind: p.sha256 for p in e.parts} for e in collection._state.manifest.message.segments]


def deleted(collection: Collection) -> list[list[int]]:
    return [list(e.deleted_rows) for e in collection._state.manifest.message.segments]


def wear(collection: Collection, transport: LyingTransport, numbers: set[int]) -> None:
    """Lie about these segments until their fingerprints are worn."""
    ids = [s.id for s in collection._state.current[1]]
    wanted = {ids[number] for number in numbers}

    def lie(pieces: list[pb.AnswerResponse]) -> list[pb.AnswerResponse]:
        for piece in pieces:
            if piece.segment_id in wanted:
                piece.residues = bytes(len(piece.residues))
        return pieces

    transport.lies["Answer"] = lie
    for _ in range(rejections.MAX):
        with pytest.raises(TamperedAnswerError, match="fail verification"):
            collection.search(QUERIES[0], k=5)
    transport.lies.clear()
    with pytest.raises(TamperedAnswerError, match="reseal --fingerprint"):
        collection.search(QUERIES[0], k=5)


# ---- the same collection ------------------------------------------------------------------------------------
def test_a_worn_one_is_rebuilt_and_verifies_again(key: CollectionKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the worn ones; row for row the same segments in the same places, and counting begins at 0."""
    monkeypatch.setattr(rejections, "MAX", 2)
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 1)  # each segment is judged by itself
    with lying_client() as (client, transport):
        made = filled(client, key)
        want, places, version = everything(made), deleted(made), made.version
        old = parts(made)
        wear(made, transport, {1})
        report = rebuilt(made, everything=False)
        assert (report.version, report.segments, report.rebuilt) == (version + 1, 3, 1)
        assert everything(made) == want and deleted(made) == places
        new = parts(made)
        assert new[0] == old[0] and new[2] == old[2]
        assert {kind for kind in new[1] if new[1][kind] != old[1][kind]} == {pb.PART_KIND_FINGERPRINT}
        assert rebuilt(made, everything=False).rebuilt == 0
        wear(made, transport, {1})  # as many tries as the first one had
        assert rebuilt(made, everything=False).rebuilt == 1
        assert everything(made) == want
        assert client.describe("c").segments == 3


def test_counts_of_another_process_are_found(
    tmp_path: Path, key: CollectionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "MAX", 1)
    folder, state = tmp_path / "data", tmp_path / "state"
    with Client(folder, state=state) as client:
        made = filled(client, key)
        made._rejections.add([made._state.manifest.message.segments[2]])
    with Client(folder, state=state) as client:
        reader = client.open_collection("c", key=key)
        with pytest.raises(TamperedAnswerError, match="verifies no more"):
            reader.search(QUERIES)
        assert rebuilt(reader, everything=False).rebuilt == 1
        reader.search(QUERIES)
    with Client(folder) as client:
        assert rebuilt(client.open_collection("c", key=key), everything=False).rebuilt == 0, "it counted nothing"


@pytest.mark.parametrize(
    "options", [{"profile": "compact"}, {"profile": "precise"}, {"metric": "l2", "norm_bound": 1.5}], ids=str
)
def test_everybody_goes_on(tmp_path: Path, key: CollectionKey, options: dict[str, Any]) -> None:
    """Readers of the version before, pinned ones that come again, and writers; over gRPC."""
    with grpc_address(tmp_path / "data") as address:
        with Client(address, insecure=True, state=tmp_path / "state") as client:
            pinned = filled(client, key, **options)
            fewer = deleted(pinned)
            with Client(address, insecure=True) as other:
                stale = other.open_collection("c", key=key)
                want = {hit.id: hit.payload for hit in stale.search(QUERIES[0], k=200)}
                assert rebuilt(other.open_collection("c", key=key)).rebuilt == 3
                for reader in (stale, pinned):
                    assert {hit.id: hit.payload for hit in reader.search(QUERIES[0], k=200)} == want
                    assert deleted(reader) == fewer
                stale.upsert([0, 120], ROWS[[120, 121]], ["changed", "new"], progress=False)
                stale.delete([100])
        with Client(address, insecure=True, state=tmp_path / "state") as client:
            reader = client.open_collection("c", key=key)
            assert reader.count() == len(want)
            assert rebuilt(reader).rebuilt == 4
            assert reader.compact(progress=False).rows == len(want)


def test_other_parts_are_fetched_once(tmp_path: Path, key: CollectionKey) -> None:
    """Hints, row tables and payloads are the same, and stay in caches when the old segments go."""
    with lying_client() as (client, transport):
        made = filled(client, key)
        want = everything(made)
        forget_parts(client)
        client._cache = type(client._cache)(tmp_path)
        reader = client.open_collection("c", key=key)
        assert everything(reader) == want
        rebuilt(made)
        transport.requests.clear()
        assert everything(reader) == want
        kinds = [r.kind for r in transport.requests if isinstance(r, pb.ReadSegmentPartRequest)]
        assert kinds == [pb.PART_KIND_FINGERPRINT] * 3
        assert len(list(tmp_path.iterdir())) == 3 * 3 + 2
        transport.requests.clear()
        assert everything(client.open_collection("c", key=key)) == want
        assert not [r for r in transport.requests if isinstance(r, pb.ReadSegmentPartRequest)]


def test_tenseal_has_none(key: CollectionKey) -> None:
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=2, key=key, engine="tenseal")
        made.insert([1], ROWS[:1, :2] / np.linalg.norm(ROWS[0, :2]))
        with pytest.raises(InvalidInput, match="verifies no answers"):
            made.reseal_fingerprints()


def test_an_empty_collection(key: CollectionKey) -> None:
    with Client(":memory:") as client:
        made = client.create_collection("c", dim=DIM, key=key)
        assert (rebuilt(made).rebuilt, made.version) == (0, 1)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = CollectionKey.generate()
    key.save(tmp_path / "key", "words")
    (tmp_path / "p").write_text("words\n")
    with Client(tmp_path / "data") as client:
        filled(client, key)
    command = ["reseal", "c", "--key", str(tmp_path / "key"), "--passphrase-file", str(tmp_path / "p")]
    command += ["--server", f"{tmp_path}/data"]

    def run(*more: str, code: int = 0) -> str:
        assert main([*command, *more]) == code
        shown = capsys.readouterr()
        return shown.out or shown.err

    assert "0 of 3 segments" in run("--fingerprint") and "--all" in run("--fingerprint")
    assert json.loads(run("--fingerprint", "--all", "--json"))["rebuilt"] == 3
    assert "3 of 3 segments" in run("--fingerprint", "--all")
    assert "--fingerprint" in run("--all", "--new-key", str(tmp_path / "new"), code=2)
    assert "--new-key" in run("--fingerprint", "--journal", str(tmp_path / "j"), code=2)
    for wrong in ([], ["--fingerprint", "--new-key", "x"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])


# ---- nothing that was altered is vouched for -----------------------------------------------------------------
KINDS = (pb.PART_KIND_INDEX, pb.PART_KIND_HINT, pb.PART_KIND_ROWS, pb.PART_KIND_PAYLOADS)


@pytest.mark.parametrize("kind", KINDS, ids=[pb.PartKind.Name(kind) for kind in KINDS])
def test_altered_bytes_are_refused(key: CollectionKey, monkeypatch: pytest.MonkeyPatch, kind: pb.PartKind) -> None:
    """A canonical residue more or less is a ciphertext, too: the digest is what tells. Nothing is sent or committed,
    no weights are drawn where it is the index, and segments before it keep what they got."""
    drawn: list[int] = []
    with lying_client() as (client, transport):
        made = filled(client, key)
        want, version = everything(made), made.version
        target = made._state.current[1][1].id
        again = made._engine.fingerprint_again

        def counted(*arguments: Any) -> bytes:
            drawn.append(1)
            return again(*arguments)

        monkeypatch.setattr(made._engine, "fingerprint_again", counted)

        def altered(responses: list[pb.ReadSegmentPartResponse]) -> list[pb.ReadSegmentPartResponse]:
            request = transport.requests[-1]
            if (request.segment_id, request.kind) == (target, kind):
                raw = bytearray(responses[0].chunk)
                raw[0] ^= 1
                responses[0].chunk = bytes(raw)
            return responses

        forget_parts(client)
        made._store._parts._cache = client._cache
        transport.lies["ReadSegmentPart"] = altered
        transport.calls.clear()
        with pytest.raises(TamperedDataError, match="does not match its digest"):
            rebuilt(made)
        assert transport.calls.count("WriteSegment") == transport.calls.count("CommitManifest") == 1, "the first one's"
        assert len(drawn) == 1, "of the first segment"
        assert made.version == version + 1
        transport.lies.clear()
        assert everything(made) == want
        assert rebuilt(made).rebuilt == 3


def test_a_segment_of_the_manifest_that_is_lost(key: CollectionKey) -> None:
    with lying_client() as (client, transport):
        made = filled(client, key)

        def lost(_: Any) -> Any:
            raise NotFound("segment: no such segment")

        transport.lies["ReadSegmentPart"] = lost
        with pytest.raises(TamperedDataError, match="no longer has"):
            rebuilt(made)


# ---- others write meanwhile, and ends -------------------------------------------------------------------------
ALL = set(range(120)) - {3, 41, 79}
MEANWHILE: dict[str, tuple[Callable[[Collection], object], set[int]]] = {
    "delete": (lambda c: c.delete([5, 90]), ALL - {5, 90}),
    "upsert": (lambda c: c.upsert([5, 125], ROWS[:2], progress=False), ALL | {125}),
    "insert": (lambda c: c.insert([3], ROWS[:1], progress=False), ALL | {3}),
    "delete a segment": (lambda c: c.delete(sorted(ALL & set(range(40)))), ALL - set(range(40))),
    "compact": (lambda c: c.compact(progress=False), ALL),
    "rebuild": (rebuilt, ALL),
    "rebuild and delete": (lambda c: (rebuilt(c), c.delete([5])), ALL - {5}),
}


@pytest.mark.parametrize("moment", ["fingerprint_again", "upload", "commit"])
@pytest.mark.parametrize("what", MEANWHILE)
def test_others_write_meanwhile(key: CollectionKey, what: str, moment: str) -> None:
    """Between the choice and the download, between that and the upload, between that and the commit."""
    action, want = MEANWHILE[what]
    with Client(":memory:") as client:
        one = filled(client, key)
        two = client.open_collection("c", key=key)
        target: Any = one._state if moment == "commit" else one._store
        setattr(target, moment, before(getattr(target, moment), lambda: action(two)))
        rebuilt(one)
        for reader in (one, two, client.open_collection("c", key=key)):
            assert {hit.id for hit in reader.search(QUERIES[0], k=200)} == want
            assert reader.count() == len(want)
        assert everything(one) == everything(two)
        assert rebuilt(two).rebuilt == client.describe("c").segments


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_end_at_any_call(key: CollectionKey, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """The client dies at its n-th call to the server, or when that was answered; for every n. The next one takes up
    what is worn still, and that alone."""
    monkeypatch.setattr(rejections, "MAX", 1)

    def run(fatal: int) -> bool:
        with lying_client() as (client, transport):
            made = filled(client, key)
            want, places = everything(made), deleted(made)
            made._rejections.add(made._state.manifest.message.segments)
            old = parts(made)
            with dying(transport, fatal, after) as ended:
                rebuilt(made, everything=False)
            reader = client.open_collection("c", key=key)
            left = sum(one == other for one, other in zip(parts(reader), old, strict=True))
            assert rebuilt(reader, everything=False).rebuilt == left
            assert everything(reader) == want and deleted(reader) == places
            assert not any(one == other for one, other in zip(parts(reader), old, strict=True))
            assert client.describe("c").segments == 3
            return bool(ended)

    calls = 1
    while run(calls):
        calls += 1
    assert calls > 3 * 4


def test_a_lost_reply_is_one_commit(key: CollectionKey) -> None:
    with lying_client() as (client, transport):
        one = filled(client, key)
        two = client.open_collection("c", key=key)
        version = one.version

        def lost(_: Any) -> Any:
            transport.lies.clear()
            two.delete([5])
            raise Unavailable("the connection broke")

        transport.lies["CommitManifest"] = lost
        assert rebuilt(one).rebuilt == 3
        assert one.version == version + 4
        assert everything(one) == everything(two)

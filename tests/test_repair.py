"""Repair: what a damaged server still has is kept, what it lost is named, and nothing happens unasked."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import (
    Client,
    Collection,
    CollectionKey,
    Conflict,
    HesearchError,
    NotFound,
    RollbackError,
    TamperedDataError,
)
from he_client.cli import main
from he_client.upkeep.repair import Repairer
from he_proto.v1 import hesearch_pb2 as pb
from tests.conftest import unit_rows
from tests.lying_fixture import lying_client
from tests.sdk_fixture import grpc_address

DIM = 8
ROWS = unit_rows(np.random.default_rng(3), 40, DIM)
QUERY = unit_rows(np.random.default_rng(4), 1, DIM)[0]
SECOND = range(20, 40)


@pytest.fixture
def key() -> CollectionKey:
    return CollectionKey.generate()


def fill(client: Client, key: CollectionKey, **options: Any) -> list[bytes]:
    """Two segments, with payloads; a row of the second deleted. Their ids."""
    made = client.create_collection("c", dim=DIM, key=key, **options)
    for ids in (list(range(20)), list(SECOND)):
        made.insert(ids, ROWS[ids], payloads=[f"text {i}" for i in ids])
    made.delete([25])
    return [s.id for s in made._state.current[1]]


def damage(folder: Path, segment_id: bytes, kind: pb.PartKind | None) -> None:
    """Flip a bit of a part on the disk; None: of the header."""
    (path,) = [p for p in folder.rglob("*") if p.is_file() and p.name.startswith(segment_id.hex())]
    content = bytearray(path.read_bytes())
    offset = 50
    if kind is not None:
        table = [struct.unpack_from("<IIQQ32s", content, 104 + 56 * i) for i in range(content[12])]
        offset = next(at + length // 2 for number, _, at, length, _ in table if number == kind)
    content[offset] ^= 4
    path.write_bytes(content)


def hits(collection: Collection) -> dict[Any, tuple[float, Any]]:
    return {hit.id: (hit.score, hit.payload) for hit in collection.search(QUERY, k=100)}


def test_a_sound_collection_is_left_alone(key: CollectionKey) -> None:
    with lying_client() as (client, transport):
        fill(client, key)
        transport.calls.clear()
        report = client.repair_collection("c", key=key, confirm=True)
        assert (report.segments, report.damaged, report.repaired, report.version) == (2, 0, False, 4)
        assert not {"CommitManifest", "WriteSegment"} & {*transport.calls}


@pytest.mark.parametrize(
    ("kind", "restart"),
    [
        (pb.PART_KIND_INDEX, False),
        (pb.PART_KIND_HINT, False),
        (pb.PART_KIND_ROWS, False),
        (pb.PART_KIND_FINGERPRINT, False),
        (pb.PART_KIND_PAYLOADS, False),
        (pb.PART_KIND_HINT, True),
        (None, True),
    ],
)
def test_each_kind_of_damage_costs_what_it_must(
    kind: pb.PartKind | None, restart: bool, key: CollectionKey, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    options = {"metric": "l2", "norm_bound": 1.0} if kind == pb.PART_KIND_HINT else {}
    client = Client(folder)
    ids = fill(client, key, **options)
    before = hits(client.open_collection("c", key=key))
    if restart:
        client.close()
    damage(folder, ids[1], kind)
    if restart:
        client = Client(folder)
        with pytest.raises(TamperedDataError):
            client.open_collection("c", key=key)  # the server has noticed it, and gives the other parts all the same
    client._cache = type(client._cache)(None)
    live = [i for i in SECOND if i != 25]
    lost = live if kind in (pb.PART_KIND_INDEX, pb.PART_KIND_ROWS, None) else []
    named = live if kind == pb.PART_KIND_INDEX else []
    payloads = 19 if kind == pb.PART_KIND_PAYLOADS else 0
    with client:
        report = client.repair_collection("c", key=key, confirm=True)
        assert (report.damaged, report.lost_rows, report.lost_ids, report.lost_payloads, report.repaired) == (
            1, len(lost), named, payloads, True
        )  # fmt: skip
        assert report.version == 5
        again = client.open_collection("c", key=key)
        expected = {i: hit for i, hit in before.items() if i not in lost}
        if payloads:
            expected |= {i: (expected[i][0], None) for i in live}
        assert hits(again) == expected
        assert client.repair_collection("c", key=key).damaged == 0
        again.insert([25, *lost], ROWS[[25, *lost]])  # the ids are free


@pytest.mark.parametrize("restart", [False, True])
def test_an_import_of_what_is_there_heals_what_is_damaged(restart: bool, key: CollectionKey, tmp_path: Path) -> None:
    folder, archive = tmp_path / "data", tmp_path / "archive"
    client = Client(folder)
    ids = fill(client, key)
    before = hits(client.open_collection("c", key=key))
    client.export_collection("c", archive)
    damage(folder, ids[1], pb.PART_KIND_INDEX)
    if restart:
        client.close()
        client = Client(folder)
    client._cache = type(client._cache)(None)
    with client:
        assert client.repair_collection("c", key=key).damaged == 1
        assert client.import_collection(archive).existed == 1
        assert hits(client.open_collection("c", key=key)) == before
        assert client.repair_collection("c", key=key).damaged == 0
        assert client.import_collection(archive).existed == 2


def test_unconfirmed_it_says_and_changes_nothing(key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path) as client:
        ids = fill(client, key)
        collection = client.open_collection("c", key=key)
        described = client.describe("c")
        damage(tmp_path, ids[1], pb.PART_KIND_INDEX)
        report = collection.repair()
        assert (report.damaged, report.lost_rows, report.repaired) == (1, 19, False)
        assert client.describe("c") == described
        assert collection.repair(confirm=True).lost_ids == [i for i in SECOND if i != 25]
        assert collection.count() == 20 and len(hits(collection)) == 20  # the open one goes on


def test_a_row_table_that_is_cached_here_saves_the_rows(key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path / "data", cache=tmp_path / "cache") as client:
        ids = fill(client, key)
        damage(tmp_path / "data", ids[1], pb.PART_KIND_ROWS)
        report = client.repair_collection("c", key=key, confirm=True)
        assert (report.damaged, report.lost_rows, report.lost_payloads, report.repaired) == (1, 0, 0, True)
        assert len(hits(client.open_collection("c", key=key))) == 39


def test_all_segments_lost_leave_an_empty_collection(key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path) as client:
        for segment_id in fill(client, key):
            damage(tmp_path, segment_id, pb.PART_KIND_INDEX)
        assert client.repair_collection("c", key=key, confirm=True).lost_rows == 39
        assert client.open_collection("c", key=key).count() == 0


def test_another_writer_in_between_is_a_conflict(key: CollectionKey) -> None:
    def refuse(_: list[Any]) -> list[Any]:
        raise TamperedDataError("damaged")

    with lying_client() as (client, transport):
        fill(client, key)
        writer = client.open_collection("c", key=key)

        def write() -> None:
            transport.before.clear()
            writer.delete([1])

        transport.lies["ReadSegmentPart"] = refuse
        transport.before["CommitManifest"] = write
        with pytest.raises(Conflict):
            client.repair_collection("c", key=key, confirm=True)
        transport.lies.clear()
        assert client.open_collection("c", key=key).count() == 38


@pytest.mark.parametrize("confirm", [False, True])
def test_a_compaction_meanwhile_is_no_damage(
    confirm: bool, key: CollectionKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone is elsewhere: the new segments are examined, and a damaged one among them is found."""
    with (
        grpc_address(tmp_path) as address,
        Client(address, insecure=True) as one,
        Client(address, insecure=True) as two,
    ):
        made = one.create_collection("c", dim=DIM, key=key)
        for first in range(0, 40, 10):
            made.insert(range(first, first + 10), ROWS[first : first + 10])
        other = two.open_collection("c", key=key)
        examined: list[bytes] = []
        honest = Repairer._examine

        def examine(self: Repairer, entry: pb.SegmentEntry, *rest: Any) -> Any:
            if len(examined) == 1:
                other.compact()
            if len(examined) == 2 and confirm:
                damage(tmp_path, other._state.current[1][0].id, pb.PART_KIND_INDEX)
            examined.append(entry.segment_id)
            return honest(self, entry, *rest)

        monkeypatch.setattr(Repairer, "_examine", examine)
        report = one.repair_collection("c", key=key, confirm=confirm)
        assert (report.segments, report.damaged, report.lost_rows) == (1, int(confirm), 40 * confirm)
        assert len(examined) == 3
        assert other.count() == 40 - 40 * confirm


def test_segments_that_always_go_are_a_conflict(key: CollectionKey, monkeypatch: pytest.MonkeyPatch) -> None:
    with lying_client() as (client, transport):
        fill(client, key)
        writer = client.open_collection("c", key=key)

        def gone(_: list[Any]) -> list[Any]:
            transport.lies.clear()
            for segment in list(writer._state.current[1]):
                writer.upsert(list(segment.table.ids), ROWS[: len(segment.table.ids)])
            transport.lies["ReadSegmentPart"] = gone
            raise NotFound("gone")

        transport.lies["ReadSegmentPart"] = gone
        monkeypatch.setattr("he_client.upkeep.repair.MAX_ROUNDS", 2)
        with pytest.raises(Conflict, match="changes faster than it can be examined"):
            client.repair_collection("c", key=key)


def test_an_older_manifest_is_not_repaired(key: CollectionKey) -> None:
    with lying_client() as (client, transport):
        fill(client, key)
        collection = client.open_collection("c", key=key)
        request = pb.ReadManifestRequest(context=client._describe("c").context)
        older = transport.honest.call("ReadManifest", request, timeout_s=1.0)
        collection.delete([1])
        transport.lies["ReadManifest"] = lambda _: older
        transport.calls.clear()
        with pytest.raises(RollbackError):
            collection.repair(confirm=True)
        assert transport.calls == ["ReadManifest"]


def test_tenseal_is_repaired_too(key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path) as client:
        made = client.create_collection("c", dim=2, key=key, engine="tenseal")
        made.insert(range(5), unit_rows(np.random.default_rng(0), 5, 2), payloads=["x"] * 5)
        damage(tmp_path, made._state.current[1][0].id, pb.PART_KIND_PAYLOADS)
        client._cache = type(client._cache)(None)
        report = client.repair_collection("c", key=key, confirm=True)
        assert (report.lost_rows, report.lost_payloads) == (0, 5)
        found = client.open_collection("c", key=key).search(np.array([1.0, 0.0]), k=9)
        assert [hit.payload for hit in found] == [None] * 5


# ---- the command line ----------------------------------------------------------------------------------------
def test_the_four_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text("passphrase\n")
    for name in ("one.key", "two.key"):
        CollectionKey.generate().save(tmp_path / name, "passphrase")
    key = ["--key", str(tmp_path / "one.key"), "--passphrase-file", str(tmp_path / "p")]
    new = ["--new-key", str(tmp_path / "two.key"), "--new-passphrase-file", str(tmp_path / "p")]

    def run(*arguments: str, code: int = 0) -> Any:
        assert main([*arguments, "--json"]) == code
        out = capsys.readouterr().out
        return json.loads(out) if out else None

    folder, file = tmp_path / "data", str(tmp_path / "c.archive")
    with grpc_address(folder) as address:
        server = ["--server", address, "--insecure"]
        with Client(address, insecure=True) as client:
            ids = fill(client, CollectionKey.load(tmp_path / "one.key", "passphrase"))
        assert run("export", "c", file, *server)["segments"] == 2
        run("export", "c", file, *server, code=4)
        assert run("import", file, *server)["existed"] == 2
        run("drop", "c", *server, "--yes")
        assert run("import", file, *server)["existed"] == 0
        damage(folder, ids[1], pb.PART_KIND_INDEX)
        assert run("repair", "c", *key, *server, code=1)["lost_rows"] == 19
        assert run("repair", "c", *key, *server, "--yes")["repaired"]
        assert run("repair", "c", *key, *server)["damaged"] == 0
        run("reseal", "c", *key, *server, *new[:1], key[1], *new[2:], code=2)
        done = run("reseal", "c", *key, *server, *new)
        assert (done["rows"], done["made"]) == (20, 1)
        assert run("reseal", "c", *key, *server, *new)["made"] == 0  # again: nothing is left to do
        run("repair", "c", *key, *server, code=5)
    assert not list(tmp_path.glob("*.reseal"))


def test_lost_ids_are_not_poured_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text("passphrase\n")
    key = CollectionKey.generate()
    key.save(tmp_path / "c.key", "passphrase")
    with Client(tmp_path / "data") as client:
        damage(tmp_path / "data", fill(client, key)[1], pb.PART_KIND_INDEX)
    file = tmp_path / "lost"
    access = [
        "--key",
        str(tmp_path / "c.key"),
        "--passphrase-file",
        str(tmp_path / "p"),
        "--server",
        f"{tmp_path}/data",
    ]

    def repair(*arguments: str, code: int = 1) -> list[str]:
        assert main(["repair", "c", *access, *arguments]) == code
        return capsys.readouterr().out.splitlines()

    lost = [str(i) for i in SECOND if i != 25]
    lines = repair()
    assert lines[0] == "c: 1 of 2 segments is damaged"
    assert "`hesearch fsck DATA --repair --from BACKUP`" in lines[1]
    assert lines[3:] == [
        *(f"  {row_id}" for row_id in lost[:10]),
        "  and 9 more; --lost-ids FILE writes them all",
        "nothing was changed; --yes goes on without what is lost, for good",
    ]
    assert f"  19 ids in {file}" in repair("--lost-ids", str(file))
    assert file.read_text().splitlines() == lost
    assert repair("--lost-ids", str(file), code=4) == []
    assert repair("--lost-ids", str(tmp_path / "none" / "lost"), "--yes", code=3) == []
    assert json.loads(repair("--json")[0])["lost_ids"] == [int(row_id) for row_id in lost]
    assert repair("--yes", code=0)[2:] == [*(f"  {row_id}" for row_id in lost), "repaired: version 5"]


def test_errors_tell_no_path_of_the_server(key: CollectionKey, tmp_path: Path) -> None:
    with Client(tmp_path / "data") as client:
        ids = fill(client, key)
        damage(tmp_path / "data", ids[0], pb.PART_KIND_INDEX)
        with pytest.raises(HesearchError) as caught:
            client.export_collection("c", tmp_path / "a")
        assert str(tmp_path / "data") not in str(caught.value)

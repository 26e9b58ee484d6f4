"""fsck of a catalogue in PostgreSQL: it finds every kind of damage, and changes nothing; what servers do is none."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import psycopg
import pytest

from he_client import Client, CollectionKey
from he_client.cli import main
from he_engine.errors import FormatVersionError, HesearchError, InvalidInput, NotFound, Unavailable, WrongKeyError
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_proto import wire
from he_server.config import ServerConfig
from he_server.operate import fsck_segments
from he_server.operate.fsck_remote import RemoteReport, check_remote
from he_server.operate.fsck_strays import listed_files
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from he_server.storage import postgres_reader
from he_server.storage.catalogue_rows import CollectionRecord, SegmentRecord
from he_server.storage.files import Listed
from he_server.storage.kek import KeyProvider, SecretKek, new_kek_file, open_kek
from he_server.storage.objects import Objects, name_of
from he_server.storage.postgres_reader import PostgresReader
from he_server.storage.segment_file import Description
from he_server.storage.store import Store
from tests.conftest import unit_rows
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import S3Server, s3, s3_server
from tests.store_fixture import COLLECTION, KEK, path_of, sha256

__all__ = ["postgres", "s3", "s3_server"]

NAME = "patients of ward 7"
CONTENTS = [[b"i" * 5000, b"h" * 100, b"", b"", b"p"], [b"j" * (3 << 20), b"h"], [b"k" * 9]]


def _record(collection_id: bytes = COLLECTION, name: str = NAME) -> CollectionRecord:
    parameters = Parameters.choose("compact", dim=16)
    message = wire.parameters_to_wire(parameters).SerializeToString(deterministic=True)
    return CollectionRecord(name, collection_id, message, parameters.digest, 1)


def _described(contents: list[bytes], collection_id: bytes = COLLECTION) -> Description:
    table = ((kind + 1, len(data), sha256(data)) for kind, data in enumerate(contents))
    return Description.of(collection_id, _record().parameter_digest, 2, table)


def _uploaded(store: Store, contents: list[bytes], collection_id: bytes = COLLECTION) -> bytes:
    description = _described(contents, collection_id)
    with store.upload(description) as upload:
        upload.write(b"".join(contents))
        upload.finish()
        upload.publish()
    return description.segment_id


class Deployment:
    """A server that goes on, where its rows and segments are, and who may do anything with those."""

    def __init__(self, root: Path, where: dict[str, str], kek: KeyProvider | None) -> None:
        self.root, self.where, self.kek = root, where, kek
        self.store = Store(root, kek=kek, **where)
        self.store.create(_record(), b"sealed", 10)
        self.live = [_uploaded(self.store, contents) for contents in CONTENTS]
        self.store.commit(_record(), 1, b"sealed 2", self.live)
        self.objects = Objects(where["segments"]) if "segments" in where else None

    def close(self) -> None:
        self.store.close()
        if self.objects:
            self.objects.close()

    def check(self, **more: Any) -> RemoteReport:
        return check_remote(self.root, **self.where, kek=self.kek, **more)

    def sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(self.where["catalogue"], autocommit=True) as db:
            db.execute("SET search_path = hesearch")
            found = db.execute(statement.encode(), values or None)
            return found.fetchall() if found.description else []

    # ---- files, or objects -----------------------------------------------------------------------------
    def record(self, number: int) -> SegmentRecord:
        found = self.store._catalogue.segment((COLLECTION, self.live[number]))
        assert found is not None
        return found

    def get(self, number: int) -> bytes:
        if self.objects:
            return bytes(obstore.get(self.objects._store, name_of(self.record(number))).bytes())
        return path_of(self.root, self.live[number]).read_bytes()

    def put(self, number: int, content: bytes) -> None:
        if self.objects:
            obstore.put(self.objects._store, name_of(self.record(number)), content)
        else:
            path_of(self.root, self.live[number]).write_bytes(content)

    def remove(self, number: int) -> None:
        if self.objects:
            obstore.delete(self.objects._store, name_of(self.record(number)))
        else:
            path_of(self.root, self.live[number]).unlink()

    def put_stray(self, name: str, content: bytes, age_s: float = 0.0) -> None:
        """age_s: in a folder alone; the storage has its own clock."""
        if self.objects:
            obstore.put(self.objects._store, name, content)
            return
        path = self.root / "segments" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))

    def state(self) -> dict[str, object]:
        """All that a check might change."""
        found: dict[str, object] = {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in self.root.rglob("*")
        }
        if self.objects:
            listed = (one for page in obstore.list(self.objects._store) for one in page)
            found |= {one["path"]: (one["e_tag"], one["last_modified"]) for one in listed}
        for table in ("folder", "collections", "segments", "commits", "changes"):
            found[table] = sorted(self.sql(f"SELECT * FROM {table}"))
        return found


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture(params=["objects", "folder"])
def where(request: pytest.FixtureRequest, postgres: PostgresServer, s3: S3Server) -> dict[str, str]:
    segments = {"segments": s3.new_bucket()} if request.param == "objects" else {}
    return {"catalogue": postgres.new_database()} | segments


@pytest.fixture
def deployment(tmp_path: Path, where: dict[str, str], kek: KeyProvider | None) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "data", where, kek)
    yield made
    made.close()


def _one(report: RemoteReport) -> str:
    (problem,) = report.problems
    assert not report.clean
    return problem


# ---- what is sound -------------------------------------------------------------------------------------------
def test_a_sound_store_is_clean_and_stays_as_it_is(deployment: Deployment) -> None:
    before = deployment.state()
    told: list[tuple[int, int]] = []
    report = deployment.check(progress=lambda done, total: told.append((done, total)))
    assert deployment.state() == before
    assert (report.clean, report.problems, report.repaired, report.leftovers) == (True, [], [], [])
    assert (report.collections, report.segments, report.retired, report.strays) == (1, 3, 0, 0)
    assert report.checked_bytes == sum(_described(contents).file_bytes for contents in CONTENTS)
    assert report.sealed == (deployment.kek is not None)
    stored = sum(len(b"".join(contents)) for contents in CONTENTS)
    assert told[-1] == (stored, stored) and len(told) == 3


def test_many_rows_are_read_in_pages(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_reader, "_COLLECTIONS", 2)
    monkeypatch.setattr(postgres_reader, "_SEGMENTS", 3)
    for number in range(4):
        collection_id = bytes([number]) * 16
        deployment.store.create(_record(collection_id, f"another {number}"), b"sealed", 10)
        for content in (b"1", b"2"):
            _uploaded(deployment.store, [content], collection_id)
    report = deployment.check()
    assert (report.clean, report.collections, report.segments) == (True, 5, 11)


def test_a_role_that_may_only_read_is_enough(deployment: Deployment) -> None:
    name = deployment.where["catalogue"].partition("@/")[2].partition("?")[0]
    reader = f"reader_{name}"
    deployment.sql(f"CREATE ROLE {reader} LOGIN")
    deployment.sql(f"GRANT USAGE ON SCHEMA hesearch TO {reader}")
    deployment.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA hesearch TO {reader}")
    deployment.where["catalogue"] = deployment.where["catalogue"].replace("//hesearch@", f"//{reader}@")
    assert deployment.check().clean


def test_nothing_can_be_written_by_it(deployment: Deployment) -> None:
    reader = PostgresReader(deployment.where["catalogue"])
    with pytest.raises(Unavailable, match="25006"), reader.transaction() as db:
        db.execute("DELETE FROM segments")
    reader.close()


# ---- damaged segments ----------------------------------------------------------------------------------------
def test_a_flipped_bit_is_found(deployment: Deployment) -> None:
    content = deployment.get(1)
    for position in (0, 50, 100, 200, 4000, 4096, 5000, len(content) - 1):
        altered = bytearray(content)
        altered[position] ^= 16
        deployment.put(1, bytes(altered))
        before = deployment.state()
        problem = _one(deployment.check())
        assert deployment.live[1].hex() in problem and "(live)" in problem and "hesearch repair" in problem
        assert deployment.state() == before
    deployment.put(1, content)
    assert deployment.check().clean


def test_another_length_is_found(deployment: Deployment) -> None:
    content = deployment.get(2)
    for altered in (b"", content[:-1], content + b"\0", content + bytes(100_000)):
        deployment.put(2, altered)
        assert deployment.live[2].hex() in _one(deployment.check())


def test_a_missing_one_is_found(deployment: Deployment) -> None:
    deployment.remove(0)
    assert deployment.live[0].hex() in _one(deployment.check())


def test_another_segment_in_its_place_is_found(deployment: Deployment) -> None:
    deployment.put(0, deployment.get(2))
    problem = _one(deployment.check())
    assert deployment.live[0].hex() in problem and "another segment's" in problem


def test_every_damaged_one_is_named(deployment: Deployment) -> None:
    not_live = _uploaded(deployment.store, [b"nobody named it"])
    deployment.live.append(not_live)
    for number in (0, 2, 3):
        deployment.put(number, b"x")
    problems = deployment.check().problems
    damaged = {deployment.live[number] for number in (0, 2, 3)}
    assert {next(one for one in damaged if one.hex() in problem) for problem in problems} == damaged
    assert [not_live.hex() in problem for problem in problems] == ["(not live)" in problem for problem in problems]


# ---- damaged rows --------------------------------------------------------------------------------------------
def _flip_cell(deployment: Deployment, table: str, column: str, where: str, value: bytes) -> None:
    ((cell,),) = deployment.sql(f"SELECT {column} FROM {table} WHERE {where} = %s", value)
    altered = bytearray(cell)
    altered[len(cell) // 2] ^= 1
    deployment.sql(f"UPDATE {table} SET {column} = %s WHERE {where} = %s", bytes(altered), value)


@pytest.mark.parametrize("column", ["state", "manifest"])
def test_a_damaged_row_of_a_collection(deployment: Deployment, column: str) -> None:
    _flip_cell(deployment, "collections", column, "collection_id", COLLECTION)
    first, second = deployment.check().problems
    assert COLLECTION.hex() in first and "its row is damaged" in first
    assert "3 segments belong to collections whose rows are damaged or gone" in second


def test_a_damaged_row_of_a_segment(deployment: Deployment) -> None:
    _flip_cell(deployment, "segments", "cell", "segment_id", deployment.live[1])
    report = deployment.check()
    assert all(deployment.live[1].hex() in problem for problem in report.problems)
    assert "its row is damaged" in report.problems[0] and "it is live and has no row" in report.problems[1]
    assert report.strays == 1, "nothing sound names it"


def test_a_row_that_is_gone_or_another_ones(deployment: Deployment) -> None:
    ((cell,),) = deployment.sql("SELECT cell FROM segments WHERE segment_id = %s", deployment.live[0])
    deployment.sql("UPDATE segments SET cell = %s WHERE segment_id = %s", cell, deployment.live[2])
    deployment.sql("DELETE FROM segments WHERE segment_id = %s", deployment.live[1])
    problems = "\n".join(deployment.check().problems)
    assert problems.count("it is live and has no row") == 2 and problems.count("its row is damaged") == 1


def test_a_row_that_says_something_else(deployment: Deployment) -> None:
    """Sealed, or with its digest, by a server of ours."""
    catalogue, record = deployment.store._catalogue, deployment.record(0)
    for altered in (replace(record, blocks=3), replace(record, stored_bytes=5100), replace(record, index_bytes=1)):
        with catalogue._file.transaction() as db:
            catalogue._file.write_segment(db, altered, 0.0)
        assert "its row says something else of it" in _one(deployment.check())


def test_parameters_that_are_others(deployment: Deployment) -> None:
    other = b"o" * 16
    deployment.store.create(replace(_record(other, "other"), parameters=b"parameters"), b"sealed", 10)
    assert _one(deployment.check()).startswith(f"collection {other.hex()}: its parameters: ")
    state = deployment.store._catalogue.state(other)
    message = wire.parameters_to_wire(Parameters.choose("exact", dim=8)).SerializeToString(deterministic=True)
    catalogue = deployment.store._catalogue
    with catalogue._file.transaction() as db:
        catalogue._file.write_state(db, replace(state, record=replace(state.record, parameters=message)))
    assert "their digest is another than the row's" in _one(deployment.check())


@pytest.mark.parametrize("kek", [KEK], ids=["sealed"])
def test_a_data_key_that_is_gone(deployment: Deployment) -> None:
    catalogue = deployment.store._catalogue
    with catalogue._file.transaction() as db:
        catalogue._file.write_state(db, replace(catalogue.state(COLLECTION), keys=()))
    problems = deployment.check().problems
    assert len(problems) == 3
    assert all("the data key of generation 1 is gone" in problem for problem in problems)


# ---- what has no row -----------------------------------------------------------------------------------------
def test_strays_are_counted_and_no_damage(deployment: Deployment) -> None:
    suffix = f".0.{bytes(16).hex()}" if deployment.objects else ""
    deployment.put_stray(f"{COLLECTION.hex()}/{bytes(32).hex()}{suffix}", b"garbage", age_s=7200.0)
    deployment.put_stray(f"{bytes(16).hex()}/{deployment.live[0].hex()}{suffix}", b"more")
    if deployment.objects:
        deployment.put_stray(f"another/{COLLECTION.hex()}/x", b"not ours")
    report = deployment.check()
    assert (report.clean, report.strays, report.stray_bytes) == (True, 2, 11)
    (text,) = report.leftovers
    assert text.startswith("2 objects" if deployment.objects else "2 files")
    if not deployment.objects:
        assert 7200 <= report.oldest_stray_s < 7200 + 600 and "the oldest 2.0 hours old" in text
    else:
        assert report.oldest_stray_s < 600


def test_what_comes_while_it_lists_is_no_stray(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    collections = PostgresReader.collections
    calls = []

    def later(self: PostgresReader) -> Iterator[tuple[bytes, bytes, bytes]]:
        yield from collections(self)
        calls.append(_uploaded(deployment.store, [b"after the snapshot"]))

    monkeypatch.setattr(PostgresReader, "collections", later)
    report = deployment.check()
    assert (len(calls), report.clean, report.segments, report.strays) == (1, True, 3, 0)


# ---- while servers run ---------------------------------------------------------------------------------------
def _before_the_first_fetch(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Rows are read and strays counted by then."""
    verified = fsck_segments.SegmentCheck._verified
    monkeypatch.setattr(fsck_segments, "AT_ONCE", 1)
    pending = [act]

    def interrupted(self: Any, *row: Any) -> int:
        while pending:
            pending.pop()()
            if deployment.objects:
                deployment.store._segments._removals.submit(lambda: None).result()  # type: ignore[attr-defined]
        return verified(self, *row)

    monkeypatch.setattr(fsck_segments.SegmentCheck, "_verified", interrupted)


def test_what_is_retired_meanwhile_is_no_damage(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        deployment.store.commit(_record(), 2, b"sealed 3", deployment.live[:1])

    _before_the_first_fetch(deployment, monkeypatch, act)
    report = deployment.check()
    assert (report.clean, report.segments, report.retired) == (True, 3, 2)
    assert report.checked_bytes == _described(CONTENTS[0]).file_bytes


def test_what_is_dropped_meanwhile_is_no_damage(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    _before_the_first_fetch(deployment, monkeypatch, lambda: deployment.store.drop(_record()))
    report = deployment.check()
    assert (report.clean, report.retired, report.checked_bytes) == (True, 3, 0)


@pytest.mark.parametrize("kek", [KEK], ids=["sealed"])
@pytest.mark.parametrize("sound", [True, False])
def test_another_data_key_meanwhile(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, sound: bool) -> None:
    """The new file is checked, and found where it is damaged."""

    def act() -> None:
        deployment.store.data_keys.add(COLLECTION)
        for record in deployment.store.data_keys.outdated(COLLECTION):
            assert deployment.store.data_keys.reseal(record)
        deployment.store.data_keys.drop_old(COLLECTION)
        if not sound:
            deployment.put(1, b"x" * 5000)

    _before_the_first_fetch(deployment, monkeypatch, act)
    report = deployment.check()
    assert report.retired == 0
    if sound:
        assert report.clean
        assert report.checked_bytes == sum(_described(contents).file_bytes for contents in CONTENTS)
    else:
        assert deployment.live[1].hex() in _one(report)


def test_what_is_sent_again_meanwhile(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was missing when the rows were read, and its client repaired it."""
    deployment.remove(0)
    deployment.store.close()
    if deployment.objects:
        shutil.rmtree(deployment.root / "segments")
    deployment.store = Store(deployment.root, kek=deployment.kek, **deployment.where)
    if deployment.objects:
        with pytest.raises(HesearchError):
            deployment.store.snapshot(_record(), 2)
    _before_the_first_fetch(deployment, monkeypatch, lambda: _uploaded(deployment.store, CONTENTS[0]))
    report = deployment.check()
    assert report.clean
    assert report.checked_bytes == sum(_described(contents).file_bytes for contents in CONTENTS)


def test_a_collection_that_goes_while_files_are_listed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "segment").touch()
    (tmp_path / "c").touch()
    listed = listed_files(tmp_path)
    assert next(listed).name == "a/segment"
    shutil.rmtree(tmp_path / "b")
    assert list(listed) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_while_a_server_inserts_compacts_and_drops(tmp_path: Path, where: dict[str, str], sealed: bool) -> None:
    """Each check of whatever there is then is clean. Two servers, where two can be."""
    settings: dict[str, Any] = dict(where)
    if sealed:
        new_kek_file(tmp_path / "kek")
        settings["kek"] = f"file:{tmp_path / 'kek'}"
    kek = open_kek(settings["kek"]) if sealed else None
    vectors = unit_rows(np.random.default_rng(7), 60, 16)
    names, stop, failed = itertools.count(), threading.Event(), list[BaseException]()

    def write(client: Client) -> None:
        try:
            while not stop.is_set():
                number = next(names)
                collection = client.create_collection(f"notes-{number}", dim=16, key=CollectionKey.generate())
                for start in (0, 20, 40):
                    collection.insert(range(start, start + 20), vectors[start : start + 20], progress=False)
                collection.compact(progress=False)
                if number % 2:
                    client.drop_collection(f"notes-{number}")
        except BaseException as error:
            failed.append(error)

    with ExitStack() as opened:
        writers = []
        for folder in ("data", "other") if "segments" in where else ("data",):
            config = ServerConfig(data=tmp_path / folder, listen="127.0.0.1:0", insecure=True, threads=1, **settings)
            server = GrpcServer(opened.enter_context(Service(config)))
            opened.callback(server.stop, 0)
            client = opened.enter_context(Client(server.address, insecure=True))
            writers.append(threading.Thread(target=write, args=(client,)))
        for writer in writers:
            writer.start()
        reports = []
        try:
            while not failed and (len(reports) < 10 or reports[-1].collections < 4):
                reports.append(check_remote(tmp_path / "data", **where, kek=kek))
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    assert not failed, failed
    assert [report.problems for report in reports if not report.clean] == []
    assert sum(report.checked_bytes for report in reports)


# ---- memory, and what is away --------------------------------------------------------------------------------
@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
@pytest.mark.parametrize("where", ["objects"], indirect=True)
def test_objects_take_turns_for_memory(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr(fsck_segments, "MEMORY_BYTES", memory_bytes)
    read, running, most = Objects.read, [0], [0]

    def counted(self: Objects, record: SegmentRecord, length_bytes: int) -> Iterator[Any]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        yield from read(self, record, length_bytes)
        running[0] -= 1

    monkeypatch.setattr(Objects, "read", counted)
    assert deployment.check().clean
    assert most[0] == 1 if memory_bytes == 1 else 1 < most[0] <= fsck_segments.AT_ONCE


@pytest.mark.parametrize("where", ["objects"], indirect=True)
def test_what_is_too_long_is_not_fetched(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment.put(2, bytes(1 << 20))
    read, fetched = Objects.read, []

    def noted(self: Objects, record: SegmentRecord, length_bytes: int) -> Iterator[Any]:
        fetched.append(record.segment_id)
        return read(self, record, length_bytes)

    monkeypatch.setattr(Objects, "read", noted)
    assert "got 1048576 bytes" in _one(deployment.check())
    assert sorted(fetched) == sorted(deployment.live[:2])


@pytest.mark.parametrize("where", ["objects"], indirect=True)
@pytest.mark.parametrize("damaged", [False, True])
def test_storage_that_goes_away(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, damaged: bool) -> None:
    """It is no damage; what was found before is told, and that the rest was not looked at."""
    first, last = min(range(3), key=deployment.live.__getitem__), max(range(3), key=deployment.live.__getitem__)
    if damaged:
        deployment.put(first, b"x")
    size_bytes = Objects.size_bytes

    def away(self: Objects, record: SegmentRecord) -> int:
        if record.segment_id == deployment.live[last]:
            raise Unavailable("storage: it is away")
        return size_bytes(self, record)

    monkeypatch.setattr(Objects, "size_bytes", away)
    if not damaged:
        with pytest.raises(Unavailable, match="it is away"):
            deployment.check()
        return
    problem, ended = deployment.check().problems
    assert deployment.live[first].hex() in problem
    assert ended == "1 segments were not checked: storage: it is away"


# ---- what is refused -----------------------------------------------------------------------------------------
def test_the_key_must_be_right(deployment: Deployment) -> None:
    if deployment.kek is None:
        assert check_remote(deployment.root, **deployment.where, kek=KEK).clean, "a key that is not needed"
        return
    with pytest.raises(InvalidInput, match="is sealed; give the key"):
        check_remote(deployment.root, **deployment.where)
    with pytest.raises(WrongKeyError):
        check_remote(deployment.root, **deployment.where, kek=SecretKek(RootKey(bytes(31) + b"x")))


@pytest.mark.parametrize("kek", [None], ids=["unsealed"])
def test_what_does_not_belong_together(
    deployment: Deployment, tmp_path: Path, postgres: PostgresServer, s3: S3Server
) -> None:
    other = tmp_path / "other"
    with_objects = deployment.objects is not None
    other_where = {"catalogue": postgres.new_database()} | ({"segments": s3.new_bucket()} if with_objects else {})
    Store(other, **other_where).close()
    catalogue = {"catalogue": deployment.where["catalogue"]}
    wrong: list[tuple[Path, dict[str, str]]] = [(other, deployment.where), (deployment.root, other_where)]
    if with_objects:
        wrong += [(deployment.root, catalogue), (deployment.root, catalogue | {"segments": other_where["segments"]})]
        assert check_remote(tmp_path / "of no server", **deployment.where).clean
        with pytest.raises(NotFound, match="another bucket or prefix"):
            check_remote(tmp_path / "of no server", **catalogue, segments=s3.new_bucket())
    else:
        wrong += [(deployment.root, catalogue | {"segments": s3.new_bucket()})]
        with pytest.raises(NotFound, match="no server with a catalogue in PostgreSQL"):
            check_remote(tmp_path / "of no server", **deployment.where)
    for root, where in wrong:
        with pytest.raises((InvalidInput, NotFound)):
            check_remote(root, **where)


def test_a_database_without_a_catalogue_stays_so(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with pytest.raises(NotFound, match="this database has none"):
        check_remote(tmp_path, url)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT to_regnamespace('hesearch')").fetchone() == (None,)


@pytest.mark.parametrize("kek", [None], ids=["unsealed"])
def test_tables_of_another_version(deployment: Deployment) -> None:
    deployment.sql("UPDATE folder SET schema_version = 99")
    with pytest.raises(FormatVersionError, match="got schema version 99, expected 1"):
        deployment.check()


# ---- the command ---------------------------------------------------------------------------------------------
def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["fsck", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(tmp_path: Path, where: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Clean and damaged, as text and as JSON; neither a name nor a key is in what it says."""
    new_kek_file(tmp_path / "kek")
    spec = f"file:{tmp_path / 'kek'}"
    deployment = Deployment(tmp_path / "data", where, open_kek(spec))
    options = [text for name, value in where.items() for text in (f"--{name}", value)]
    code, out, _ = _run(capsys, "--data", deployment.root, *options, "--kek", spec)
    assert (code, out) == (0, "clean: 1 collections, 3 segments, 3.2 MB checked\n")
    assert _run(capsys, deployment.root, *options, "--kek", spec)[:2] == (code, out)
    assert _run(capsys, deployment.root, *options)[0] == 2, "no key"
    secrets = [key.secret.hex() for key in deployment.store.states()[0].keys] + [(tmp_path / "kek").read_bytes().hex()]
    deployment.put(0, b"x")
    _flip_cell(deployment, "segments", "cell", "segment_id", deployment.live[1])
    deployment.put_stray(f"{COLLECTION.hex()}/{bytes(32).hex()}.0.{bytes(16).hex()}", b"garbage")
    code, out, err = _run(capsys, deployment.root, *options, "--kek", spec)
    assert code == 9 and out.endswith("damaged: 1 collections, 2 segments, 0.0 MB checked\n")
    assert out.count("problem: ") == 3 and "(a server removes it when it is old)" in out
    code, printed, _ = _run(capsys, deployment.root, *options, "--kek", spec, "--json")
    found = json.loads(printed)
    assert code == 9 and (found["clean"], found["strays"], found["retired"]) == (False, 2, 0)
    for said in (out, err, printed):
        assert not [secret for secret in (*secrets, NAME, "ward") if secret in said]
    deployment.close()


@pytest.mark.parametrize("kek", [None], ids=["unsealed"])
def test_what_the_command_refuses(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    options = [text for name, value in deployment.where.items() for text in (f"--{name}", value)]
    before = deployment.state()
    refused = [
        ((*options, "--repair"), "in use by servers"),
        ((*options, "--repair", "--from", deployment.root), "in use by servers"),
        (("--segments", "s3://bucket"), "without --catalogue"),
        (("--catalogue", "postgresql://me:secret@host/db"), "got a password in it"),
        (("--catalogue", "mysql://host/db"), "expected postgresql://"),
        ((), "give it, and --segments of the server, too"),
    ]
    for more, text in refused:
        code, out, err = _run(capsys, deployment.root, *more)
        assert (code, out) == (2, "") and text in err and "secret" not in err
    with pytest.raises(SystemExit):
        main(["fsck", "--json"])
    assert deployment.state() == before


def test_listed_has_a_size(s3: S3Server) -> None:
    objects = Objects(s3.new_bucket())
    name = f"{bytes(16).hex()}/{bytes(32).hex()}.0.{bytes(16).hex()}"
    obstore.put(objects._store, name, b"12345")
    (one,) = objects.list()
    assert one == Listed(name, one.modified_s, 5)
    objects.close()

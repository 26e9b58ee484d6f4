"""Segments on object storage: what several servers see of one bucket, and what a damaged or missing object may do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import psycopg
import pytest

from he_client import Client, CollectionKey
from he_engine.engine import IndexFile
from he_engine.errors import Conflict, HesearchError, InvalidInput, NotFound, TamperedDataError, Unavailable
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from he_server.storage import files
from he_server.storage.causes import Causes
from he_server.storage.kek import KeyProvider
from he_server.storage.objects import Objects
from he_server.storage.remote_segments import RemoteSegments
from he_server.storage.segment_file import Description
from he_server.storage.store import Store
from tests import store_fixture
from tests.conftest import unit_rows
from tests.postgres_fixture import PostgresServer, postgres
from tests.s3_fixture import S3Server, s3, s3_server
from tests.store_fixture import COLLECTION, KEK, RECORD, described, path_of, uploaded

__all__ = ["postgres", "s3", "s3_server"]

_MB = 1 << 20
Open = Callable[..., Store]


@pytest.fixture
def where(postgres: PostgresServer, s3: S3Server) -> dict[str, str]:
    return {"catalogue": postgres.new_database(), "segments": s3.new_bucket()}


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture
def server(tmp_path: Path, where: dict[str, str], kek: KeyProvider | None) -> Iterator[Open]:
    """Opens the store as one more server does, with a data folder of its own: the first in a, the second in b, …"""
    with ExitStack() as opened:
        names = iter("abcdef")

        def one(**settings: Any) -> Store:
            store = Store(tmp_path / next(names), kek=kek, **where, **settings)
            opened.callback(store.close)
            return store

        yield one


@pytest.fixture
def bucket(where: dict[str, str]) -> Iterator[Any]:
    """As somebody who has its credentials sees it."""
    objects = Objects(where["segments"])
    yield objects._store
    objects.close()


def _names(bucket: Any, *stores: Store) -> list[str]:
    """Of all objects, when these have removed what they wanted to."""
    for store in stores:
        _remote(store)._removals.submit(lambda: None).result()
    return [found["path"] for page in obstore.list(bucket) for found in page if found["path"] != "catalogue.id"]


def _committed(store: Store, *contents: list[bytes]) -> list[bytes]:
    """A collection at version 2, in which these are live."""
    store.create(RECORD, b"sealed", 10)
    live = [uploaded(store, parts) for parts in contents]
    assert store.commit(RECORD, 1, b"sealed 2", live) == 2
    return live


def verify(store: Store, segment_id: bytes) -> Description:
    """See store_fixture; every call of a server begins by finding the collection."""
    store.find("notes")
    return store_fixture.verify(store, segment_id)


def _remote(store: Store) -> RemoteSegments:
    assert isinstance(store._segments, RemoteSegments)
    return store._segments


# ---- several servers -----------------------------------------------------------------------------------------
def test_what_one_stored_another_reads(server: Open, tmp_path: Path, bucket: Any) -> None:
    one, two = server(), server()
    live = _committed(one, [b"index" * 1000, b"hint"], [b"another", b"", b"rows"])
    assert len(_names(bucket)) == 2
    record = two.find("notes")
    assert not [*(tmp_path / "b" / "segments").rglob("*.*")]
    with two.snapshot(record, 2) as snapshot:
        assert [segment.description.segment_id for segment in snapshot.segments] == live
        with two.reading(snapshot.segments[0]) as index:
            assert index.length_bytes == 5000
    for segment, parts in zip(live, ([b"index" * 1000, b"hint"], [b"another", b"", b"rows"]), strict=True):
        assert verify(two, segment) == described(parts)
        assert path_of(tmp_path / "b", segment).exists()
    assert two.has((COLLECTION, live[0]))
    third = uploaded(two, [b"third"])
    assert one.commit(RECORD, 2, b"sealed 3", [*live, third]) == 3
    assert verify(one, third) == described([b"third"])


def test_a_lost_disk_loses_nothing(server: Open, tmp_path: Path) -> None:
    one = server()
    live = _committed(one, [b"index"], [b"another"])
    one.close()
    shutil.rmtree(tmp_path / "a")
    two = server()
    assert [verify(two, segment) for segment in live] == [described([b"index"]), described([b"another"])]


def test_who_reads_has_a_copy(server: Open, tmp_path: Path, bucket: Any) -> None:
    """The object goes at once, at other servers the copy when it is read no more."""
    one, two = server(), server()
    (segment,) = _committed(one, [b"index"])
    path = path_of(tmp_path / "b", segment)
    with two.snapshot(RECORD, 2) as snapshot:
        path = snapshot.segments[0].path
        assert one.commit(RECORD, 2, b"sealed 3", []) == 3
        assert _names(bucket, one) == []
        assert not path_of(tmp_path / "a", segment).exists()
        with pytest.raises(Conflict, match="at version 3"):
            two.snapshot(RECORD, 2)
        assert snapshot.segments[0].source.read(4096, 5) == b"index"
    assert not path.exists()


def test_a_segment_that_goes_before_it_is_fetched(server: Open) -> None:
    """The version is no more, and that is what the reader is told."""
    one, two = server(), server()
    _committed(one, [b"index"])
    objects = _remote(two)._objects
    size = objects.size_bytes

    def interrupted(record: Any) -> int:
        objects.size_bytes = size  # type: ignore[method-assign]
        one.commit(RECORD, 2, b"sealed 3", [])
        return size(record)

    objects.size_bytes = interrupted  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="its version is no more"):
        two.snapshot(RECORD, 2)
    two.snapshot(RECORD, 3).close()


@pytest.mark.parametrize("kek", [KEK], ids=["sealed"])
def test_a_segment_that_gets_another_key_before_it_is_fetched(server: Open, bucket: Any) -> None:
    one, two = server(), server()
    (segment,) = _committed(one, [b"index"])
    objects = _remote(two)._objects
    size = objects.size_bytes

    def interrupted(record: Any) -> int:
        objects.size_bytes = size  # type: ignore[method-assign]
        one.data_keys.add(COLLECTION)
        (outdated,) = one.data_keys.outdated(COLLECTION)
        assert one.data_keys.reseal(outdated)
        one.data_keys.drop_old(COLLECTION)
        return size(record)

    objects.size_bytes = interrupted  # type: ignore[method-assign]
    with two.snapshot(RECORD, 2) as snapshot:
        assert snapshot.segments[0].generation == one.states()[0].keys[-1].generation
    assert verify(two, segment) == described([b"index"])
    assert len(_names(bucket, one)) == 1


def test_one_segment_sent_to_two_servers(server: Open, bucket: Any) -> None:
    """One copy stays, the one that has the row."""
    one, two = server(), server()
    one.create(RECORD, b"sealed", 10)
    two.find("notes")
    with two.upload(described([b"index"])) as upload:
        upload.write(b"index")
        upload.finish()
        segment = uploaded(one, [b"index"])
        upload.publish()
    assert len(_names(bucket, two)) == 1
    assert two.commit(RECORD, 1, b"sealed 2", [segment]) == 2
    for store in (one, two):
        assert verify(store, segment) == described([b"index"])


def test_two_servers_serve_one_collection(tmp_path: Path, where: dict[str, str]) -> None:
    """Over gRPC, with a client of each: what one inserted, the other finds, and both may write."""
    key, rng = CollectionKey.generate(), np.random.default_rng(7)
    vectors = unit_rows(rng, 300, 16)
    with ExitStack() as opened:
        clients = []
        for name in "ab":
            config = ServerConfig(data=tmp_path / name, listen="127.0.0.1:0", insecure=True, threads=1, **where)  # type: ignore[arg-type]
            service = opened.enter_context(Service(config))
            server = GrpcServer(service)
            opened.callback(server.stop, 0)
            clients.append(opened.enter_context(Client(server.address, insecure=True)))
        first = clients[0].create_collection("notes", dim=16, key=key)
        first.insert(range(200), vectors[:200], progress=False)
        second = clients[1].open_collection("notes", key=key)
        second.insert(range(200, 300), vectors[200:], progress=False)
        for collection in (first, second):
            hits = collection.search(vectors[250], k=3)
            assert (hits[0].id, collection.count()) == (250, 300)
        first.delete([250])
        assert second.search(vectors[250], k=1)[0].id != 250
        first.compact(progress=False)
        assert second.search(vectors[17], k=1)[0].id == 17


# ---- the copies here -----------------------------------------------------------------------------------------
def test_what_was_unused_the_longest_makes_room(
    server: Open, tmp_path: Path, where: dict[str, str], kek: KeyProvider | None
) -> None:
    forgotten: list[IndexFile] = []
    one = server()
    contents = [[bytes([number]) * _MB] for number in range(4)]
    live = _committed(one, *contents)
    two = server(cache_bytes=int(2.5 * _MB), forget=lambda _, index: forgotten.append(index))

    def here() -> list[int]:
        return [number for number, segment in enumerate(live) if path_of(tmp_path / "b", segment).exists()]

    two.find("notes")
    for number in (0, 1):
        with two.segment(RECORD, live[number]) as snapshot, two.reading(snapshot.segments[0]):
            pass
    assert here() == [0, 1]
    with two.segment(RECORD, live[0]):
        assert verify(two, live[2]) == described(contents[2])
        assert (here(), len(forgotten)) == ([0, 2], 1)
        assert verify(two, live[3]) == described(contents[3])
        assert here() == [0, 3]
    with two.snapshot(RECORD, 2) as snapshot:
        assert here() == [0, 1, 2, 3], "a search needs all of them"
        assert [segment.source.read(4096, 1)[0] for segment in snapshot.segments] == [0, 1, 2, 3]
    assert verify(two, live[1]) == described(contents[1])
    two.close()
    again = Store(tmp_path / "b", kek=kek, cache_bytes=_MB, **where)
    assert verify(again, live[2]) == described(contents[2])
    assert len(here()) == 1
    again.close()


def test_a_copy_that_goes_while_it_is_asked_for(server: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader gets one that stays."""
    one = server()
    live = _committed(one, [b"0" * _MB], [b"1" * _MB])
    two = server(cache_bytes=int(1.5 * _MB))
    assert verify(two, live[0])
    remove, read = files.remove, list[Any]()
    reader = threading.Thread(target=lambda: read.append(verify(two, live[0])))

    def slow(path: Path) -> None:
        if path == path_of(tmp_path / "b", live[0]) and not reader.ident:
            reader.start()
            reader.join(0.5)
        remove(path)

    monkeypatch.setattr(files, "remove", slow)
    assert verify(two, live[1])
    reader.join()
    assert read == [described([b"0" * _MB])]
    assert path_of(tmp_path / "b", live[0]).exists()


def test_a_damaged_copy_is_fetched_again(server: Open) -> None:
    one = server()
    (segment,) = _committed(one, [b"index" * 1000])
    with one.segment(RECORD, segment) as snapshot:
        path = snapshot.segments[0].path
        raw = bytearray(path.read_bytes())
        raw[5000] ^= 1
        path.write_bytes(raw)
        one.damaged(snapshot.segments[0])
    assert verify(one, segment) == described([b"index" * 1000])
    with one.snapshot(RECORD, 2):
        pass


# ---- damaged objects -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["part", "header", "shorter", "missing"])
def test_a_damaged_object_is_refused_until_it_is_sent_again(server: Open, bucket: Any, how: str) -> None:
    one, two, three = server(), server(), server()
    parts = [b"index" * 1000, b"hint"]
    (segment,) = _committed(one, parts)
    (name,) = _names(bucket)
    raw = bytearray(bytes(obstore.get(bucket, name).bytes()))
    if how == "missing":
        obstore.delete(bucket, name)
    else:
        raw[{"part": 5000, "header": 40, "shorter": 0}[how]] ^= how != "shorter"
        obstore.put(bucket, name, bytes(raw[:-1] if how == "shorter" else raw))
    for store in (two, three):
        with pytest.raises(TamperedDataError):
            store.snapshot(RECORD, 2)
        assert not store.has((COLLECTION, segment))
    assert uploaded(two, parts) == segment
    for store in (one, two, three):
        assert verify(store, segment) == described(parts)
        with store.snapshot(RECORD, 2):
            pass
        assert store.has((COLLECTION, segment))


@pytest.mark.parametrize("kek", [None], ids=["unsealed"])
def test_sound_parts_of_a_damaged_object_are_read(server: Open, bucket: Any) -> None:
    """So that a client can save what there is."""
    one, two = server(), server()
    (segment,) = _committed(one, [b"index" * 1000, b"hint"])
    (name,) = _names(bucket)
    raw = bytearray(bytes(obstore.get(bucket, name).bytes()))
    raw[5000] ^= 1
    obstore.put(bucket, name, bytes(raw))
    two.find("notes")
    with two.segment(RECORD, segment) as snapshot:
        hint = snapshot.segments[0].description.parts[1]
        assert snapshot.segments[0].source.read(hint.offset_bytes, 4) == b"hint"


# ---- storing -------------------------------------------------------------------------------------------------
def test_objects_are_what_the_folder_would_have(server: Open, tmp_path: Path, bucket: Any) -> None:
    one = server()
    (segment,) = _committed(one, [b"a secret index"])
    (name,) = _names(bucket)
    raw = bytes(obstore.get(bucket, name).bytes())
    assert raw == path_of(tmp_path / "a", segment).read_bytes()
    assert (b"a secret index" in raw) is not one.sealed


def test_the_object_comes_before_the_row(server: Open, bucket: Any) -> None:
    one = server()
    one.create(RECORD, b"sealed", 10)
    add, seen = one._catalogue.add, []
    one._catalogue.add = lambda *row: (seen.append(len(_names(bucket))), add(*row))[1]  # type: ignore[method-assign]
    uploaded(one, [b"index"])
    assert seen == [1]


def test_a_row_that_comes_too_late_is_refused(server: Open) -> None:
    """Somebody may take the object for garbage by then."""
    now = time.time()
    one = server(clock_s=lambda: now, orphan_age_s=3600.0)
    one.create(RECORD, b"sealed", 10)
    put = _remote(one)._objects.put

    def slow(record: Any, path: Path) -> None:
        nonlocal now
        put(record, path)
        now += 1801

    _remote(one)._objects.put = slow  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="send it again"):
        uploaded(one, [b"index"])
    assert not one.has((COLLECTION, described([b"index"]).segment_id))
    _remote(one)._objects.put = put  # type: ignore[method-assign]
    assert verify(one, uploaded(one, [b"index"]))


def test_objects_without_a_row_go_when_they_are_old(server: Open, bucket: Any) -> None:
    """By the storage's clock: this server's may be wrong."""
    now = time.time() + 1e9
    one = server(clock_s=lambda: now, orphan_age_s=3600.0)
    live = _committed(one, [b"index"])
    obstore.put(bucket, f"{COLLECTION.hex()}/{bytes(32).hex()}.0.{bytes(16).hex()}", b"garbage")
    obstore.put(bucket, f"another/{COLLECTION.hex()}/{bytes(32).hex()}.0.{bytes(16).hex()}", b"not ours")
    objects = _remote(one)._objects
    storage_s = objects.now_s()
    assert abs(storage_s - time.time()) < 3600
    one.leftovers.remove_strays_if_due()
    assert len(_segments_of(bucket)) == 3
    for later_s, left in ((3500.0, 3), (3700.0, 2)):
        now += 3600 / 24
        objects.now_s = lambda at=storage_s + later_s: at  # type: ignore[method-assign,misc]
        one.leftovers.remove_strays_if_due()
        assert len(_segments_of(bucket)) == left
    assert verify(one, live[0])


def _segments_of(bucket: Any) -> list[str]:
    return [name for name in _names(bucket) if name != "clock"]


def test_large_segments_are_sent_and_read_in_parts(server: Open) -> None:
    one, two = server(), server()
    contents = [np.random.default_rng(5).bytes(20 * _MB + 7)]
    (segment,) = _committed(one, contents)
    assert verify(two, segment) == described(contents)


def test_storage_that_is_away_stores_nothing(
    server: Open, tmp_path: Path, bucket: Any, where: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Callers are told no name; the log has it."""
    one = server()
    live = _committed(one, [b"index"])
    objects = _remote(one)._objects
    sound = objects._store
    other = Objects("s3://no-such-bucket/prefix?" + where["segments"].partition("?")[2])
    objects._store = other._store
    with pytest.raises(Unavailable, match="nothing was changed") as caught:
        uploaded(one, [b"another"])
    assert "no-such-bucket" not in str(caught.value)
    assert any("no-such-bucket" in record.getMessage() for record in caplog.records)
    assert not [*(tmp_path / "a" / "incoming").iterdir()]
    assert verify(one, live[0]) == described([b"index"]), "what is here is read"
    objects._store = sound
    assert len(_names(bucket)) == 1
    assert uploaded(one, [b"another"])


def test_the_log_says_why_and_callers_do_not(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://127.0.0.1:1/bucket/name?sv=1&sig=signature: refused\nmore"
    causes = Causes()
    for _ in range(2):
        causes.say("storage: GenericError while listing", url)
    causes.say("storage: OtherError while listing", "x" * 9999)
    once, other = (one.getMessage() for one in caplog.records)
    assert once == "storage: GenericError while listing: http://127.0.0.1:1/bucket/name?… refused more"
    assert len(other) < 600


# ---- what is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kek", [None], ids=["unsealed"])
def test_folder_catalogue_and_bucket_belong_together(
    server: Open,
    tmp_path: Path,
    where: dict[str, str],
    postgres: PostgresServer,
    s3: S3Server,
) -> None:
    one = server()
    _committed(one, [b"index"])
    one.close()
    other_rows, other_bucket = postgres.new_database(), s3.new_bucket()
    wrong: list[dict[str, str]] = [
        {},
        {"catalogue": where["catalogue"]},
        where | {"catalogue": other_rows},
        where | {"segments": other_bucket},
    ]
    for folder in ("a", "new"):
        for one_wrong in wrong if folder == "a" else wrong[1:]:
            with pytest.raises(InvalidInput):
                Store(tmp_path / folder, **one_wrong)
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert verify(Store(tmp_path / "a", **where), described([b"index"]).segment_id)


def test_what_a_restored_catalogue_has_not_is_not_removed(server: Open, where: dict[str, str], bucket: Any) -> None:
    """PostgreSQL is back at an older state while servers run. They forget what it does not have; the objects stay until
    they are old, so that going forward again finds them."""
    one = server()
    _committed(one, [b"index"], [b"another"])
    before = _names(bucket, one)
    assert len(before) == 2
    with psycopg.connect(where["catalogue"], autocommit=True) as database:
        database.execute("SET search_path = hesearch")
        database.execute("DELETE FROM segments")
        database.execute("DELETE FROM collections")
        database.execute("UPDATE commits SET token = convert_to(revision::text, 'UTF8')")
        database.execute("UPDATE folder SET revision = revision + 1, token = 'another'")
    with pytest.raises(NotFound):
        one.find("notes")
    assert _remote(one)._catalogue.segments() == []
    assert _names(bucket, one) == before


class Overwriting(ThreadingHTTPServer):
    """An S3 server that puts over what it was asked to keep, as some do: the other one, without its conditions."""

    def __init__(self, address: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                kept = {"Content-Type": "application/octet-stream"}  # urllib would call it a form
                kept |= {k: v for k, v in self.headers.items() if k.lower() not in ("host", "if-none-match")}
                request = urllib.request.Request(
                    address + self.path, self.rfile.read(length) or None, kept, method=self.command
                )
                try:
                    answer = urllib.request.urlopen(request)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    self.send_response_only(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.read())

            do_GET = do_HEAD = do_PUT = forward

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


def test_a_storage_that_ignores_conditions_keeps_its_id(s3: S3Server) -> None:
    with Overwriting(s3.address) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = s3.new_bucket().replace(s3.address, server.address)
        made = Objects(url).place_id()
        assert len(made) == 16
        assert Objects(url).place_id() == made
        server.shutdown()


@pytest.mark.parametrize(("library", "setting"), [("psycopg", "catalogue"), ("obstore", "segments")])
def test_a_missing_library_is_named(tmp_path: Path, library: str, setting: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from pathlib import Path; from he_server.storage.store import Store\n"
        f"Store(Path({str(tmp_path)!r}), {setting}='s3://bucket')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"MissingExtra: {library} is not installed: pip install '.[cluster]'" in done.stderr


@pytest.mark.parametrize("url", ["file:///tmp/x", "http://host/bucket", "bucket", "s3://"])
def test_other_places_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(HesearchError):
        Objects(url).place_id()
    with pytest.raises(InvalidInput, match="without catalogue"):
        ServerConfig(data=tmp_path, segments=url)
    with pytest.raises(InvalidInput, match="orphan_age_s: got 60"):
        ServerConfig(data=tmp_path, segments=url, catalogue="postgresql://host/db", orphan_age_s=60)

"""The catalogue in PostgreSQL: what several servers see of each other, and what a broken connection may not do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from he_client.cli import main
from he_engine.errors import (
    Conflict,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    NotFound,
    TamperedDataError,
    Unavailable,
)
from he_server.config import ServerConfig
from he_server.storage import postgres as module
from he_server.storage.catalogue_rows import SegmentRecord
from he_server.storage.catalogue_shared import SharedCatalogue
from he_server.storage.causes import Causes
from he_server.storage.kek import KeyProvider
from he_server.storage.store import Store
from tests.postgres_fixture import PostgresServer, postgres
from tests.postgres_proxy import Proxy
from tests.store_fixture import COLLECTION, KEK, RECORD, made, path_of, uploaded

SEGMENT = SegmentRecord(COLLECTION, b"s" * 32, 2, 100, 50)
Servers = Callable[..., SharedCatalogue]

__all__ = ["postgres"]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture
def server(url: str, kek: KeyProvider | None) -> Iterator[Servers]:
    """Opens the catalogue once more, as one more server does."""
    with ExitStack() as opened:

        def one(where: str = url) -> SharedCatalogue:
            catalogue = SharedCatalogue(where, kek)
            opened.callback(catalogue.close)
            return catalogue

        yield one


def _rows(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("SET search_path = hesearch")
        cursor = db.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


# ---- what others did -----------------------------------------------------------------------------------------
def test_others_changes_are_seen_at_once(server: Servers) -> None:
    one, two = server(), server()
    gone: list[SegmentRecord] = []
    two.retired = gone.extend
    one.create(RECORD, b"sealed", 10, 1.0)
    assert two.find("notes") == RECORD
    generation = one.state(COLLECTION).newest_key.generation if one.sealed else 0  # type: ignore[union-attr]
    segment = replace(SEGMENT, generation=generation)
    one.add(segment, 2.0)
    two.look()
    assert two.segment((COLLECTION, segment.segment_id)) == segment
    assert two.commit(COLLECTION, 1, b"sealed 2", [segment.segment_id]) == (2, [])
    assert one.manifest(COLLECTION) == (replace(RECORD, version=2), b"sealed 2", [segment.segment_id])
    assert one.totals(COLLECTION).blocks == 2
    with pytest.raises(Conflict, match="the manifest is at version 2"):
        one.commit(COLLECTION, 1, b"another", [])
    assert not gone
    assert one.commit(COLLECTION, 2, b"sealed 3", []) == (3, [segment])
    assert two.find("notes").version == 3
    assert gone == [segment]
    one.add(segment, 3.0)
    assert two.drop(COLLECTION) == [segment]
    with pytest.raises(NotFound):
        one.find("notes")
    assert one.collections() == two.collections() == []


def test_a_collection_made_anew_has_another_data_key(url: str) -> None:
    """Whoever dropped the one before, and whoever makes it: what is on its way under the old key is refused."""
    one, two = SharedCatalogue(url, KEK), SharedCatalogue(url, KEK)
    generations = []
    for maker, dropper in ((one, two), (two, one), (one, one)):
        maker.create(RECORD, b"sealed", 10, 1.0)
        maker.add_data_key(COLLECTION, 2.0)
        generations += [key.generation for key in dropper.states()[0].keys]
        dropper.drop(COLLECTION)
    assert generations == sorted(set(generations))
    late = SharedCatalogue(url, KEK)
    late.create(RECORD, b"sealed", 10, 1.0)
    assert late.states()[0].keys[0].generation > generations[-1]
    with pytest.raises(Conflict, match="data key was replaced"):
        one.add(replace(SEGMENT, generation=generations[0]), 3.0)
    for catalogue in (one, two, late):
        catalogue.close()


def test_commits_of_many_are_one_line(server: Servers) -> None:
    """Eight threads of four servers: every version is acknowledged once, and the last one is what all see."""
    catalogues = [server() for _ in range(4)]
    catalogues[0].create(RECORD, b"sealed", 10, 1.0)
    done: list[tuple[int, bytes]] = []
    defects: list[BaseException] = []

    def work(number: int) -> None:
        catalogue, committed = catalogues[number % 4], 0
        try:
            while committed < 5:
                version = catalogue.find("notes").version
                mine = b"%d %d" % (number, committed)
                try:
                    done.append((catalogue.commit(COLLECTION, version, mine, [])[0], mine))
                    committed += 1
                except Conflict:
                    pass
        except BaseException as error:
            defects.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not defects
    assert sorted(version for version, _ in done) == list(range(2, 42))
    last = max(done)
    assert [c.manifest(COLLECTION) for c in catalogues] == [(replace(RECORD, version=41), last[1], [])] * 4


@pytest.mark.parametrize("how", ["forgotten", "another history"])
def test_who_was_away_too_long_reads_everything(
    server: Servers, url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    one, two = server(), server()
    other = replace(RECORD, name="other", collection_id=bytes(16))
    for record in (RECORD, other):
        one.create(record, b"sealed", 10, 1.0)
    two.look()
    one.drop(other.collection_id)
    for version in range(1, 2 if how == "another history" else 6):
        one.commit(COLLECTION, version, b"%d" % version, [])
    if how == "another history":  # the database was restored, and has as many transactions again
        _rows(url, "UPDATE commits SET token = convert_to(revision::text, 'UTF8')")
    assert two._database.changed_since(two._mark) is None  # type: ignore[arg-type]
    assert two.collections() == one.collections()
    assert [record.name for record in two.collections()] == ["notes"]
    assert _rows(url, "SELECT count(*) <= 4 FROM commits") == [(True,)]


def test_servers_may_start_at_the_same_time(url: str) -> None:
    opened: list[SharedCatalogue] = []
    threads = [threading.Thread(target=lambda: opened.append(SharedCatalogue(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    opened[0].create(RECORD, b"sealed", 10, 1.0)
    assert [catalogue.find("notes") for catalogue in opened] == [RECORD] * 4
    for catalogue in opened:
        catalogue.close()


def test_a_start_waits_for_no_writer(server: Servers) -> None:
    one = server()
    one.create(RECORD, b"sealed", 10, 1.0)
    with one._exclusive():
        assert server().find("notes") == RECORD


# ---- a connection that breaks --------------------------------------------------------------------------------
@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres.root) as proxy:
        yield proxy


Change = Callable[[SharedCatalogue], object]
CHANGES: dict[str, Change] = {
    "create": lambda c: c.create(replace(RECORD, name="b", collection_id=bytes(16)), b"sealed", 10, 1.0),
    "add": lambda c: c.add(SEGMENT, 1.0),
    "commit": lambda c: c.commit(COLLECTION, 1, b"sealed 2", []),
    "drop": lambda c: c.drop(COLLECTION),
}


def _seen(catalogue: SharedCatalogue) -> object:
    manifests = [catalogue.manifest(record.collection_id) for record in catalogue.collections()]
    return manifests, catalogue.segments()


@pytest.mark.parametrize("breaks", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_outcome_of_a_commit_is_looked_up(url: str, proxy: Proxy, change: str, breaks: str) -> None:
    """Nobody guesses: where it was made the caller is told so, and where it was not, that nothing was changed."""
    near = SharedCatalogue(url)
    near.create(RECORD, b"sealed", 10, 1.0)
    far = SharedCatalogue(f"{url}&host={proxy.host}")
    before = _seen(near)
    proxy.breaks = breaks
    if breaks == "after":
        CHANGES[change](far)
        assert _seen(near) == _seen(far) != before
    else:
        with pytest.raises(Unavailable, match="nothing was changed"):
            CHANGES[change](far)
        assert _seen(near) == _seen(far) == before
        CHANGES[change](far)
        assert _seen(near) == _seen(far) != before
    assert proxy.broken == 1
    near.close()
    far.close()


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_where_nobody_can_say_the_caller_asks_again(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    monkeypatch.setattr(module, "_RESOLVE_S", 0.0)
    near = SharedCatalogue(url)
    near.create(RECORD, b"sealed", 10, 1.0)
    far = SharedCatalogue(f"{url}&host={proxy.host}")
    proxy.breaks, proxy.refuses = breaks, True
    with pytest.raises(Unavailable, match="not known yet"):
        far.commit(COLLECTION, 1, b"sealed 2", [])
    with pytest.raises(Unavailable):
        far.find("notes")
    proxy.refuses = False
    assert far.find("notes").version == (2 if breaks == "after" else 1)
    assert far.commit(COLLECTION, 1, b"sealed 2", []) == (2, [])
    assert near.manifest(COLLECTION)[:2] == (replace(RECORD, version=2), b"sealed 2")
    near.close()
    far.close()


def test_a_connection_that_was_ended_is_made_anew(url: str) -> None:
    catalogue = SharedCatalogue(url)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hesearch' AND "
    for change in ("create", "commit"):
        ended = _rows(url, f"{others} datname = current_database()")
        assert ended == [(True,)] * len(ended) != []
        if change == "create":
            catalogue.create(RECORD, b"sealed", 10, 1.0)
        else:
            assert catalogue.find("notes") == RECORD
            assert catalogue.commit(COLLECTION, 1, b"sealed 2", []) == (2, [])
    catalogue.close()
    with pytest.raises(Unavailable, match="closed"):
        catalogue.find("notes")


def test_a_connection_that_breaks_between_check_and_write_changes_nothing(url: str) -> None:
    catalogue = SharedCatalogue(url)
    catalogue.create(RECORD, b"sealed", 10, 1.0)
    with pytest.raises(Unavailable, match="broke; nothing was changed"), catalogue._exclusive():
        catalogue._database._db.close()  # type: ignore[union-attr]
        with catalogue._file.transaction():
            raise AssertionError("it was let in")
    assert catalogue.commit(COLLECTION, 1, b"sealed 2", []) == (2, [])
    catalogue.close()


# ---- what is refused -----------------------------------------------------------------------------------------
def test_folder_and_catalogue_belong_together(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    """Else the segments of one would be garbage to the other."""
    made(tmp_path / "own", None, [[b"index"]])
    with pytest.raises(InvalidInput, match=r"it has catalogue\.sqlite"):
        Store(tmp_path / "own", catalogue=url)
    made(tmp_path / "one", None, [[b"index"]], catalogue=url)
    with pytest.raises(InvalidInput, match="is in PostgreSQL"):
        Store(tmp_path / "one")
    for where, of in ((tmp_path / "two", url), (tmp_path / "one", postgres.new_database())):
        with pytest.raises(InvalidInput, match="it belongs to other segments"):
            Store(where, catalogue=of)
    Store(tmp_path / "one", catalogue=url).close()


def test_commands_that_know_only_files_leave_it_alone(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To them its segments would be garbage."""
    data = tmp_path / "data"
    (segment,) = made(data, None, [[b"index"]], catalogue=url)
    assert main(["fsck", str(data), "--repair"]) == main(["backup", str(data), str(tmp_path / "backup")]) == 2
    assert main(["rekey", str(data), "--kek", "file:/etc/hostname"]) != 0
    assert "is in PostgreSQL" in capsys.readouterr().err
    assert path_of(data, segment).exists()


def test_postgresql_without_fsync_is_refused() -> None:
    with PostgresServer(fsync="off") as server, pytest.raises(InvalidInput, match="fsync off"):
        SharedCatalogue(server.new_database())


def test_commits_wait_for_the_disk(url: str) -> None:
    """Whatever this user's default is."""
    name = url.partition("@/")[2].partition("?")[0]
    _rows(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    catalogue = SharedCatalogue(url)
    assert catalogue._database.all("SHOW synchronous_commit") == [("on",)]
    catalogue.close()


def test_another_schema_is_refused(url: str) -> None:
    catalogue = SharedCatalogue(url)
    _rows(url, "UPDATE folder SET schema_version = 2")
    with pytest.raises(Unavailable, match="another version of hesearch has changed its tables"):
        catalogue.create(RECORD, b"sealed", 10, 1.0)
    with pytest.raises(FormatVersionError, match="got schema version 2, expected 1"):
        SharedCatalogue(url)
    catalogue.close()


def test_it_is_sealed_before_it_is_used(url: str) -> None:
    unsealed = SharedCatalogue(url)
    SharedCatalogue(url, KEK).close()
    with pytest.raises(Unavailable, match="sealed meanwhile"):
        unsealed.create(RECORD, b"sealed", 10, 1.0)
    unsealed.close()
    with pytest.raises(InvalidInput, match="this data folder is sealed"):
        SharedCatalogue(url)
    sealed = SharedCatalogue(url, KEK)
    sealed.create(RECORD, b"a manifest", 10, 1.0)
    sealed.close()
    assert not [cell for row in _rows(url, "SELECT * FROM collections") for cell in row if b"notes" in bytes(cell)]  # type: ignore[call-overload]


def test_an_unsealed_one_in_use_is_not_sealed(url: str) -> None:
    """Servers that have no key may have it open."""
    catalogue = SharedCatalogue(url)
    catalogue.create(RECORD, b"sealed", 10, 1.0)
    with pytest.raises(InvalidInput, match="got one for a catalogue that is not sealed"):
        SharedCatalogue(url, KEK)
    assert SharedCatalogue(url).find("notes") == RECORD
    catalogue.close()


@pytest.mark.parametrize("column", ["state", "manifest"])
def test_a_flipped_bit_is_found(server: Servers, url: str, column: str) -> None:
    server().create(RECORD, b"sealed", 10, 1.0)
    _rows(url, f"UPDATE collections SET {column} = set_bit({column}, 300, 1 - get_bit({column}, 300))")
    with pytest.raises(TamperedDataError):
        server()


def test_a_database_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who calls is told no address; the log has it, with the reason, once."""
    monkeypatch.setattr(module, "_CAUSES", Causes())
    for _ in range(2):
        with pytest.raises(Unavailable, match="no connection") as caught:
            Store(tmp_path, catalogue=f"postgresql://somebody@/db?host={tmp_path}")
        assert str(tmp_path) not in str(caught.value)
    (said,) = (one.getMessage() for one in caplog.records)
    assert said.startswith("catalogue: PostgreSQL: no connection: ") and f"{tmp_path}/.s.PGSQL.5432" in said
    with pytest.raises(InvalidInput, match="no connection string"):
        SharedCatalogue("postgresql://somebody@/db?nonsense=1")


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "postgresql://me@host/db?password=secret"])
def test_a_password_in_the_configuration_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidInput, match="got a password") as caught:
        ServerConfig(data=tmp_path, catalogue=url)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInput, match="expected postgresql://"):
        ServerConfig(data=tmp_path, catalogue="mysql://host/db")


# ---- a store on it -------------------------------------------------------------------------------------------
def test_an_upload_whose_row_nobody_knows_of_is_kept(
    tmp_path: Path, url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is not removed before the catalogue has said that it is not there."""
    monkeypatch.setattr(module, "_RESOLVE_S", 0.0)
    store = Store(tmp_path, catalogue=f"{url}&host={proxy.host}")
    store.create(RECORD, b"sealed", 10)
    proxy.breaks, proxy.refuses = "after", True
    with pytest.raises(HesearchError, match="not known yet"):
        uploaded(store, [b"index"])
    proxy.refuses = False
    segment = uploaded(store, [b"index"])
    assert store.commit(RECORD, 1, b"sealed 2", [segment]) == 2
    with store.snapshot(RECORD, 2) as snapshot:
        assert snapshot.segments[0].source.read(4096, 5) == b"index"
    store.close()

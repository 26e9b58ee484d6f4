"""The store: what is on the disk, what a crash or a full disk may leave, and what is refused when it is read."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine.engine import IndexFile
from he_engine.errors import (
    Conflict,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    ReadOnlyError,
    TamperedDataError,
    Unavailable,
)
from he_server.config import ServerConfig
from he_server.storage import database, files
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import FileId
from he_server.storage.files import PlainFile
from he_server.storage.folder import Folder
from he_server.storage.kek import KeyProvider
from he_server.storage.pins import Pins
from he_server.storage.segment_file import SegmentWriter, read_description
from he_server.storage.snapshots import Snapshot
from he_server.storage.store import Store
from he_server.storage.upkeep import Upkeep
from tests.postgres_fixture import PostgresServer, postgres  # noqa: F401
from tests.s3_fixture import S3Server, s3, s3_server  # noqa: F401
from tests.store_fixture import (
    COLLECTION,
    DIGEST,
    KEK,
    RECORD,
    described,
    made,
    path_of,
    sha256,
    uploaded,
    verified,
    verify,
)

DAY_S = 24 * 3600
Where = dict[str, Any]
in_the_folder = pytest.mark.parametrize("where", ["folder", "postgresql"], indirect=True)  #: segments
only_sqlite = pytest.mark.parametrize("where", [{}], ids=["folder"])


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture(params=["folder", "postgresql", "objects"])
def where(request: pytest.FixtureRequest) -> Where:
    """Where the rows and segments are: see Store."""
    if request.param == "folder":
        return {}
    server: PostgresServer = request.getfixturevalue("postgres")
    found = {"catalogue": server.new_database()}
    if request.param == "objects":
        s3: S3Server = request.getfixturevalue("s3")
        found["segments"] = s3.new_bucket()
    return found


@pytest.fixture
def store(tmp_path: Path, where: Where, kek: KeyProvider | None) -> Iterator[Store]:
    store = Store(tmp_path, **where, kek=kek)
    store.create(RECORD, b"sealed", 10)
    yield store
    store.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    """Files as he_server.storage.segment_file describes them."""
    store = Store(tmp_path)
    store.create(RECORD, b"sealed", 10)
    yield store
    store.close()


# ---- the segment file ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "contents",
    [[b"i"], [b"i" * 4096, b"h"], [b"i" * 4097, b"", b"r" * 8192, b"", b"p"], [b"i" * 10, b"h" * 10, b"", b"", b""]],
)
def test_layout(plain: Store, tmp_path: Path, contents: list[bytes]) -> None:
    path = path_of(tmp_path, uploaded(plain, contents))
    description = verified(PlainFile(path))
    raw = path.read_bytes()
    assert raw[:8] == b"HESEARCH"
    assert len(raw) == description.file_bytes
    assert description == described(contents)
    for part, content in zip(description.parts, contents, strict=True):
        assert part.offset_bytes % 4096 == 0
        assert raw[part.offset_bytes : part.end_bytes] == content
    assert (description.index_bytes, description.stored_bytes) == (len(contents[0]), len(b"".join(contents)))


def test_header_vector() -> None:
    """Version 1, field by field as the module's text has it."""
    header = described([b"index", b"hint"]).header()
    assert header[:16] == b"HESEARCH" + b"\1\0\0\0" + b"\2\0\0\0"
    assert header[16:64] == DIGEST + COLLECTION
    assert header[96:104] == (2).to_bytes(8, "little")
    first = b"\1\0\0\0" + bytes(4) + (4096).to_bytes(8, "little") + (5).to_bytes(8, "little") + sha256(b"index")
    assert header[104 : 104 + 56] == first
    assert header[216:248] == sha256(header[:216])
    assert header[248:] == bytes(4096 - 248)
    assert sha256(header).hex() == "70a8b509aaa9d5abd7829417a3f8c178302ec71db498ba34330a7074153bc27f"


def test_every_flipped_header_bit_is_found(plain: Store, tmp_path: Path) -> None:
    path = path_of(tmp_path, uploaded(plain, [b"index", b"hint"]))
    raw = path.read_bytes()
    for position in [*range(256), 1000, 4095]:
        altered = bytearray(raw)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with pytest.raises((TamperedDataError, FormatVersionError)):
            read_description(PlainFile(path))


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: raw[:100], lambda _: b""])
def test_wrong_lengths_are_found(plain: Store, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = path_of(tmp_path, uploaded(plain, [b"index", b"hint"]))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TamperedDataError):
        read_description(PlainFile(path))


def test_a_crafted_header_is_refused(plain: Store, tmp_path: Path) -> None:
    """With a right checksum, but lengths that no file has."""
    path = path_of(tmp_path, uploaded(plain, [b"index"]))
    header = bytearray(path.read_bytes()[:160])
    header[120:128] = b"\xff" * 8
    path.write_bytes((bytes(header) + sha256(bytes(header))).ljust(4096, b"\0"))
    with pytest.raises(TamperedDataError, match="longer than a file can be"):
        read_description(PlainFile(path))


def test_another_version_is_named(plain: Store, tmp_path: Path) -> None:
    path = path_of(tmp_path, uploaded(plain, [b"index"]))
    raw = bytearray(path.read_bytes())
    raw[8] = 2
    path.write_bytes(raw)
    with pytest.raises(FormatVersionError, match="got format version 2, expected 1"):
        read_description(PlainFile(path))


def test_every_flipped_part_bit_is_found(plain: Store, tmp_path: Path) -> None:
    path = path_of(tmp_path, uploaded(plain, [b"index", b"hint"]))
    raw = path.read_bytes()
    for position in [*range(4096, 4101), *range(8192, 8196)]:
        altered = bytearray(raw)
        altered[position] ^= 128
        path.write_bytes(altered)
        read_description(PlainFile(path))
        with pytest.raises(TamperedDataError, match="does not match its digest"):
            verified(PlainFile(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_is_its_folders_owners(tmp_path: Path) -> None:
    """An operator's command on a server's data leaves nothing that the server cannot read."""
    os.chown(tmp_path, 12345, 12346)
    with files.NewFile(tmp_path) as file:
        file.publish(tmp_path / "a")
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 12346, 0o600)


@pytest.mark.parametrize("step", [1, 3, 4096, 10000])
def test_writer_takes_any_pieces(tmp_path: Path, step: int) -> None:
    contents = [b"i" * 4098, b"h" * 7, b"", b"f" * 4096]
    data = b"".join(contents)
    with files.NewFile(tmp_path) as file:
        writer = SegmentWriter(described(contents), file)
        for start in range(0, len(data), step):
            writer.write(memoryview(data)[start : start + step])
        writer.finish()
        assert verified(PlainFile(file.path)) == described(contents)
    assert not list(tmp_path.iterdir())


# ---- starting ------------------------------------------------------------------------------------------------
def test_two_servers_on_one_folder_are_refused(
    store: Store, tmp_path: Path, where: Where, kek: KeyProvider | None
) -> None:
    with pytest.raises(Unavailable, match=rf"another server \(process {os.getpid()}\) has it open"):
        Store(tmp_path, **where, kek=kek)
    assert store.find("notes")


def test_the_folder_is_free_again_after_close(tmp_path: Path) -> None:
    for _ in range(2):
        Store(tmp_path).close()


@pytest.mark.parametrize("found", [False, True], ids=["new folder", "folder made by its owner"])
def test_only_the_owner_may_look(tmp_path: Path, kek: KeyProvider | None, found: bool) -> None:
    root = tmp_path / "data"
    if found:
        root.mkdir()
    store = Store(root, kek=kek)
    store.create(RECORD, b"sealed", 10)
    uploaded(store, [b"index"])
    paths = [*root.rglob("*")] if found else [root, *root.rglob("*")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {mode & 0o077 for mode in modes.values()} == {0}
    assert "catalogue.sqlite-wal" in modes
    store.close()


@pytest.mark.parametrize("garbage_age_s", [DAY_S - 3600, DAY_S + 3600])
def test_a_start_removes_what_a_crash_left(
    tmp_path: Path, where: Where, kek: KeyProvider | None, garbage_age_s: float
) -> None:
    """What was on its way at once; a file without a row when it is as old as an orphan."""
    store = Store(tmp_path, **where, kek=kek)
    store.create(RECORD, b"sealed", 10)
    kept = uploaded(store, [b"index"])
    store.close()
    unfinished = tmp_path / "incoming" / "0123.part"
    unnamed = path_of(tmp_path, bytes(32))
    elsewhere = tmp_path / "segments" / (b"x" * 16).hex() / "y"
    elsewhere.parent.mkdir()
    garbage = (unfinished, unnamed, elsewhere)
    now = path_of(tmp_path, kept).stat().st_mtime
    for path in (*garbage, path_of(tmp_path, kept)):
        path.write_bytes(b"garbage") if path in garbage else None
        os.utime(path, (now - garbage_age_s, now - garbage_age_s))
    store = Store(tmp_path, **where, kek=kek, orphan_age_s=DAY_S, clock_s=lambda: now)
    assert store.has((COLLECTION, kept))
    verify(store, kept)
    assert [path.exists() for path in (*garbage, elsewhere.parent)] == [False] + [garbage_age_s < DAY_S] * 3
    store.close()


def test_orphans_are_collected_after_a_day(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    """What was uploaded and not committed; what was sent again counts as new, what is live stays."""
    now = 1e9

    def opened() -> Store:
        return Store(tmp_path, **where, kek=kek, orphan_age_s=DAY_S, clock_s=lambda: now)

    store = opened()
    store.create(RECORD, b"sealed", 10)
    live, orphan, retried = (uploaded(store, [name]) for name in (b"live", b"orphan", b"retried"))
    store.commit(RECORD, 1, b"sealed 2", [live])
    now += 20 * 3600
    assert store.has((COLLECTION, retried))
    store.close()
    now += 3 * 3600
    store = opened()
    assert all(path_of(tmp_path, segment).exists() for segment in (live, orphan, retried))
    store.close()
    now += 2 * 3600
    store = opened()
    assert [path_of(tmp_path, segment).exists() for segment in (live, orphan, retried)] == [True, False, True]
    assert not store.has((COLLECTION, orphan))
    store.close()


def test_orphans_are_collected_while_the_server_runs(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    """At the next upload, looked for no more than once an hour; one that is being read goes with its reader."""
    now = 1e9
    forgotten: list[tuple[bytes, IndexFile]] = []
    store = Store(
        tmp_path,
        **where,
        kek=kek,
        orphan_age_s=DAY_S,
        clock_s=lambda: now,
        forget=lambda *index: forgotten.append(index),
    )
    store.create(RECORD, b"sealed", 10)
    read, orphan = (uploaded(store, [name]) for name in (b"read", b"orphan"))
    indexes = []
    for segment in (read, orphan):
        with store.segment(RECORD, segment) as snapshot, store.reading(snapshot.segments[0]) as index:
            indexes.append((DIGEST, index))
    now += DAY_S + 1
    with store.segment(RECORD, read):
        uploaded(store, [b"another"])
        assert [path_of(tmp_path, segment).exists() for segment in (read, orphan)] == [True, False]
        assert not store.has((COLLECTION, orphan))
        assert forgotten == indexes[1:]
    assert not path_of(tmp_path, read).exists()
    assert forgotten == [indexes[1], indexes[0]]
    looks: list[float] = []
    store._catalogue.collect = lambda before_s: looks.append(before_s) or []  # type: ignore[method-assign,func-returns-value]
    for later_s in (0, 3000, 600, 0):
        now += later_s
        uploaded(store, [b"%d" % now])
    assert len(looks) == 1
    store.close()


@in_the_folder
def test_orphans_are_collected_where_nobody_writes(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    """By the thread that every server has."""
    shift_s = 0.0
    store = Store(tmp_path, **where, kek=kek, orphan_age_s=0.24, clock_s=lambda: time.time() + shift_s)
    store.create(RECORD, b"sealed", 10)
    live, orphan = (uploaded(store, [name]) for name in (b"live", b"orphan"))
    store.commit(RECORD, 1, b"sealed 2", [live])
    with Upkeep(store, 0):
        shift_s = 60.0
        deadline_s = time.monotonic() + 30
        while path_of(tmp_path, orphan).exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert path_of(tmp_path, live).exists()
    store.close()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as database:
        database.execute("PRAGMA user_version = 4")
    database.close()
    with pytest.raises(FormatVersionError, match="got schema version 4, expected 3"):
        Store(tmp_path)


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "catalogue.sqlite")
    database.execute("PRAGMA user_version = 1")
    database.execute("CREATE TABLE x (y)")
    database.close()
    with pytest.raises(FormatVersionError, match="not one of ours"):
        Store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalogue.sqlite").write_bytes(b"x" * 4096)
    with pytest.raises(TamperedDataError, match="catalogue: the file is damaged"):
        Store(tmp_path)
    (tmp_path / "catalogue.sqlite").unlink()
    Store(tmp_path).close()


@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_catalogue_is_not_replaced(tmp_path: Path, kek: KeyProvider | None, emptied: bool) -> None:
    """To a new one, all segments would be garbage."""
    (segment,) = made(tmp_path, kek, [[b"index"]])
    (tmp_path / "catalogue.sqlite").unlink()
    if emptied:
        (tmp_path / "catalogue.sqlite").touch()
    with pytest.raises(TamperedDataError, match="it has segments and no catalogue"):
        Store(tmp_path, kek=kek, orphan_age_s=0)
    assert path_of(tmp_path, segment).exists()


@in_the_folder
def test_a_segment_file_in_anothers_place_is_refused(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    first, second = made(tmp_path, kek, [[b"first"], [b"second"]], **where)
    path_of(tmp_path, second).write_bytes(path_of(tmp_path, first).read_bytes())
    store = Store(tmp_path, **where, kek=kek)
    assert store.has((COLLECTION, first))
    assert not store.has((COLLECTION, second))
    assert uploaded(store, [b"second"]) == second
    assert verify(store, second) == described([b"second"])
    store.close()


# ---- what is on the disk when an upload is acknowledged -------------------------------------------------------
@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed from now on, by the last names of the paths, in order."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append("file" if path.suffix == files.TEMPORARY_SUFFIX else path.name)
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    return events


@pytest.mark.parametrize("found", [False, True], ids=["new folder", "made by another call, not yet synced"])
def test_the_order_of_writing(store: Store, tmp_path: Path, synced: list[str], found: bool) -> None:
    """File, folder, name, name on the disk, and only then the row, which is what acknowledges."""
    if found:
        path_of(tmp_path, bytes(32)).parent.mkdir()
    add = store._catalogue.add
    store._catalogue.add = lambda *row: (synced.append("row"), add(*row))[1]  # type: ignore[method-assign]
    uploaded(store, [b"first"])
    assert synced == ["file", "segments", "rename", COLLECTION.hex(), "row"]
    synced.clear()
    uploaded(store, [b"second"])
    assert synced == ["file", "rename", COLLECTION.hex(), "row"]


def test_a_new_data_folder_is_synced_with_its_parents(tmp_path: Path, synced: list[str]) -> None:
    root = tmp_path / "var" / "data"
    Store(root).close()
    assert synced[:2] == [tmp_path.name, "var"], "from the top, each once what it holds has been made"
    assert synced[-1] == "data", "with the catalogue in it"
    synced.clear()
    Store(root).close()
    assert synced == ["data"]


def test_the_catalogue_syncs_every_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SQLite of this machine does by itself; and nothing is left in its log, nor of what was deleted."""
    connect = sqlite3.connect

    def lax(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened = connect(*arguments, **options)
        for pragma in ("synchronous", "secure_delete"):
            opened.execute(f"PRAGMA {pragma} = OFF")
        return opened

    monkeypatch.setattr(database.sqlite3, "connect", lax)
    opened = Catalogue(tmp_path / "catalogue.sqlite")
    for pragma, expected in (("synchronous", 2), ("journal_mode", "wal"), ("secure_delete", 1)):
        assert opened._file._db.one(f"PRAGMA {pragma}") == (expected,)
    opened.create(RECORD, b"a manifest", 10, 0.0)
    assert (tmp_path / "catalogue.sqlite-wal").stat().st_size == 0
    assert b"a manifest" in (tmp_path / "catalogue.sqlite").read_bytes()
    opened.drop(COLLECTION)
    assert b"a manifest" not in (tmp_path / "catalogue.sqlite").read_bytes()
    opened.close()


# ---- a disk that fails ---------------------------------------------------------------------------------------
def _stored_nothing(store: Store, root: Path) -> bool:
    left = [*(root / "incoming").iterdir(), *(root / "segments").rglob("*/*")]
    return not left and not store.has((COLLECTION, described([b"index"]).segment_id))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("function", ["write", "rename"])
def test_a_failing_disk_stores_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "disk")

    expected = Unavailable if number == errno.EIO else LimitExceeded
    with monkeypatch.context() as patched:
        patched.setattr(Path if function == "rename" else os, function, fail)
        with pytest.raises(expected, match=r"storage: .*nothing was changed"):
            uploaded(store, [b"index"])
    assert _stored_nothing(store, tmp_path)
    uploaded(store, [b"index"])


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("of", ["the file", "its folder"])
def test_a_failed_sync_is_the_end_of_writing(
    tmp_path: Path, where: Where, kek: KeyProvider | None, monkeypatch: pytest.MonkeyPatch, of: str, number: int
) -> None:
    """It is not repeated, nor is anything written after it; reads go on, and a restart makes all well."""
    (kept,) = made(tmp_path, kek, [[b"kept"]], **where)
    store = Store(tmp_path, **where, kek=kek)
    fsync, synced = os.fsync, []

    def fail(descriptor: int) -> None:
        synced.append(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").is_dir() == (of == "its folder"):
            raise OSError(number, "disk")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(ReadOnlyError, match="no writes until it is restarted"):
            uploaded(store, [b"index"])
    assert store.read_only
    calls = len(synced)
    record = store.find("notes")
    writes: list[Callable[[], object]] = [
        lambda: uploaded(store, [b"index"]),
        lambda: uploaded(store, [b"another"]),
        lambda: store.commit(record, 2, b"sealed 3", []),
        lambda: store.create(record, b"sealed", 10),
        lambda: store.drop(record),
        lambda: store.data_keys.add(COLLECTION),
        lambda: store.data_keys.drop_old(COLLECTION),
    ]
    for write in writes:
        with pytest.raises(ReadOnlyError):
            write()
    assert len(synced) == calls
    left = [*(tmp_path / "incoming").iterdir(), *(tmp_path / "segments").rglob("*/*")]
    assert left == [path_of(tmp_path, kept)]
    with store.snapshot(record, 2) as snapshot, store.reading(snapshot.segments[0]) as index:
        assert (snapshot.segments[0].description.segment_id, index.length_bytes) == (kept, 4)
    assert verify(store, kept) == described([b"kept"])
    store.close()
    store = Store(tmp_path, **where, kek=kek)
    assert not store.read_only
    segment = uploaded(store, [b"index"])
    assert store.commit(store.find("notes"), 2, b"sealed 3", [kept, segment]) == 3
    store.close()


def test_a_failed_sync_during_an_upload_stops_the_other_uploads(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has all its bytes by then is not acknowledged any more."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "disk")

    with store.upload(described([b"another"])) as upload:
        upload.write(b"another")
        upload.finish()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(ReadOnlyError):
                uploaded(store, [b"index"])
        with pytest.raises(ReadOnlyError):
            upload.publish()
    assert _stored_nothing(store, tmp_path)


@only_sqlite
def test_a_full_catalogue_changes_nothing(store: Store) -> None:
    database = store._catalogue._file._db
    pages = database.one("PRAGMA page_count")[0]
    database.all(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(LimitExceeded, match="catalogue: no room left"):
        store.commit(RECORD, 1, bytes(1 << 20), [])
    assert store.manifest(RECORD)[0].version == 1
    database.all("PRAGMA max_page_count = 1000000")
    assert store.commit(RECORD, 1, bytes(1 << 20), []) == 2


def test_a_closed_store_raises_errors_of_ours(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RECORD, b"sealed", 10)
    store.close()
    with pytest.raises(Unavailable, match="catalogue"):
        store.manifest(RECORD)
    with pytest.raises(Unavailable, match="catalogue"):
        store.commit(RECORD, 1, b"sealed 2", [])


def test_closing_twice_closes_nothing_else(tmp_path: Path) -> None:
    """The number of a closed descriptor is soon another file's."""
    folder = Folder(tmp_path / "data")
    number = folder._lock
    folder.close()
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, number)  # whatever number the system would give
    folder.close()
    assert os.fstat(number).st_ino == tmp_path.stat().st_ino
    for descriptor in {number, other}:
        os.close(descriptor)


# ---- pins ----------------------------------------------------------------------------------------------------
def test_retired_files_wait_for_their_readers(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    forgotten: list[tuple[bytes, IndexFile]] = []
    (segment,) = made(tmp_path, kek, [[b"index"]], **where)
    store = Store(tmp_path, **where, kek=kek, forget=lambda *index: forgotten.append(index))
    record, path = store.find("notes"), path_of(tmp_path, segment)
    with store.snapshot(record, 2) as first, store.segment(record, segment) as second:
        assert first.segments[0].path == path
        with store.reading(first.segments[0]) as index:
            store.commit(record, 2, b"sealed 3", [])
            second.close()
            second.close()
        assert path.exists()
        assert not forgotten
    assert not path.exists()
    assert forgotten == [(DIGEST, index)]
    store.close()


def test_a_segment_sent_again_while_its_old_file_is_read(store: Store, tmp_path: Path) -> None:
    """The last reader of the retired file must not take the new one with it."""
    segment = uploaded(store, [b"index"])
    store.commit(RECORD, 1, b"sealed 2", [segment])
    with store.snapshot(RECORD, 2):
        store.commit(RECORD, 2, b"sealed 3", [])
        assert not store.has((COLLECTION, segment))
        assert uploaded(store, [b"index"]) == segment
    assert verify(store, segment)
    assert path_of(tmp_path, segment).exists()
    assert store.commit(RECORD, 3, b"sealed 4", [segment]) == 4
    with store.snapshot(RECORD, 4) as snapshot:
        assert [stored.description.segment_id for stored in snapshot.segments] == [segment]


def test_a_drop_during_an_upload(store: Store, tmp_path: Path) -> None:
    with store.upload(described([b"index"])) as upload:
        upload.write(b"index")
        upload.finish()
        store.drop(store.find("notes"))
        with pytest.raises(NotFound, match="dropped meanwhile"):
            upload.publish()
    assert not path_of(tmp_path, upload.segment.description.segment_id).exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("reader", ["snapshot", "segment"])
@pytest.mark.parametrize("writer", ["commit", "drop", "collect"])
def test_what_is_retired_while_it_is_being_pinned(
    tmp_path: Path, where: Where, kek: KeyProvider | None, reader: str, writer: str, when: str
) -> None:
    """The writer does all its work when the reader knows what is live, before or after it pins that: the reader must
    notice, and leave nothing pinned."""
    now = 1e9
    store = Store(tmp_path, **where, kek=kek, clock_s=lambda: now)
    store.create(RECORD, b"sealed", 10)
    segment, pin = uploaded(store, [b"index"]), store._segments.pins.pin
    path = path_of(tmp_path, segment)
    store.commit(RECORD, 1, b"sealed 2", [] if writer == "collect" else [segment])
    now += 1e9

    def interrupted(ids: list[FileId]) -> None:
        store._segments.pins.pin = pin  # type: ignore[method-assign]
        if when == "after":
            pin(ids)
        if writer == "commit":
            store.commit(RECORD, 2, b"sealed 3", [])
        elif writer == "drop":
            store.drop(RECORD)
        else:
            store.leftovers.collect()
        if when == "before":
            pin(ids)
        assert path.exists() == (when == "after" and (reader, writer) != ("snapshot", "collect"))

    store._segments.pins.pin = interrupted  # type: ignore[method-assign,assignment]
    if (reader, writer) == ("snapshot", "collect"):  # it was not live
        store.snapshot(RECORD, 2).close()
    else:
        with pytest.raises((Conflict, NotFound)):
            store.snapshot(RECORD, 2) if reader == "snapshot" else store.segment(RECORD, segment)
    assert not path.exists()
    assert not store._segments.pins.ids()
    store.close()


@only_sqlite
def test_who_searches_waits_for_no_write(store: Store, tmp_path: Path) -> None:
    """Another process holds the catalogue's write lock, as a backup does, and a writer waits for it."""
    live = [uploaded(store, [b"a"])]
    store.commit(RECORD, 1, b"sealed 2", live)
    other = sqlite3.connect(tmp_path / "catalogue.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=store.commit, args=(RECORD, 2, b"sealed 3", live))
    writer.start()
    while not store._writes.change.locked():
        time.sleep(0.001)
    with store.snapshot(RECORD, 2) as snapshot:
        assert len(snapshot.segments) == 1
    with store.segment(RECORD, live[0]):
        assert store.totals(RECORD).segments == 1
    assert writer.is_alive()
    other.close()
    writer.join()
    assert store.find("notes").version == 3


def test_removing_one_file_keeps_nobody_from_another() -> None:
    removing, removed = threading.Event(), threading.Event()
    one, two = (b"c", b"1", 0), (b"c", b"2", 0)

    def remove(_: FileId) -> None:
        removing.set()
        removed.wait()

    pins = Pins(remove, lambda _: None)
    first = threading.Thread(target=pins.retire, args=([one],))
    first.start()
    removing.wait()
    pins.pin([two])
    second = threading.Thread(target=pins.pin, args=([one],))
    second.start()
    second.join(0.05)
    assert second.is_alive()  # it must not find the file, and lose it
    removed.set()
    first.join()
    second.join()
    assert sorted(pins.ids()) == [one, two]


class _FailingCommit:
    """A connection whose commits fail as on a disk that does."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, statement: str, *values: object) -> object:
        if statement != "COMMIT":
            return self._db.execute(statement, *values)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


@only_sqlite
def test_a_commit_that_failed_is_the_last(store: Store) -> None:
    """Also for who waits for the catalogue meanwhile: it is marked before anybody else has it."""
    database = store._catalogue._file._db
    sound, database._db = database._db, _FailingCommit(database._db)  # type: ignore[assignment]
    with pytest.raises(ReadOnlyError):
        store._catalogue.create(replace(RECORD, name="b", collection_id=bytes(16)), b"sealed", 10, 0.0)
    database._db = sound
    assert store.read_only
    with pytest.raises(ReadOnlyError), database.transaction():
        pass
    store.snapshot(RECORD, 1).close()


def test_an_import_nobody_goes_on_with_is_collected(tmp_path: Path, where: Where, kek: KeyProvider | None) -> None:
    now = 1e9
    store = Store(tmp_path, **where, kek=kek, clock_s=lambda: now, orphan_age_s=100.0)
    store.create(replace(RECORD, version=4), b"", 10)
    uploaded(store, [b"a"])
    store.leftovers.collect()
    now += 50
    store.leftovers.collect()
    assert store.find("notes")
    now += 101
    store.leftovers.collect()
    with pytest.raises(NotFound):
        store.find("notes")
    store.close()


def test_dropped_collections_leave_nothing(store: Store, tmp_path: Path) -> None:
    for number in range(5):
        record = replace(RECORD, name=f"n{number}", collection_id=bytes([number + 1] * 16))
        store.create(record, b"sealed", 10)
        uploaded(store, [b"a"], record.collection_id)
        store.drop(record)
    assert len(list((tmp_path / "segments").iterdir())) <= 1
    assert len(store._segments._editions) <= 1
    assert len(store._folder._durable) <= 1


def test_a_snapshot_is_one_version(store: Store) -> None:
    store.commit(RECORD, 1, b"sealed 2", [uploaded(store, [b"a"])])
    for version in (1, 3):
        with pytest.raises(HesearchError, match="the manifest is at version 2"):
            store.snapshot(RECORD, version)
    snapshot: Snapshot
    with store.snapshot(RECORD, 2) as snapshot:
        assert snapshot.record.version == 2


# ---- configuration -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["threads", "max_scans", "max_dim", "max_queries", "max_segments", "max_collections"])
def test_limits_are_positive(tmp_path: Path, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"{field}: got 0"):
        ServerConfig(data=tmp_path, **{field: 0})  # type: ignore[arg-type]


def test_a_manifest_must_fit_a_message(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="max_manifest_bytes"):
        ServerConfig(data=tmp_path, max_manifest_bytes=1 << 30)


def test_opening_makes_nothing_of_arrays(tmp_path: Path) -> None:
    """A written array's memory is taken as it lies."""
    words = np.arange(1024, dtype="<u4")
    with files.NewFile(tmp_path) as file:
        file.append(memoryview(words).cast("B"))
        written = PlainFile(file.path)
        assert written.read(4, 4) == b"\1\0\0\0"
        with pytest.raises(TamperedDataError, match="ends 4 bytes too early"):
            written.read(4092, 8)
    with pytest.raises(TamperedDataError, match="missing"):
        written.size_bytes()

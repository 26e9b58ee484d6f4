"""fsck: it finds every kind of damage, changes nothing unless it is told to, and repairs what can be."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from he_client import Client, CollectionKey
from he_engine.errors import InvalidInput, NotFound, Unavailable, WrongKeyError
from he_engine.keys import RootKey
from he_server.operate.fsck import Report, check
from he_server.storage import files
from he_server.storage.kek import KeyProvider, SecretKek
from he_server.storage.store import Store
from tests.store_fixture import COLLECTION, KEK, RECORD, described, made, path_of, uploaded, verify

DIM = 8
CONTENTS = [[b"i" * 5000, b"h" * 100, b"", b"", b"p"], [b"j" * (3 << 20), b"h"], [b"k"]]


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture
def live(tmp_path: Path, kek: KeyProvider | None) -> list[bytes]:
    return made(tmp_path / "data", kek, CONTENTS)


@pytest.fixture
def data(tmp_path: Path, live: list[bytes]) -> Path:  # noqa: ARG001
    return tmp_path / "data"


def _state(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Of every file and folder: mode, time of the last change, content."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in (root, *root.rglob("*"))
    }


def _unchanged(root: Path, kek: KeyProvider | None) -> Report:
    """A check, which must have changed nothing."""
    before = _state(root)
    report = check(root, kek)
    assert _state(root) == before
    assert report.repaired == []
    return report


def _serves(root: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    store = Store(root, kek=kek)
    with store.snapshot(store.find("notes"), 2) as snapshot:
        assert [segment.description.segment_id for segment in snapshot.segments] == live
    for segment, contents in zip(live, CONTENTS, strict=True):
        assert verify(store, segment) == described(contents)
    store.close()


def _flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 16]))


def test_a_sound_folder(data: Path, kek: KeyProvider | None) -> None:
    report = _unchanged(data, kek)
    assert report.clean
    assert (report.problems, report.leftovers) == ([], [])
    assert (report.collections, report.segments) == (1, 3)
    assert report.checked_bytes == sum(described(contents).file_bytes for contents in CONTENTS)
    assert report.sealed == (kek is not None)
    if kek is None:
        assert check(data, KEK) == report, "a key that is not needed changes nothing"


def test_what_was_never_served(tmp_path: Path) -> None:
    """Nothing, a folder of something else, and what a server made that died at once: none is called clean."""
    (tmp_path / "letter.txt").write_text("no segment")
    for root in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotFound, match="there is none, or it has no catalogue"):
            check(root)
    (tmp_path / "segments").mkdir()
    before = _state(tmp_path)
    with pytest.raises(NotFound):
        check(tmp_path, repair=True)
    assert _state(tmp_path) == before


def test_a_folder_in_use_is_refused(data: Path, kek: KeyProvider | None) -> None:
    store = Store(data, kek=kek)
    with pytest.raises(Unavailable, match="a server has it open"):
        check(data, kek)
    store.close()
    assert check(data, kek).clean


def test_the_key_must_be_right(tmp_path: Path) -> None:
    made(tmp_path, KEK, CONTENTS)
    with pytest.raises(InvalidInput, match="sealed"):
        check(tmp_path)
    with pytest.raises(WrongKeyError):
        check(tmp_path, SecretKek(RootKey(b"x" * 32)))


def test_what_a_crash_leaves_is_no_damage(data: Path, kek: KeyProvider | None) -> None:
    """A server that was killed: its log, a file on its way, a file without a row."""
    store = Store(data, kek=kek)
    reader = sqlite3.connect(data / "catalogue.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM collections").fetchone()  # the log cannot be brought in meanwhile
    segment = uploaded(store, [b"new"])
    assert (data / "catalogue.sqlite-wal").stat().st_size
    killed = data.parent / "killed"
    shutil.copytree(data, killed)
    reader.close()
    store.close()
    stray = path_of(killed, segment).with_name("0" * 64)
    for path in (stray, killed / "incoming" / "1.part"):
        path.write_bytes(b"garbage")
    report = _unchanged(killed, kek)
    assert report.clean
    assert report.segments == 4
    assert report.leftovers == ["incoming/1.part", str(stray.relative_to(killed))]
    report = check(killed, kek, repair=True)
    assert report.clean
    assert len(report.repaired) == 2
    assert not stray.exists()
    assert _unchanged(killed, kek).leftovers == []
    assert path_of(killed, segment).exists()


@pytest.mark.parametrize("by", ["fsck", "a start"])
def test_what_a_killed_repair_leaves(data: Path, kek: KeyProvider | None, live: list[bytes], by: str) -> None:
    """A new catalogue on its way: named, and gone with the next start or repair."""
    names = ["catalogue.sqlite.new", "catalogue.sqlite.new-shm", "catalogue.sqlite.new-wal"]
    for name in names:
        (data / name).write_bytes(b"unfinished")
    report = _unchanged(data, kek)
    assert (report.clean, report.leftovers) == (True, names)
    if by == "fsck":
        assert len(check(data, kek, repair=True).repaired) == 3
    _serves(data, kek, live)
    assert _unchanged(data, kek).leftovers == []
    assert list(data.glob("*.new*")) == []


@pytest.mark.parametrize("part", range(3))
def test_every_flipped_bit_of_a_segment_is_found(
    data: Path, kek: KeyProvider | None, live: list[bytes], part: int
) -> None:
    """Header, parts, padding, tags; a sample of positions, the first and last among them."""
    path = path_of(data, live[0])
    size = path.stat().st_size
    rng = np.random.default_rng(part)
    for position in {0, 8, 4095, 4096, size - 1, *(rng.integers(0, size, 20)).tolist()}:
        _flip(path, position)
        report = check(data, kek)
        assert not report.clean, position
        assert live[0].hex() in report.problems[0]
        _flip(path, position)
    assert check(data, kek).clean


def test_padding_at_a_chunks_end_is_checked(tmp_path: Path) -> None:
    """A part may end where the next one begins a chunk."""
    size = (1 << 20) - 4096 - 10
    (segment,) = made(tmp_path, None, [[b"i" * size, b"h"]])
    assert check(tmp_path).clean
    _flip(path_of(tmp_path, segment), 4096 + size + 5)
    assert "padding" in check(tmp_path).problems[0]


def _missing(path: Path) -> None:
    path.unlink()


def _short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _altered(path: Path) -> None:
    _flip(path, path.stat().st_size - 1)


def _garbage(path: Path) -> None:
    path.write_bytes(b"x" * 10)


@pytest.mark.parametrize("damage", [_missing, _short, _altered, _garbage])
def test_a_damaged_segment(
    data: Path, kek: KeyProvider | None, live: list[bytes], damage: Callable[[Path], None]
) -> None:
    """Found; left where it is, since a client may be able to read some of it; whole again when it is sent."""
    path = path_of(data, live[1])
    damage(path)
    damaged = path.read_bytes() if path.exists() else None
    report = _unchanged(data, kek)
    assert [live[1].hex() in problem for problem in report.problems] == [True]
    for source in (None, data.parent / "backup"):
        if source:
            shutil.copytree(data, source)  # as damaged
        report = check(data, kek, repair=True, source=source)
        assert not report.clean
        assert "hesearch repair" in report.problems[0]
        assert (path.read_bytes() if path.exists() else None) == damaged
        assert not (data / "damaged").exists()
    store = Store(data, kek=kek)
    uploaded(store, CONTENTS[1])
    store.close()
    assert _unchanged(data, kek).clean
    _serves(data, kek, live)


@pytest.mark.parametrize("row", ["sound", "lost"])
def test_a_client_saves_what_can_be_read_after_a_repair_without_a_source(tmp_path: Path, row: str) -> None:
    """Also where the catalogue was made anew, and the segment's row of its file."""
    key, rows = CollectionKey.generate(), np.random.default_rng(3).normal(size=(20, DIM))
    with Client(tmp_path) as client:
        collection = client.create_collection("c", dim=DIM, key=key)
        collection.insert(range(20), rows, payloads=[f"text {i}" for i in range(20)])
    (path,) = (tmp_path / "segments").rglob("*/*")
    _altered(path)  # a payload
    if row == "lost":
        _damage_cell(tmp_path, "segments", "cell", "segment_id", bytes.fromhex(path.name))
    report = check(tmp_path, repair=True)
    assert not report.clean
    with Client(tmp_path) as client:
        client._cache = type(client._cache)(None)
        saved = client.repair_collection("c", key=key, confirm=True)
        assert (saved.damaged, saved.lost_rows, saved.repaired) == (1, 0, True)
        assert client.open_collection("c", key=key).count() == 20


@pytest.mark.parametrize("damage", [_missing, _altered])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_segment_comes_back_from_a_backup(
    data: Path, kek: KeyProvider | None, live: list[bytes], damage: Callable[[Path], None], rotated: bool
) -> None:
    """Also where the backup has it under an older data key."""
    backup = data.parent / "backup"
    shutil.copytree(data, backup)
    if rotated and kek:
        store = Store(data, kek=kek)
        store.data_keys.add(COLLECTION)
        for record in store.data_keys.outdated(COLLECTION):
            store.data_keys.reseal(record)
        store.data_keys.drop_old(COLLECTION)
        store.close()
    damage(path_of(data, live[1]))
    _altered(path_of(backup, live[0]))  # of no concern
    report = check(data, kek, repair=True, source=backup)
    assert report.problems == []
    assert any("fetched" in text for text in report.repaired)
    _serves(data, kek, live)
    assert _unchanged(data, kek).clean


def test_what_is_put_aside_is_there_before_it_leaves(
    data: Path, kek: KeyProvider | None, live: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name aside is synced while it has the old one, too: a disk may keep the two folders' entries in any order."""
    shutil.copytree(data, data.parent / "backup")
    path = path_of(data, live[1])
    _altered(path)
    altered, synced = path.read_bytes(), []
    sync_folder = files.sync_folder

    def watched(folder: Path) -> None:
        aside = [one for one in folder.iterdir() if one.is_file() and one.read_bytes() == altered]
        if folder != path.parent and aside:
            synced.append(path.read_bytes() == altered)
        sync_folder(folder)

    monkeypatch.setattr(files, "sync_folder", watched)
    assert check(data, kek, repair=True, source=data.parent / "backup").clean
    assert synced == [True]
    _serves(data, kek, live)


def test_a_backup_that_is_damaged_helps_nobody(data: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    backup = data.parent / "backup"
    shutil.copytree(data, backup)
    for root in (data, backup):
        _altered(path_of(root, live[1]))
    report = check(data, kek, repair=True, source=backup)
    assert not report.clean
    assert any("the source has no sound one" in text for text in report.repaired)
    with pytest.raises(NotFound, match="no such folder"):
        check(data, kek, repair=True, source=data / "nothing")


def test_a_source_that_is_none_is_refused_before_it_is_needed(data: Path, kek: KeyProvider | None) -> None:
    for source in (data / "nothing", data / "segments"):
        with pytest.raises(NotFound, match="no such folder, or it has no catalogue"):
            check(data, kek, repair=True, source=source)


def test_a_damaged_segment_that_no_manifest_names(data: Path, kek: KeyProvider | None) -> None:
    """Its row goes, so that its client finds that it must send it again."""
    store = Store(data, kek=kek)
    segment = uploaded(store, [b"not live"])
    store.close()
    _altered(path_of(data, segment))
    assert "not live" in _unchanged(data, kek).problems[0]
    report = check(data, kek, repair=True)
    assert report.clean
    assert _unchanged(data, kek).segments == 3


# ---- the catalogue -------------------------------------------------------------------------------------------
def _change(data: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(data / "catalogue.sqlite") as db:
        db.execute(statement, values)
    db.close()


def _damage_cell(data: Path, table: str, column: str, where: str, value: bytes) -> None:
    with sqlite3.connect(data / "catalogue.sqlite") as db:
        (cell,) = db.execute(f"SELECT {column} FROM {table} WHERE {where} = ?", (value,)).fetchone()
        altered = bytearray(cell)
        altered[len(cell) // 2] ^= 1
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {where} = ?", (bytes(altered), value))
    db.close()


def test_a_damaged_row_of_a_segment_is_made_of_its_file(data: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    _damage_cell(data, "segments", "cell", "segment_id", live[1])
    report = _unchanged(data, kek)
    assert any("its row is damaged" in problem for problem in report.problems)
    assert report.leftovers == []
    report = check(data, kek, repair=True)
    assert report.problems == []
    _serves(data, kek, live)
    assert _unchanged(data, kek).leftovers == []


def test_a_row_that_is_gone(data: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    """With its file gone, too, it must be possible to send the segment again."""
    _change(data, "DELETE FROM segments WHERE segment_id = ?", live[0])
    path_of(data, live[0]).unlink()
    assert any("it is live and has no row" in problem for problem in _unchanged(data, kek).problems)
    report = check(data, kek, repair=True)
    assert [live[0].hex() in problem for problem in report.problems] == [True]
    store = Store(data, kek=kek)
    uploaded(store, CONTENTS[0])
    assert store.totals(store.find("notes")).stored_bytes == sum(len(b"".join(contents)) for contents in CONTENTS)
    store.close()
    _serves(data, kek, live)
    assert _unchanged(data, kek).clean


@pytest.mark.parametrize("column", ["state", "manifest"])
def test_a_collection_whose_row_is_damaged(data: Path, kek: KeyProvider | None, live: list[bytes], column: str) -> None:
    """Nothing else says what it said. The others go on, and all of it is kept aside."""
    store = Store(data, kek=kek)
    other = RECORD.__class__("other", b"o" * 16, b"parameters", RECORD.parameter_digest, 1)
    store.create(other, b"sealed", 10)
    lost = uploaded(store, [b"of the other"], b"o" * 16)
    store.close()
    _damage_cell(data, "collections", column, "collection_id", b"o" * 16)
    content = path_of(data, lost, b"o" * 16).read_bytes()
    before = (data / "catalogue.sqlite").read_bytes()
    report = _unchanged(data, kek)
    assert any((b"o" * 16).hex() in problem and "restore a backup" in problem for problem in report.problems)
    report = check(data, kek, repair=True)
    assert any((b"o" * 16).hex() in problem and "restore a backup" in problem for problem in report.problems)
    (aside,) = (data / "damaged").iterdir()
    assert (aside / "catalogue.sqlite").read_bytes() == before
    assert [path.read_bytes() for path in aside.rglob(lost.hex() + "*")] == [content]
    assert _unchanged(data, kek).clean
    _serves(data, kek, live)


@pytest.mark.parametrize("lost", ["its header", "all of it", "the file"])
def test_a_catalogue_that_is_lost(data: Path, kek: KeyProvider | None, live: list[bytes], lost: str) -> None:
    """Nothing is taken for garbage then, and a restored catalogue finds everything in its place."""
    catalogue = data / "catalogue.sqlite"
    before = catalogue.read_bytes()
    if lost == "the file":
        catalogue.unlink()
    else:
        catalogue.write_bytes(b"x" * (100 if lost == "its header" else len(before)) + before[100:])
    for repair in (False, True):
        report = check(data, kek, repair=repair)
        assert any("catalogue" in problem for problem in report.problems)
        assert report.leftovers == []
    catalogue.write_bytes(before)
    _serves(data, kek, live)
    assert _unchanged(data, kek).clean


def test_a_damaged_index_of_the_catalogue(data: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    """SQLite finds no row by it, and every row without it."""
    catalogue = data / "catalogue.sqlite"
    with sqlite3.connect(catalogue) as db:
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'collections'"
        ).fetchone()
    db.close()
    raw = bytearray(catalogue.read_bytes())
    page = slice((root - 1) * page_bytes, root * page_bytes)
    raw[page] = raw[page].replace(COLLECTION, b"x" * 16)
    catalogue.write_bytes(raw)
    assert any("catalogue: " in problem for problem in _unchanged(data, kek).problems)
    report = check(data, kek, repair=True)
    assert report.problems == []
    _serves(data, kek, live)


def test_flipped_bits_of_the_catalogue(data: Path, kek: KeyProvider | None, live: list[bytes]) -> None:
    """Each is found, or changes nothing that a server reads."""
    catalogue = data / "catalogue.sqlite"
    before = catalogue.read_bytes()
    rng = np.random.default_rng(7)
    found = 0
    for position in sorted(rng.choice(len(before), 60, replace=False)):
        _flip(catalogue, int(position))
        try:
            clean = check(data, kek).clean
        except Exception as error:
            assert type(error).__module__ == "he_engine.errors", error
            clean = False
        if clean:
            _serves(data, kek, live)
        found += not clean
        catalogue.write_bytes(before)
    assert found


def test_a_folder_of_schema_version_1(tmp_path: Path) -> None:
    """As it is, and as it is repaired: brought to the new version by nobody but a server."""
    (segment,) = made(tmp_path, None, [[b"index"]])
    (tmp_path / "catalogue.sqlite").unlink()
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as db:
        db.executescript(
            """CREATE TABLE collections (collection_id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, parameters BLOB,
               parameter_digest BLOB, version INTEGER, sealed_manifest BLOB);
            CREATE TABLE segments (collection_id BLOB, segment_id BLOB, blocks INTEGER, stored_bytes INTEGER,
               index_bytes INTEGER, touched_s REAL, position INTEGER, PRIMARY KEY (collection_id, segment_id));
            PRAGMA user_version = 1; PRAGMA application_id = 0x48455352;"""
        )
        row = (COLLECTION, "notes", RECORD.parameters, RECORD.parameter_digest, 2, b"sealed 2")
        db.execute("INSERT INTO collections VALUES (?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO segments VALUES (?, ?, 2, 5, 5, 0.0, 0)", (COLLECTION, segment))
    db.close()
    digest = hashlib.sha256((tmp_path / "catalogue.sqlite").read_bytes()).digest()
    assert _unchanged(tmp_path, None).clean
    assert check(tmp_path, repair=True).clean
    assert hashlib.sha256((tmp_path / "catalogue.sqlite").read_bytes()).digest() == digest
    _altered(path_of(tmp_path, segment))
    assert not _unchanged(tmp_path, None).clean

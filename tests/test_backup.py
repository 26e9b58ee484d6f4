"""Backups: of one moment whatever happens meanwhile, incremental, and refused where a byte is not the one written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client import Client, CollectionKey
from he_client.cli import main
from he_engine.errors import (
    AlreadyExists,
    FormatVersionError,
    HesearchError,
    InvalidInput,
    NotFound,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_server.config import ServerConfig
from he_server.operate.backup import backup
from he_server.operate.backup_list import digest, write_list
from he_server.operate.fsck import check
from he_server.operate.fsck_catalogue import wrapped_key
from he_server.operate.restore import restore
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from he_server.storage import links
from he_server.storage.catalogue_file import FOLDER_KEY_CONTEXT
from he_server.storage.data_keys import DataKeys
from he_server.storage.kek import KeyProvider, new_kek_file, open_kek
from he_server.storage.store import Store
from tests.compaction_fixture import DIM, contents, make
from tests.store_fixture import COLLECTION, KEK, made, path_of, uploaded, verify

CONTENTS = [[b"i" * 5000, b"h" * 100, b"", b"", b"p"], [b"j" * (3 << 20), b"h"], [b"k"]]


@pytest.fixture(params=[None, KEK], ids=["unsealed", "sealed"])
def kek(request: pytest.FixtureRequest) -> KeyProvider | None:
    found: KeyProvider | None = request.param
    return found


@pytest.fixture
def data(tmp_path: Path, kek: KeyProvider | None) -> Path:
    made(tmp_path / "data", kek, CONTENTS)
    return tmp_path / "data"


def _live(root: Path, kek: KeyProvider | None) -> list[bytes]:
    """Of a folder that is served: each is verified."""
    store = Store(root, kek=kek)
    record = store.find("notes")
    with store.snapshot(record, record.version) as snapshot:
        found = [segment.description.segment_id for segment in snapshot.segments]
    for segment in found:
        verify(store, segment)
    store.close()
    return found


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- a folder at rest ----------------------------------------------------------------------------------------
def test_there_and_back(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    before, live = _files(data / "segments"), _live(data, kek)
    done = backup(data, tmp_path / "backup")
    assert (done.files, done.copied_files) == (4, 4)
    assert done.total_bytes == sum(path.stat().st_size for path in (tmp_path / "backup").rglob("*") if _belongs(path))
    assert check(tmp_path / "backup", kek).clean
    shutil.rmtree(data)
    seen: list[tuple[int, int]] = []
    restore(tmp_path / "backup", data, lambda *of: seen.append(of))
    assert _files(data / "segments") == before
    assert seen[-1] == (done.total_bytes, done.total_bytes)
    assert check(data, kek) == check(tmp_path / "backup", kek)
    assert _live(data, kek) == live
    assert {path.stat().st_mode & 0o077 for path in data.rglob("*")} == {0}


def _belongs(path: Path) -> bool:
    return path.is_file() and path.name not in ("backup.json", "backup.lock")


def test_nothing_but_restore_and_fsck_opens_a_backup(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    """Whatever else would change it, so that it could not be restored any more. An unfinished one, too."""
    target = tmp_path / "backup"
    backup(data, target)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(target, unfinished)
    (unfinished / "backup.json").unlink()
    for root in (target, unfinished):
        before = _files(root)
        with pytest.raises(InvalidInput, match="`hesearch restore`"):
            Store(root, kek=kek)
        with pytest.raises(InvalidInput, match="`hesearch restore`"):
            check(root, kek, repair=True)
        assert check(root, kek).clean
        assert _files(root) == before


def test_nothing_in_the_data_folder_changes(data: Path, tmp_path: Path) -> None:
    before = _files(data)
    backup(data, tmp_path / "backup")
    assert _files(data) == before
    assert {path.stat().st_nlink for path in data.rglob("*") if path.is_file()} == {1}


def test_the_second_backup_copies_what_is_new(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    target = tmp_path / "backup"
    backup(data, target)
    inodes = {path.name: path.stat().st_ino for path in (target / "segments").rglob("*")}
    store = Store(data, kek=kek)
    kept = store._catalogue.live(COLLECTION)[:2]
    new = uploaded(store, [b"new"])
    store.commit(store.find("notes"), 2, b"sealed 3", [*kept, new])
    done = backup(data, target)
    assert (done.files, done.copied_files) == (4, 2), "it and the catalogue"
    store.close()
    for segment in kept:
        path = path_of(target, segment)
        assert path.stat().st_ino == inodes[path.name]
    assert len(list((target / "segments").rglob("*/*"))) == 3, "the retired one has gone"
    assert check(target, kek).clean
    restore(target, tmp_path / "restored")
    assert _live(tmp_path / "restored", kek) == [*kept, new]


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def _largest(root: Path) -> Path:
    return max((root / "segments").rglob("*/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("at", [200, -1], ids=["first page", "last byte"])
@pytest.mark.parametrize("crashed", [False, True])
def test_what_decays_in_a_backup_is_copied_again(
    data: Path, tmp_path: Path, kek: KeyProvider | None, at: int, crashed: bool
) -> None:
    """By its earlier digest; after a crash, by its own or by the data folder's file."""
    target = tmp_path / "backup"
    backup(data, target)
    sound = _files(target / "segments")
    _flip(_largest(target), at)
    if crashed:
        (target / "backup.json").unlink()
    assert not check(target, kek).clean
    done = backup(data, target)
    assert (done.copied_files, done.damage) == (2, [])
    assert _files(target / "segments") == sound
    assert list(target.rglob("*.new")) == []
    restore(target, tmp_path / "restored")
    assert check(tmp_path / "restored", kek).clean


def test_what_decays_in_the_data_folder_spoils_no_backup(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    target = tmp_path / "backup"
    backup(data, target)
    _flip(_largest(data), -1)
    assert backup(data, target).copied_files == 1
    assert check(target, kek).clean


def test_a_segment_sent_again(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    """Of the same name and size; in a sealed folder its bytes are others, and in both they are sound now."""
    target = tmp_path / "backup"
    path = _largest(data)
    _flip(path, -1)
    assert len(backup(data, target).damage) == (0 if kek else 1)
    assert not check(target, kek).clean
    store = Store(data, kek=kek)
    uploaded(store, CONTENTS[1])
    store.close()
    assert backup(data, target).damage == []
    assert check(target, kek).clean


# ---- damage of before ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["header", "first part", "last byte", "length", "name", "row", "catalogue", "gone"])
def test_damage_is_copied_and_told(data: Path, tmp_path: Path, kek: KeyProvider | None, where: str) -> None:
    """All that can be seen without a key: of an unsealed folder any; of a sealed one first pages, and SQLite's own."""
    path, target = _largest(data), tmp_path / "backup"
    if where in ("header", "first part", "last byte"):
        _flip(path, {"header": 50, "first part": 5000, "last byte": -1}[where])
    elif where == "length":
        path.write_bytes(path.read_bytes() + b"\0")
    elif where == "name":
        path.rename(path.with_name("0" * 64 + path.suffix))
    elif where == "gone":
        path.unlink()
    else:
        at = b"notes" if where == "row" else b"sqlite_autoindex_collections_1"
        raw = (data / "catalogue.sqlite").read_bytes()
        (data / "catalogue.sqlite").write_bytes(raw.replace(at, at[:-1] + b"2", 1))
    seen = where in ("header", "length", "name", "catalogue") or not kek
    report = check(data, kek) if where != "row" or not kek else None
    assert report is None or not report.clean
    done = backup(data, target)
    assert bool(done.damage) == seen
    assert done.sealed == (kek is not None)
    assert _files(target / "segments") == _files(data / "segments"), "it is evidence"
    assert restore(target, tmp_path / "restored").damage == done.damage
    again = backup(data, target)
    assert (again.damage, again.copied_files) == (done.damage, 2 if seen and where in _DAMAGED_FILES else 1)
    if report:
        assert check(tmp_path / "restored", kek).problems == report.problems


_DAMAGED_FILES = ("header", "first part", "last byte", "length", "name")


# ---- refusals ------------------------------------------------------------------------------------------------
def test_what_is_no_target(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("keep me")
    for target, reason in (
        (other, "neither empty nor"),
        (data, "lie in each other"),
        (data / "backup", "lie in each"),
        (tmp_path, "lie in"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            backup(data, target)
    assert (other / "letter.txt").read_text() == "keep me"
    made(tmp_path / "second", None, CONTENTS)
    with pytest.raises(InvalidInput, match="neither empty nor"):
        backup(data, tmp_path / "second")
    with pytest.raises(NotFound):
        backup(tmp_path / "nothing", tmp_path / "backup")
    assert not (tmp_path / "nothing").exists()
    assert not (tmp_path / "backup").exists()


def test_a_target_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"

    def again(*_: int) -> None:
        with pytest.raises(Unavailable, match="another one is being made there"):
            backup(data, target)

    backup(data, target, again)
    with (target / "lock").open("w") as served:  # as by a server of an earlier version
        fcntl.flock(served, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="the target open"):
            backup(data, target)


def test_a_restore_takes_an_empty_folder(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    backup(data, tmp_path / "backup")
    before = _files(data)
    with pytest.raises(AlreadyExists, match="not empty"):
        restore(tmp_path / "backup", data)
    assert _files(data) == before
    with pytest.raises(NotFound, match="never completed"):
        restore(data, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    (tmp_path / "restored").mkdir()
    restore(tmp_path / "backup", tmp_path / "restored")
    assert check(tmp_path / "restored", kek).clean


@pytest.mark.parametrize("kind", ["catalogue", "segment", "list", "missing"])
def test_a_damaged_backup_is_refused(data: Path, tmp_path: Path, kind: str) -> None:
    """And leaves nothing that a server would start with."""
    target = tmp_path / "backup"
    backup(data, target)
    segment = next((target / "segments").rglob("*/*"))
    path = {"catalogue": target / "catalogue.sqlite", "list": target / "backup.json"}.get(kind, segment)
    if kind == "missing":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with pytest.raises(TamperedDataError):
        restore(target, tmp_path / "restored")
    assert kind == "list" or list((tmp_path / "restored").iterdir()) == []


def test_a_list_is_not_believed(data: Path, tmp_path: Path) -> None:
    """With a right digest, but places outside, values of another kind, or of another version."""
    target = tmp_path / "backup"
    backup(data, target)
    content = json.loads((target / "backup.json").read_text())
    del content["sha256"]
    catalogue = content["files"]["catalogue.sqlite"]
    shutil.copyfile(target / "catalogue.sqlite", target / "outside")
    changes: list[tuple[dict[str, Any], type[HesearchError]]] = [
        ({"files": {"catalogue.sqlite": catalogue, "segments/../outside": catalogue}}, TamperedDataError),
        ({"files": {}}, TamperedDataError),
        ({"files": {"catalogue.sqlite": {"bytes": "x", "sha256": ""}}}, TamperedDataError),
        ({"format": 2}, FormatVersionError),
        ({"format": True}, FormatVersionError),
        ({"made_s": True}, TamperedDataError),
        ({"made_s": float("nan")}, TamperedDataError),
        ({"made_s": float("inf")}, TamperedDataError),
    ]
    for change, expected in changes:
        altered = content | change
        (target / "backup.json").write_text(json.dumps(altered | {"sha256": digest(altered)}))
        with pytest.raises(expected):
            restore(target, tmp_path / "restored")


# ---- interruptions -------------------------------------------------------------------------------------------
class _Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("at", range(3))
def test_an_interrupted_backup(data: Path, tmp_path: Path, kek: KeyProvider | None, first: bool, at: int) -> None:
    """Is no backup, or still the earlier one; and goes on when it is made again."""
    target = tmp_path / "backup"
    earlier = _live(data, kek)
    if not first:
        backup(data, target)
    store = Store(data, kek=kek)
    live = [uploaded(store, [b"new %d" % number]) for number in range(3)]
    store.commit(store.find("notes"), 2, b"sealed 3", live)
    store.close()
    calls = iter(range(100))

    def stop(*_: int) -> None:
        if next(calls) == at:
            raise _Stop

    with pytest.raises(_Stop):
        backup(data, target, stop)
    assert [path.name for path in data.iterdir() if path.name.startswith("backing-up")] == []
    if first:
        with pytest.raises(NotFound):
            restore(target, tmp_path / "restored")
    else:
        restore(target, tmp_path / "restored")
        assert _live(tmp_path / "restored", kek) == earlier
        shutil.rmtree(tmp_path / "restored")
    backup(data, target)
    restore(target, tmp_path / "restored")
    assert _live(tmp_path / "restored", kek) == live


@pytest.mark.parametrize("published", [False, True])
def test_a_backup_that_dies_around_its_list(
    data: Path, tmp_path: Path, kek: KeyProvider | None, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """It is the earlier one just before, and the new one just after; files that are replaced, too."""
    target = tmp_path / "backup"
    earlier = _live(data, kek)
    backup(data, target)
    store = Store(data, kek=kek)
    uploaded(store, CONTENTS[1])  # in a sealed folder: the same name, other bytes
    live = [*earlier, uploaded(store, [b"new"])]
    store.commit(store.find("notes"), 2, b"sealed 3", live)
    store.close()

    def stop(*of: Any) -> None:
        if published:
            write_list(*of)
        raise _Stop

    with monkeypatch.context() as patched:
        patched.setattr("he_server.operate.backup.write_list", stop)
        with pytest.raises(_Stop):
            backup(data, target)
    assert len(list(target.rglob("*.new"))) == (2 if kek else 1), "the catalogue, at least"
    restore(target, tmp_path / "restored")
    assert _live(tmp_path / "restored", kek) == (live if published else earlier)
    backup(data, target)
    restore(target, tmp_path / "again")
    assert _live(tmp_path / "again", kek) == live
    assert list(target.rglob("*.new")) == []


def test_links_of_a_backup_that_died_go(data: Path, tmp_path: Path, kek: KeyProvider | None) -> None:
    """And those of one that is being made stay."""
    script = (
        "import os, sys; from pathlib import Path; from he_server.operate.backup import backup\n"
        "backup(Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", script, data, tmp_path / "died"]).returncode == 9
    (left,) = data.glob("backing-up-*")
    report = check(data, kek)
    assert (report.clean, report.leftovers) == (True, [left.name])
    with links.linking(data) as busy:
        assert not left.exists()
        assert check(data, kek).leftovers == []
        backup(data, tmp_path / "backup")
        assert busy.folder.exists()
        Store(data, kek=kek).close()
        assert busy.folder.exists(), "a start leaves it"
    for remove in (lambda: check(data, kek, repair=True), lambda: Store(data, kek=kek).close()):
        left.mkdir()
        remove()
        assert not left.exists()


# ---- a server that goes on -----------------------------------------------------------------------------------
def test_what_happens_between_linking_and_copying(
    data: Path, tmp_path: Path, kek: KeyProvider | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first links, segments come and go; under the lock nothing does; afterwards they go again."""
    store = Store(data, kek=kek)
    record = store.find("notes")
    update, came = links.Links.update, []
    waits = threading.Event()
    blocked: list[threading.Thread] = []

    def change(linked: links.Links) -> list[str]:
        found = update(linked)
        if not came:
            came.append(uploaded(store, [b"new"]))
            store.commit(record, 2, b"sealed 3", came)
        else:
            thread = threading.Thread(target=lambda: (store.commit(record, 3, b"sealed 4", []), waits.set()))
            thread.start()
            blocked.append(thread)
            assert not waits.wait(0.3), "the row cannot go now"
        return found

    monkeypatch.setattr(links.Links, "update", change)
    backup(data, tmp_path / "backup", lambda *_: blocked[0].join())
    assert waits.is_set()
    assert store.find("notes").version == 4
    store.close()
    assert _live(data, kek) == []
    restore(tmp_path / "backup", tmp_path / "restored")
    assert _live(tmp_path / "restored", kek) == came


@contextlib.contextmanager
def _serving(data: Path, kek: str) -> Iterator[str]:
    """In a process of its own; its address."""
    command = [sys.executable, "-m", "he_server", "--data", str(data), "--listen", "127.0.0.1:0", "--insecure"]
    with subprocess.Popen([*command, *(["--kek", kek] if kek else [])], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()
            assert server.wait(60) == 0


class _Writer:
    """Inserts, deletes and compacts, and knows which rows each version has."""

    def __init__(self, address: str, key: CollectionKey) -> None:
        self.history: dict[int, dict[int, str]] = {}  # by version: payloads by id
        self.done = threading.Condition()
        self.steps = 0
        self._stop = False
        self._failed: list[BaseException] = []
        self._client = Client(address, insecure=True)
        self._collection = make(self._client, key)
        self._rng = np.random.default_rng(5)
        self._rows: dict[int, str] = {}
        self.history[self._collection.version] = {}
        self._thread = threading.Thread(target=self._run)

    def _step(self) -> None:
        collection, number = self._collection, self.steps
        kind = number % 5
        rows = dict(self._rows)
        if kind in (0, 1, 3):
            ids = [10 * number + i for i in range(5)]
            texts = [f"row {i}" for i in ids]
            collection.insert(ids, self._rng.normal(size=(len(ids), DIM)), payloads=texts)
            rows |= dict(zip(ids, texts, strict=True))
        elif kind == 2:
            gone = sorted(rows)[:: 2 if number % 2 else 3]
            collection.delete(gone)
            rows = {i: text for i, text in rows.items() if i not in gone}
        else:
            collection.compact()
        with self.done:
            self._rows = self.history[collection.version] = rows
            self.steps += 1
            self.done.notify_all()

    def _run(self) -> None:
        try:
            while not self._stop:
                self._step()
        except BaseException as error:
            self._failed.append(error)
        with self.done:
            self.done.notify_all()

    def wait_for(self, steps: int) -> int:
        """Until so many more are done; the version then."""
        with self.done:
            wanted = self.steps + steps
            self.done.wait_for(lambda: self.steps >= wanted or bool(self._failed), 60)
            assert not self._failed, self._failed
            return max(self.history)

    def rows_of(self, version: int) -> dict[int, str]:
        """Versions in between are those of a compaction, which changes no row."""
        return self.history[max(v for v in self.history if v <= version)]

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self._client.close()
        assert not self._failed, self._failed


@pytest.mark.parametrize("sealed", [False, True])
def test_backups_of_a_live_server(tmp_path: Path, sealed: bool) -> None:
    """While rows come and go and segments are compacted, each backup is one version between its begin and its end."""
    kek = ""
    if sealed:
        new_kek_file(tmp_path / "kek")
        kek = f"file:{tmp_path / 'kek'}"
    key, data, target = CollectionKey.generate(), tmp_path / "data", tmp_path / "backup"
    kept: list[tuple[int, int, Path]] = []
    with _serving(data, kek) as address, _Writer(address, key) as writer:
        begin = writer.wait_for(6)
        for number in range(8):
            backup(data, target)
            end = writer.wait_for(1)
            assert check(target, open_kek(kek) if kek else None).problems == []
            restore(target, tmp_path / f"restored {number}")
            kept.append((begin, end, tmp_path / f"restored {number}"))
            begin = writer.wait_for(1)
    versions = set()
    for begin, end, restored in kept:
        config = ServerConfig(data=restored, listen="127.0.0.1:0", insecure=True, threads=1, kek=kek)
        with Service(config) as service:
            server = GrpcServer(service)
            with Client(server.address, insecure=True) as client:
                collection = client.open_collection("c", key=key)
                assert begin <= collection.version <= end
                (found,) = contents(collection, np.ones((1, DIM)))
                assert {i: payload for i, (_, payload) in found.items()} == writer.rows_of(collection.version)
                versions.add(collection.version)
            server.stop(0)
    assert len(versions) > 1


# ---- the command line ----------------------------------------------------------------------------------------
def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is sealed, backed up, damaged, repaired, rotated, lost and restored."""
    data, target, key = tmp_path / "data", tmp_path / "backup", tmp_path / "kek"
    segment, *_ = made(data, None, CONTENTS)
    kek = f"file:{key}"
    assert _run(capsys, "kek", "new", key)[0] == 0
    assert _run(capsys, "kek", "new", key)[0] == 4
    assert _run(capsys, "kek", "rotate", data, "--kek", kek, "--previous-kek", kek)[0] == 2, "not sealed"
    code, out, _ = _run(capsys, "rekey", data, "--kek", kek, "--json")
    assert (code, json.loads(out)) == (0, {"written": 3, "left": 0})
    code, out, _ = _run(capsys, "backup", data, target, "--json")
    assert (code, json.loads(out)["copied_files"]) == (0, 4)
    assert _run(capsys, "fsck", target, "--kek", kek)[:2] == (0, "clean: 1 collections, 3 segments, 3.2 MB checked\n")
    assert _run(capsys, "fsck", data)[0] == 2, "no key"
    assert _run(capsys, "fsck", data, "--kek", kek, "--from", target)[0] == 2
    path_of(data, segment).unlink()
    code, out, _ = _run(capsys, "fsck", data, "--kek", kek, "--json")
    assert (code, json.loads(out)["clean"], len(json.loads(out)["problems"])) == (9, False, 1)
    code, out, _ = _run(capsys, "fsck", data, "--kek", kek, "--repair", "--from", target)
    assert code == 0
    assert "fetched from the source" in out
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    passphrase.chmod(0o600)
    new = f"passphrase:{passphrase}"
    assert _run(capsys, "kek", "rotate", data, "--kek", new, "--previous-kek", kek)[0] == 0
    assert _run(capsys, "fsck", data, "--kek", kek)[0] == 5
    assert _run(capsys, "fsck", data, "--kek", new)[0] == 0
    assert _run(capsys, "rekey", data, "--kek", new)[0] == 0
    assert path_of(data, segment).suffix == ".2"
    shutil.rmtree(data)
    for command in (["fsck", data], ["backup", data, target], ["rekey", data, "--kek", new]):
        assert _run(capsys, *command)[0] == 3
        assert not data.exists()
    assert _run(capsys, "restore", target, data)[0] == 0
    assert _run(capsys, "restore", target, data)[0] == 4
    assert _run(capsys, "fsck", data, "--kek", kek)[0] == 0


def test_what_commands_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is no data folder, not sealed, a backup, in use, or damaged."""
    data, target, key, other = tmp_path / "data", tmp_path / "backup", tmp_path / "kek", tmp_path / "other"
    kek, new = f"file:{key}", f"file:{other}"
    new_kek_file(key)
    new_kek_file(other)
    for path in (tmp_path, tmp_path / "nothing"):
        code, out, err = _run(capsys, "fsck", path)
        assert (code, out) == (3, "") and "no catalogue" in err
    made(data, None, CONTENTS)
    code, out, _ = _run(capsys, "fsck", data, "--kek", kek)
    assert code == 0 and out.startswith("NOT SEALED: the key was not needed")
    assert "NOT SEALED" not in _run(capsys, "fsck", data)[1]
    assert json.loads(_run(capsys, "fsck", data, "--kek", kek, "--json")[1])["sealed"] is False
    assert "without the key" not in _run(capsys, "backup", data, tmp_path / "unsealed")[1]
    _run(capsys, "rekey", data, "--kek", kek)
    for previous in (new, kek):
        code, out, _ = _run(capsys, "kek", "rotate", data, "--kek", kek, "--previous-kek", previous)
        assert code == 0 and "opens with --kek already; nothing was changed" in out
    store = Store(data, kek=open_kek(kek))
    rotate, rekey = ["--kek", new, "--previous-kek", kek], ["--kek", kek, "--folder-key"]
    for command in (["kek", "rotate", data, *rotate], ["rekey", data, *rekey], ["rekey", data, *rekey[:2]]):
        code, _, err = _run(capsys, *command)
        assert code == 8 and "stop it first" in err
    store.close()
    code, out, _ = _run(capsys, "backup", data, target)
    assert code == 0 and "without the key only the structure" in out and f"hesearch fsck {target} --kek" in out
    before = _files(target)
    repair = ["--kek", kek, "--repair"]
    for command in (["kek", "rotate", target, *rotate], ["rekey", target, *rekey], ["fsck", target, *repair]):
        code, _, err = _run(capsys, *command)
        assert code == 2 and "`hesearch restore`" in err
    assert _files(target) == before
    _flip(_largest(data), 100)
    for command in (["backup", data, tmp_path / "third"], ["restore", tmp_path / "third", tmp_path / "restored"]):
        code, out, _ = _run(capsys, *command)
        assert code == 9 and "damaged: segments/" in out
    assert json.loads(_run(capsys, "backup", data, tmp_path / "third", "--json")[1])["damage"]


def test_a_new_folder_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who has the old KEK and an old copy opens nothing of a later one; and all is there."""
    data, old, key, other = tmp_path / "data", tmp_path / "old", tmp_path / "kek", tmp_path / "other"
    new_kek_file(key)
    new_kek_file(other)
    first, second = open_kek(f"file:{key}"), open_kek(f"file:{other}")
    live = made(data, first, CONTENTS)
    shutil.copytree(data, old)
    rotate = ["kek", "rotate", data, "--kek", f"file:{other}", "--previous-kek", f"file:{key}"]
    assert _run(capsys, *rotate)[0] == 0
    known, later = _folder_keys(old, first), _folder_keys(data, second)
    assert known == later, "the reason for --folder-key"
    code, out, _ = _run(capsys, "rekey", data, "--kek", f"file:{other}", "--folder-key", "--json")
    assert (code, json.loads(out)["written"]) == (0, 3)
    assert _folder_keys(data, second) != known
    assert {path.suffix for path in (data / "segments").rglob("*/*")} == {".2"}
    with pytest.raises(WrongKeyError):
        check(data, first)
    assert check(data, second).clean
    assert _live(data, second) == live


def _folder_keys(root: Path, kek: KeyProvider) -> bytes:
    return kek.unwrap(wrapped_key(root / "catalogue.sqlite"), FOLDER_KEY_CONTEXT)


def test_an_interrupted_rekey_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is left, under the keys that it had begun with."""
    from he_server.operate.commands import rekey

    made(tmp_path, KEK, CONTENTS)
    reseal, written = DataKeys.reseal, []

    def once(keys: DataKeys, record: Any) -> bool:
        if written:
            raise _Stop
        written.append(record)
        return reseal(keys, record)

    with monkeypatch.context() as patched:
        patched.setattr(DataKeys, "reseal", once)
        with pytest.raises(_Stop):
            rekey(tmp_path, KEK)
    assert sorted(path.suffix for path in (tmp_path / "segments").rglob("*/*")) == [".1", ".1", ".2"]
    assert rekey(tmp_path, KEK) == (2, 0)
    assert {path.suffix for path in (tmp_path / "segments").rglob("*/*")} == {".2"}
    assert rekey(tmp_path, KEK) == (3, 0)
    assert check(tmp_path, KEK).clean

"""Encryption at rest: keys and their rotation, what the disk shows, what is refused, and indexes in memory."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import (
    AlreadyExists,
    HesearchError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    ResidueError,
    TamperedDataError,
    Unavailable,
    WrongKeyError,
)
from he_engine.key_program import KeyProgram
from he_engine.keys import RootKey
from he_proto.v1 import hesearch_pb2 as pb
from he_server.operate.fsck import check
from he_server.storage import segment_file
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.kek import KeyProvider, PassphraseKek, SecretKek, new_kek_file, open_kek
from he_server.storage.rekey import rotate
from he_server.storage.sealed_file import CHUNK_BYTES, NewSealedFile, SealedFile
from he_server.storage.store import Store
from he_server.storage.upkeep import Upkeep
from tests.server_fixture import BLOCK_BYTES, FakeClient, naive_answers, residues, running
from tests.store_fixture import COLLECTION, DIGEST, KEK, RECORD, described, made, path_of, uploaded, verify

OTHER = SecretKek(RootKey(b"o" * 32))
CONTENTS = [[b"the index" * 1000, b"hint", b"", b"", b"payloads"], [b"j" * (CHUNK_BYTES + 5), b"h"], [b"k"]]


def _live(store: Store) -> list[bytes]:
    """Each of them verified."""
    record = store.find("notes")
    with store.snapshot(record, record.version) as snapshot:
        found = [segment.description.segment_id for segment in snapshot.segments]
    for segment in found:
        verify(store, segment)
    return found


# ---- where the key comes from --------------------------------------------------------------------------------
_KMS = """#!/bin/sh
# Swaps the halves of each byte, and knows its own by what it puts in front.
read -r line
case "$1" in
wrap) echo "abcd$line" | tr 0123456789abcdef fedcba9876543210 ;;
unwrap)
  line=$(echo "$line" | tr 0123456789abcdef fedcba9876543210)
  case "$line" in abcd*) echo "${line#abcd}" ;; *) echo "not mine" >&2; exit 4 ;; esac ;;
esac
"""


def _program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o700)
    return f"exec:{path}"


@pytest.fixture(params=["file", "passphrase", "exec"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / request.param
    if request.param == "exec":
        return _program(path, _KMS)
    if request.param == "file":
        new_kek_file(path)
    else:
        path.write_text("correct horse battery staple\n")
        path.chmod(0o600)
    return f"{request.param}:{path}"


def test_a_folder_opens_with_its_key(spec: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    live = made(data, open_kek(spec), CONTENTS)
    store = Store(data, kek=open_kek(spec))
    assert store.sealed
    assert _live(store) == live
    store.close()
    with pytest.raises(InvalidInput, match="this data folder is sealed"):
        Store(data)
    with pytest.raises((WrongKeyError, Unavailable)):
        Store(data, kek=OTHER if not spec.startswith("file") else PassphraseKek(b"wrong"))
    store = Store(data, kek=open_kek(spec))  # none of these changed anything
    assert _live(store) == live
    store.close()


def test_providers_bind_the_context(spec: str) -> None:
    kek, secret = open_kek(spec), secrets.token_bytes(32)
    wrapped = kek.wrap(secret, b"this")
    assert secret not in wrapped
    assert kek.unwrap(wrapped, b"this") == secret
    with pytest.raises(WrongKeyError):
        kek.unwrap(wrapped, b"that")
    for altered in (wrapped[:-1], bytes([wrapped[0] ^ 1]) + wrapped[1:], b""):
        with pytest.raises((WrongKeyError, Unavailable)):
            kek.unwrap(altered, b"this")


def test_a_new_key_file(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    new_kek_file(path)
    assert (len(path.read_bytes()), path.stat().st_mode & 0o777) == (32, 0o600)
    before = path.read_bytes()
    with pytest.raises(AlreadyExists, match="never overwritten"):
        new_kek_file(path)
    assert path.read_bytes() == before
    new_kek_file(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() != before
    with pytest.raises(NotFound):
        new_kek_file(tmp_path / "nowhere" / "kek")


@pytest.mark.parametrize("spec", ["", "file", "file:", ":x", "kms:x", "exec:"])
def test_what_is_no_key(spec: str) -> None:
    with pytest.raises(InvalidInput, match="expected file:PATH, passphrase:PATH or exec:PROGRAM"):
        open_kek(spec)


def test_key_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    with pytest.raises(NotFound):
        open_kek(f"file:{path}")
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match="got 31 bytes"):
        open_kek(f"file:{path}")
    path.write_bytes(bytes(32))
    path.chmod(0o604)
    with pytest.raises(InvalidInput, match="everybody may read"):
        open_kek(f"file:{path}")
    path.chmod(0o600)
    path.write_bytes(b"\n")
    with pytest.raises(InvalidInput, match="empty passphrase"):
        open_kek(f"passphrase:{path}")


@pytest.mark.parametrize("text", ["exit 3", "echo nonsense", "kill -9 $$", "true"])
def test_programs_that_fail(tmp_path: Path, text: str) -> None:
    kek = open_kek(_program(tmp_path / "kms", f"#!/bin/sh\nread -r line\n{text}\n"))
    with pytest.raises((Unavailable, WrongKeyError)):
        kek.unwrap(bytes(40), b"this")
    with pytest.raises(Unavailable, match="FileNotFoundError"):
        KeyProgram(str(tmp_path / "nothing"), "kek").wrap(bytes(32), b"this")


def test_a_service_that_wraps_to_nothing(tmp_path: Path) -> None:
    """Its silence must not pass for a folder that is not sealed."""
    kek = open_kek(_program(tmp_path / "kms", "#!/bin/sh\nread -r line\n"))
    with pytest.raises(HesearchError):
        Store(tmp_path / "data", kek=kek)
    store = Store(tmp_path / "data")
    assert not store.sealed
    store.close()


# ---- what the disk shows -------------------------------------------------------------------------------------
_SECRETS = (
    b"notes of the board",
    b"the parameters",
    b"the sealed manifest",
    b"what the index says",
    b"what the hint says",
)


@pytest.mark.parametrize("kek", [None, KEK], ids=["unsealed", "sealed"])
def test_nothing_can_be_read_from_the_disk(tmp_path: Path, kek: KeyProvider | None) -> None:
    """Also of what was deleted, while the server runs, and when it was killed; without a key all of it is there."""
    name, parameters, manifest, index, hint = _SECRETS
    record = CollectionRecord(name.decode(), COLLECTION, parameters, DIGEST, 1)
    store = Store(tmp_path / "data", kek=kek)
    store.create(record, manifest, 10)
    segment = uploaded(store, [index * 1000, hint])
    store.commit(record, 1, manifest * 3, [segment])
    with store.upload(described([index * 2])) as upload:
        upload.write(index)  # on its way
        if kek is not None:
            keys = [key.secret for state in store.states() for key in state.keys]
            assert len(keys) == 1
        else:
            keys = []
        found = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    seen = [secret for secret in (*_SECRETS, DIGEST, *keys) if secret in found]
    assert seen == ([] if kek else [*_SECRETS, DIGEST])
    store.close()


def test_names_tell_only_random_ids(tmp_path: Path) -> None:
    (segment,) = made(tmp_path, KEK, [[b"index"]])
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"catalogue.sqlite", "lock", f"segments/{COLLECTION.hex()}/{segment.hex()}.1"}


def test_a_dropped_collections_keys_are_nowhere(tmp_path: Path) -> None:
    """Nor a replaced one: not in the catalogue, not in its log, not in the pages that are free."""
    store = Store(tmp_path, kek=KEK)
    for number in range(40):
        collection_id = number.to_bytes(16, "big")
        store.create(CollectionRecord(f"c{number}", collection_id, bytes(300), DIGEST, 1), b"m" * (number * 100), 100)
    catalogue, log = tmp_path / "catalogue.sqlite", tmp_path / "catalogue.sqlite-wal"

    def cells() -> list[bytes]:
        with sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True) as db:
            found = db.execute("SELECT state, collection_id FROM collections").fetchall()
        db.close()
        return [bytes(state) for state, _ in found]

    before = cells()
    raw = catalogue.read_bytes()
    assert all(cell in raw or cell[:60] in raw for cell in before)
    for number in range(40):
        collection_id = number.to_bytes(16, "big")
        if number % 2:
            store.drop(store.find(f"c{number}"))
        else:
            store.data_keys.add(collection_id)
    raw = catalogue.read_bytes() + log.read_bytes()
    for cell in before:
        assert not any(cell[start : start + 24] in raw for start in range(1, len(cell) - 24, 24))
    assert all(cell[:60] in raw for cell in cells())
    store.close()


# ---- rotation of the key-encryption key ----------------------------------------------------------------------
def test_a_new_key_encryption_key(tmp_path: Path, spec: str) -> None:
    """One row is written; every file stays as it is; the old key opens nothing any more."""
    data, old = tmp_path / "data", SecretKek(RootKey(b"a" * 32))
    live = made(data, old, CONTENTS)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (data / "segments").rglob("*/*")}

    def rows() -> list[tuple[bytes, ...]]:
        with sqlite3.connect(data / "catalogue.sqlite") as db:
            found = [row for table in ("collections", "segments") for row in db.execute(f"SELECT * FROM {table}")]
        db.close()
        return found

    rows_before = rows()
    for _ in range(2):  # the second time there is nothing to do
        store = Store(data, kek=open_kek(spec), previous_kek=old)
        assert _live(store) == live
        store.close()
    assert rows() == rows_before
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in (data / "segments").rglob("*/*")} == before
    with pytest.raises(WrongKeyError):
        Store(data, kek=old)
    store = Store(data, kek=open_kek(spec))
    assert _live(store) == live
    store.close()


def test_neither_key_opens_it(tmp_path: Path) -> None:
    made(tmp_path, KEK, CONTENTS)
    before = (tmp_path / "catalogue.sqlite").read_bytes()
    with pytest.raises(WrongKeyError):
        Store(tmp_path, kek=OTHER, previous_kek=PassphraseKek(b"wrong"))
    assert (tmp_path / "catalogue.sqlite").read_bytes() == before


# ---- data keys -----------------------------------------------------------------------------------------------
def _generations(root: Path) -> list[str]:
    return sorted(path.suffix for path in (root / "segments").rglob("*/*"))


def test_an_unsealed_folder_is_sealed(tmp_path: Path) -> None:
    """The catalogue when it is opened with a key, the files after it; what is mapped of the old ones goes."""
    live = made(tmp_path, None, CONTENTS)
    forgotten: list[Path] = []
    store = Store(tmp_path, kek=KEK, forget=lambda _, index: forgotten.append(index.path))
    assert store.sealed
    record = store.find("notes")
    assert _generations(tmp_path) == ["", "", ""]
    raw = (tmp_path / "catalogue.sqlite").read_bytes()
    assert not any(word in raw for word in (b"notes", b"parameters", b"sealed 2"))
    old = [path_of(tmp_path, segment) for segment in live]
    with store.snapshot(record, 2) as reader, store.reading(reader.segments[0]) as index:
        assert index.path == old[0]
        assert rotate(store, float("inf")) == 3
        assert old[0].exists(), "it is read"
        assert _live(store) == live
        assert reader.segments[0].source.read(4096, 9) == b"the index"
    assert _generations(tmp_path) == [".1", ".1", ".1"]
    assert sorted(forgotten) == sorted(old)
    assert rotate(store, float("inf")) == 0
    store.close()
    assert check(tmp_path, KEK).clean


def test_a_damaged_file_is_not_sealed(tmp_path: Path) -> None:
    """A seal around it would hide the damage from those who check seals alone."""
    live = made(tmp_path, None, CONTENTS)
    with path_of(tmp_path, live[1]).open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    store = Store(tmp_path, kek=KEK)
    assert rotate(store, float("inf")) == 2
    assert _generations(tmp_path) == ["", ".1", ".1"]
    with pytest.raises(TamperedDataError):
        verify(store, live[1])
    uploaded(store, CONTENTS[1])
    assert _generations(tmp_path) == [".1", ".1", ".1"]
    assert _live(store) == live
    store.close()


def test_new_data_keys(tmp_path: Path) -> None:
    """All files under the new one, the old ones gone with the last reader, and the old key with them."""
    live = made(tmp_path, KEK, CONTENTS)
    store = Store(tmp_path, kek=KEK)
    record = store.find("notes")
    (before,) = (state.keys for state in store.states())
    old = path_of(tmp_path, live[1])
    with store.snapshot(record, 2) as reader:
        source = reader.segments[1].source
        first = source.read(0, 5000)
        assert rotate(store, 0.0) == 3
        assert old.exists()
        assert source.read(0, 5000) == first
        with store.reading(reader.segments[1]) as index:
            assert index.length_bytes == CHUNK_BYTES + 5
        assert _live(store) == live
    assert not old.exists()
    assert _generations(tmp_path) == [".2", ".2", ".2"]
    (after,) = (state.keys for state in store.states())
    assert [key.generation for key in after] == [2]
    assert after[0].secret != before[0].secret
    assert store.data_keys.outdated(COLLECTION) == []
    assert path_of(tmp_path, uploaded(store, [b"new"])).suffix == ".2"
    assert rotate(store, 1e6) == 0, "it is new"
    store.close()
    store = Store(tmp_path, kek=KEK)
    assert _live(store) == live
    store.close()
    assert check(tmp_path, KEK).clean


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("reopened", [False, True])
def test_a_rotation_that_is_stopped_goes_on(tmp_path: Path, after: int, reopened: bool) -> None:
    live = made(tmp_path, KEK, CONTENTS)
    store = Store(tmp_path, kek=KEK)
    seen = iter(range(100))
    assert rotate(store, 0.0, stop=lambda: next(seen) == after) == min(after, 3)
    assert _generations(tmp_path) == [".1"] * (3 - after) + [".2"] * after
    (state,) = store.states()
    assert [key.generation for key in state.keys] == ([1, 2] if after < 3 else [2])
    store.data_keys.drop_old(COLLECTION)
    assert _live(store) == live, "a key that seals a file stays"
    if reopened:
        store.close()
        assert check(tmp_path, KEK).clean
        store = Store(tmp_path, kek=KEK)
    assert rotate(store, float("inf")) == 3 - min(after, 3)
    assert _generations(tmp_path) == [".2"] * 3
    assert [key.generation for state in store.states() for key in state.keys] == [2]
    assert _live(store) == live
    store.close()


def test_a_rotation_during_an_upload(tmp_path: Path) -> None:
    """Its key stays until it is stored; the next rotation writes it anew. One that is given up keeps no key."""
    live = made(tmp_path, KEK, CONTENTS)
    store = Store(tmp_path, kek=KEK)
    with store.upload(described([b"slow"])) as upload, store.upload(described([b"given up"])):
        upload.write(b"slow")
        assert rotate(store, 0.0) == 3
        upload.finish()
        upload.publish()
    assert _generations(tmp_path) == [".1", ".2", ".2", ".2"]
    assert rotate(store, float("inf")) == 1
    assert [key.generation for state in store.states() for key in state.keys] == [2]
    assert verify(store, upload.segment.description.segment_id) == described([b"slow"])
    assert _live(store) == live
    store.close()


def test_a_rotation_among_writers(tmp_path: Path) -> None:
    """Segments come, go and are dropped meanwhile: what is live stays readable, and nothing is left behind."""
    store = Store(tmp_path, kek=KEK)
    store.create(RECORD, b"sealed", 10)
    stop, failed = threading.Event(), []

    def write() -> None:
        try:
            version, live = 1, []
            for number in range(60):
                live = [*live[-4:], uploaded(store, [b"%d" % number * 100])]
                version = store.commit(store.find("notes"), version, b"sealed", live)
                other = CollectionRecord(f"o{number}", number.to_bytes(16, "big"), b"", DIGEST, 1)
                store.create(other, b"sealed", 100)
                uploaded(store, [b"o%d" % number], other.collection_id)
                store.drop(other)
                assert _live(store) == live
        except BaseException as error:
            failed.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        rotate(store, 0.0)
    thread.join()
    assert not failed, failed
    rotate(store, 0.0)
    live = _live(store)
    assert len(live) == 5
    (state,) = store.states()
    assert _generations(tmp_path) == [f".{key.generation}" for key in state.keys] * 5
    store.close()
    assert check(tmp_path, KEK).clean


def test_a_rotation_goes_on_past_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried again in this rotation, nor is what takes as much; the next one finds it."""
    store = Store(tmp_path, kek=KEK)
    store.create(RECORD, b"sealed", 10)
    sizes = (40_000, 50_000, 100, 200)
    live = [uploaded(store, [bytes([n]) * size]) for n, size in enumerate(sizes)]
    store.commit(RECORD, 1, b"sealed 2", live)
    append, tried = NewSealedFile.append, list[int]()

    def full(file: NewSealedFile, data: Buffer) -> None:
        tried.append(len(memoryview(data)))
        if tried[-1] > 10_000:
            raise LimitExceeded("storage: no room left")
        append(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(NewSealedFile, "append", full)
        with pytest.raises(LimitExceeded, match="no room left"):
            rotate(store, 0.0)
    assert sorted(_generations(tmp_path)) == [".1", ".1", ".2", ".2"]
    assert len([size for size in tried if size > 10_000]) in (1, 2), "by which came first"
    assert rotate(store, float("inf")) == 2
    assert _generations(tmp_path) == [".2"] * 4
    assert len(_live(store)) == 4
    store.close()


def test_upkeep(tmp_path: Path) -> None:
    made(tmp_path, None, CONTENTS)
    store = Store(tmp_path, kek=KEK)
    with Upkeep(store, 0):
        pass
    assert rotate(store, float("inf")) in (0, 1, 2, 3)
    assert _generations(tmp_path) == [".1"] * 3
    store.close()


# ---- files that were altered ---------------------------------------------------------------------------------
@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[tuple[Path, RootKey]]:
    """A file of three chunks, of which the last is short, and its key."""
    key, data = RootKey(b"k" * 32), np.random.default_rng(3).bytes(2 * CHUNK_BYTES + 100)
    with NewSealedFile(tmp_path, key, 7, COLLECTION, b"s" * 32, len(data)) as file:
        view = memoryview(data)
        for start in range(0, len(data), 300_000):
            file.append(view[start : start + 300_000])
        file.sync()
        file.publish(tmp_path / "sealed")
    (tmp_path / "plain").write_bytes(data)
    yield tmp_path / "sealed", key


def test_any_range_of_a_sealed_file(sealed: tuple[Path, RootKey]) -> None:
    path, key = sealed
    data, file = path.with_name("plain").read_bytes(), SealedFile(path, key)
    assert file.size_bytes() == len(data)
    rng = np.random.default_rng(4)
    edges = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(data) - 1, len(data)]
    for start in [*edges, *rng.integers(0, len(data), 20).tolist()]:
        for end in [*edges, *rng.integers(0, len(data), 3).tolist()]:
            if start <= end:
                assert file.read(start, end - start) == data[start:end]
    with pytest.raises(TamperedDataError, match="ends 1 bytes too early"):
        file.read(len(data), 1)
    assert data[:32] not in path.read_bytes()


def _swapped(raw: bytes) -> bytes:
    """The first two chunks, each with its tag."""
    size = CHUNK_BYTES + 16
    return raw[:4096] + raw[4096 + size : 4096 + 2 * size] + raw[4096 : 4096 + size] + raw[4096 + 2 * size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw[:5000],
        lambda raw: raw[:100],
        lambda _: b"",
        lambda raw: raw[: 4096 + 2 * (CHUNK_BYTES + 16)],
        _swapped,
    ],
)
def test_a_sealed_file_of_another_form(sealed: tuple[Path, RootKey], change: Callable[[bytes], bytes]) -> None:
    path, key = sealed
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TamperedDataError):
        file = SealedFile(path, key)
        file.read(0, file.size_bytes())


def test_every_flipped_bit_of_a_sealed_file(sealed: tuple[Path, RootKey]) -> None:
    path, key = sealed
    raw = path.read_bytes()
    tags = [4096 + chunk * (CHUNK_BYTES + 16) + CHUNK_BYTES for chunk in range(2)]
    rng = np.random.default_rng(5)
    for position in [*range(136), 4095, 4096, *tags, len(raw) - 1, *rng.integers(4096, len(raw), 20).tolist()]:
        altered = bytearray(raw)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        with pytest.raises(HesearchError):
            file = SealedFile(path, key)
            file.read(0, file.size_bytes())


def test_the_key_and_the_salt_are_the_files_own(sealed: tuple[Path, RootKey]) -> None:
    path, key = sealed
    with pytest.raises(TamperedDataError):
        SealedFile(path, RootKey(b"x" * 32)).read(0, 1)
    data = path.with_name("plain").read_bytes()
    with NewSealedFile(path.parent, key, 7, COLLECTION, b"s" * 32, len(data)) as file:
        file.append(data)
        file.sync()
        assert file.path.read_bytes()[4096:4128] != path.read_bytes()[4096:4128], "the same bytes never look the same"


def test_a_file_of_another_length_is_never_published(tmp_path: Path) -> None:
    with NewSealedFile(tmp_path, RootKey(bytes(32)), 1, COLLECTION, b"s" * 32, 10) as file:
        file.append(b"123456789")
        with pytest.raises(AssertionError):
            file.sync()
    assert list(tmp_path.iterdir()) == []


def test_files_in_the_place_of_others(tmp_path: Path) -> None:
    """Of another segment, of another collection with the same content, of an older key."""
    store = Store(tmp_path, kek=KEK)
    second = b"2" * 16
    store.create(RECORD, b"sealed", 10)
    store.create(CollectionRecord("second", second, b"", DIGEST, 1), b"sealed", 10)
    first, other = uploaded(store, [b"first"]), uploaded(store, [b"other"])
    elsewhere = uploaded(store, [b"first"], second)
    old = path_of(tmp_path, first).read_bytes()
    rotate(store, 0.0)
    store.close()
    target = path_of(tmp_path, first)
    good = target.read_bytes()
    replacements = [path_of(tmp_path, other), path_of(tmp_path, elsewhere, second)]
    for replacement in [*(path.read_bytes() for path in replacements), old]:
        target.write_bytes(replacement)
        store = Store(tmp_path, kek=KEK)
        assert not store.has((COLLECTION, first))
        with pytest.raises(TamperedDataError):
            store.segment(store.find("notes"), first)
        assert verify(store, other) == described([b"other"])
        store.close()
        assert not check(tmp_path, KEK).clean
    target.write_bytes(good)
    assert check(tmp_path, KEK).clean


@pytest.mark.parametrize("table", ["collections", "segments"])
def test_rows_in_the_place_of_others(tmp_path: Path, table: str) -> None:
    store = Store(tmp_path, kek=KEK)
    for number in range(2):
        collection_id = bytes([number]) * 16
        store.create(CollectionRecord(f"c{number}", collection_id, b"", DIGEST, 1), b"sealed", 10)
        uploaded(store, [b"%d" % number], collection_id)
    store.close()
    columns = {"collections": ["state", "manifest"], "segments": ["cell"]}[table]
    for column in columns:
        before = (tmp_path / "catalogue.sqlite").read_bytes()
        with sqlite3.connect(tmp_path / "catalogue.sqlite") as db:
            (cell,) = db.execute(f"SELECT {column} FROM {table} WHERE collection_id = ?", (bytes(16),)).fetchone()
            db.execute(f"UPDATE {table} SET {column} = ? WHERE collection_id = ?", (cell, b"\1" * 16))
        db.close()
        with pytest.raises(TamperedDataError):
            Store(tmp_path, kek=KEK)
        (tmp_path / "catalogue.sqlite").write_bytes(before)
    Store(tmp_path, kek=KEK).close()


def test_a_sealed_folder_takes_no_cell_that_is_not(tmp_path: Path) -> None:
    """Or a writer of the disk could name rows of its own."""
    made(tmp_path / "sealed", KEK, [[b"index"]])
    made(tmp_path / "unsealed", None, [[b"index"]])
    with sqlite3.connect(tmp_path / "unsealed" / "catalogue.sqlite") as db:
        rows = db.execute("SELECT * FROM collections").fetchall()
    db.close()
    with sqlite3.connect(tmp_path / "sealed" / "catalogue.sqlite") as db:
        db.executemany("INSERT OR REPLACE INTO collections VALUES (?, ?, ?)", rows)
    db.close()
    with pytest.raises(TamperedDataError, match="neither sealed nor unsealed as the folder is"):
        Store(tmp_path / "sealed", kek=KEK)


def test_a_reader_of_a_file_that_is_sent_again(tmp_path: Path) -> None:
    """The new one has another salt and takes its name; who began to read the old one ends with it."""
    (segment,) = made(tmp_path, KEK, [CONTENTS[1]])
    store = Store(tmp_path, kek=KEK)
    record = store.find("notes")
    with store.snapshot(record, 2) as snapshot:
        source = snapshot.segments[0].source
        start = source.read(4096, 10)
        store.damaged(snapshot.segments[0])
        uploaded(store, CONTENTS[1])
        assert source.read(4096, CHUNK_BYTES)[:10] == start == b"j" * 10
    assert _live(store) == [segment]
    store.close()


# ---- indexes in memory ---------------------------------------------------------------------------------------
_MB = 1 << 20


def _opened(store: Store, segment: bytes) -> bytes:
    """The index as an engine would read it."""
    with store.segment(store.find("notes"), segment) as snapshot, store.reading(snapshot.segments[0]) as index:
        return _bytes(index)


def _bytes(index: IndexFile) -> bytes:
    with index.path.open("rb") as file:
        file.seek(index.offset_bytes)
        return file.read(index.length_bytes)


def _allocated_bytes(store: Store) -> int:
    return os.fstat(store.indexes._memory).st_blocks * 512


def test_memory_is_bounded_and_given_back(tmp_path: Path) -> None:
    """Those unused the longest go, to the last page."""
    sizes = [_MB + 5000 * number for number in range(6)]
    contents = [[bytes([65 + number]) * size, b"h"] for number, size in enumerate(sizes)]
    live = made(tmp_path, KEK, contents)
    forgotten: list[IndexFile] = []
    store = Store(tmp_path, kek=KEK, index_memory_bytes=int(3.2 * _MB), forget=lambda _, index: forgotten.append(index))
    order = np.random.default_rng(6).integers(0, 6, 60).tolist()
    for number in [*range(6), *order]:
        assert _opened(store, live[number]) == contents[number][0]
        assert store.indexes.held_bytes <= 3.2 * _MB
        assert _allocated_bytes(store) <= store.indexes.held_bytes + 3 * 4096
    assert len(forgotten) > 20
    assert len({index.offset_bytes for index in forgotten}) == len(forgotten), "no position twice"
    store.commit(store.find("notes"), 2, b"sealed 3", [])
    assert store.indexes.held_bytes == 0
    assert _allocated_bytes(store) == 0
    memory = store.indexes._memory
    store.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)


def test_what_is_read_is_not_given_up(tmp_path: Path) -> None:
    contents = [[bytes([65 + number]) * _MB] for number in range(4)]
    live = made(tmp_path, KEK, contents)
    store = Store(tmp_path, kek=KEK, index_memory_bytes=2 * _MB)
    record = store.find("notes")
    with store.snapshot(record, 2) as snapshot, store.reading(snapshot.segments[0]) as index:
        for segment, content in zip(live[1:], contents[1:], strict=True):
            assert _opened(store, segment) == content[0]
        store.commit(record, 2, b"sealed 3", [])
        assert _bytes(index) == contents[0][0]
    assert (store.indexes.held_bytes, _allocated_bytes(store)) == (0, 0)
    store.close()


def test_it_is_decrypted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first of those who come at the same time; the others wait for it. A failure is tried again."""
    (segment,) = made(tmp_path, KEK, [[b"i" * _MB]])
    store = Store(tmp_path, kek=KEK)
    opened: list[Path] = []
    together = threading.Barrier(8)

    class Counted(SealedFile):
        def __init__(self, path: Path, data_key: RootKey) -> None:
            opened.append(path)
            if len(opened) == 1:
                raise Unavailable("once")
            super().__init__(path, data_key)

    monkeypatch.setattr(segment_file, "SealedFile", Counted)
    with pytest.raises(Unavailable):
        _opened(store, segment)
    assert store.indexes.held_bytes == 0

    def read(_: int) -> bytes:
        together.wait()
        return _opened(store, segment)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {b"i" * _MB}
    assert len(opened) == 2
    store.close()


def test_a_damaged_index_leaves_no_memory(tmp_path: Path) -> None:
    segment, other = made(tmp_path, KEK, [[b"i" * (3 * _MB)], [b"j"]])
    with path_of(tmp_path, segment).open("r+b") as file:
        file.seek(2 * _MB)
        file.write(b"x")
    store = Store(tmp_path, kek=KEK, index_memory_bytes=_MB)
    assert _opened(store, other) == b"j"
    with pytest.raises(TamperedDataError):
        _opened(store, segment)
    assert (store.indexes.held_bytes, _allocated_bytes(store)) == (0, 0)
    with pytest.raises(TamperedDataError, match="sending it again repairs it"):
        store.snapshot(store.find("notes"), 2)
    store.close()


# ---- the whole server ----------------------------------------------------------------------------------------
@pytest.fixture
def kek_spec(tmp_path: Path) -> str:
    new_kek_file(tmp_path / "kek")
    return f"file:{tmp_path / 'kek'}"


def test_answers_while_memory_is_short(tmp_path: Path, kek_spec: str) -> None:
    """Room for two of eight indexes, four callers: every answer is right."""
    index_bytes = 4 * BLOCK_BYTES + 4096
    limits: dict[str, Any] = {"kek": kek_spec, "max_scans": 99, "index_memory_bytes": 2 * index_bytes + 100}
    with running(tmp_path / "data", over_grpc=False, **limits) as endpoint:
        client = FakeClient(endpoint).create()
        segments = [client.segment(4) for _ in range(8)]
        for segment in segments:
            client.write(segment)
        client.commit(1, segments)

        def answers_are_right(seed: int) -> bool:
            queries = residues(np.random.default_rng(seed), 1)
            answers = client.answer(2, queries)
            return all(np.array_equal(answers[s.id], naive_answers(s.blocks, queries)) for s in segments)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(answers_are_right, range(12)))
        indexes = endpoint.service.store.indexes
        assert 0 < indexes.held_bytes <= 8 * index_bytes
        client.answer(2, residues(client.rng, 1))
        assert indexes.held_bytes <= limits["index_memory_bytes"]


def test_a_refused_segment_leaves_no_memory(tmp_path: Path, kek_spec: str) -> None:
    """Its index was decrypted to be looked at."""
    with running(tmp_path / "data", over_grpc=False, kek=kek_spec) as endpoint:
        client = FakeClient(endpoint).create()
        words = residues(client.rng, 2)
        words[0, 0, 0, 0, 0] = 0xFFFFFFFF
        with pytest.raises(ResidueError):
            client.write(client.segment(index=words))
        assert endpoint.service.store.indexes.held_bytes == 0
        assert list((tmp_path / "data" / "incoming").iterdir()) == []


def test_the_same_answers_sealed_and_rotated(tmp_path: Path, kek_spec: str) -> None:
    with running(tmp_path / "data", over_grpc=False) as endpoint:
        client = FakeClient(endpoint).create()
        segment = client.segment(3)
        client.write(segment)
        client.commit(1, [segment])
        queries = residues(client.rng, 2)
        expected = client.answer(2, queries)[segment.id]
    with running(tmp_path / "data", over_grpc=True, kek=kek_spec) as endpoint:
        client.endpoint = endpoint
        for _ in range(3):
            assert np.array_equal(client.answer(2, queries)[segment.id], expected)
            assert client.read_part(segment, pb.PART_KIND_HINT) == segment.contents[pb.PART_KIND_HINT]
            assert rotate(endpoint.service.store, 0.0) == 1
    assert check(tmp_path / "data", open_kek(kek_spec)).clean

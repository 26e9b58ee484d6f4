"""Key files: whole or absent, never overwritten, readable by their owner alone, and only with the passphrase."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from he_client import AlreadyExists, CollectionKey, FormatVersionError, InvalidInput, NotFound, WrongKeyError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CollectionKey]:
    path = tmp_path_factory.mktemp("keys") / "notes.key"
    key = CollectionKey.generate()
    key.save(path, passphrase="correct horse")
    return path, key


def test_round_trip(saved: tuple[Path, CollectionKey]) -> None:
    path, key = saved
    assert CollectionKey.load(path, "correct horse").derive("x") == key.derive("x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["notes.key"], "no temporary file stays"
    assert key._root is not None
    assert bytes(key._root).hex() not in path.read_text()


def test_wrong_passphrase(saved: tuple[Path, CollectionKey]) -> None:
    with pytest.raises(WrongKeyError) as caught:
        CollectionKey.load(saved[0], "battery staple")
    assert "battery" not in str(caught.value)


def test_never_overwritten(saved: tuple[Path, CollectionKey]) -> None:
    before = saved[0].read_bytes()
    with pytest.raises(AlreadyExists):
        CollectionKey.generate().save(saved[0], passphrase="x")
    assert saved[0].read_bytes() == before


@pytest.mark.parametrize("field", ["salt", "nonce", "sealed"])
def test_altered_files_do_not_open(saved: tuple[Path, CollectionKey], tmp_path: Path, field: str) -> None:
    fields = json.loads(saved[0].read_text())
    flipped = f"{int(fields[field][:2], 16) ^ 1:02x}" + fields[field][2:]
    bad = tmp_path / "bad.key"
    bad.write_text(json.dumps({**fields, field: flipped}))
    with pytest.raises(WrongKeyError):
        CollectionKey.load(bad, "correct horse")


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "null", "not json", '{"sealed": 3}', '{"sealed": "00", "nonce": "00"}',
        json.dumps({
            "format": "hesearch collection key", "version": 1, "salt": "00" * 16, "nonce": "00" * 12, "sealed": "00",
            "kdf": {"name": "argon2id", "iterations": 3, "memory_kib": 1 << 40, "lanes": 4},
        }),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    bad = tmp_path / "bad.key"
    bad.write_text(text)
    with pytest.raises(FormatVersionError):
        CollectionKey.load(bad, "x")


def test_missing_file_folder_and_passphrase(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        CollectionKey.load(tmp_path / "none.key", "x")
    with pytest.raises(NotFound):
        CollectionKey.generate().save(tmp_path / "none" / "a.key", passphrase="x")
    with pytest.raises(InvalidInput):
        CollectionKey.generate().save(tmp_path / "a.key", passphrase="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("memory_kib", 1 << 20), ("iterations", 64), ("lanes", 64)])
def test_hostile_parameters_are_refused(saved: tuple[Path, CollectionKey], field: str, value: int) -> None:
    """Before any of the memory or time that they ask for is spent."""
    path, _ = saved
    fields = json.loads(path.read_text())
    fields["kdf"][field] = value
    path.chmod(0o600)
    path.write_text(json.dumps(fields))
    with pytest.raises(FormatVersionError):
        CollectionKey.load(path, "correct horse")

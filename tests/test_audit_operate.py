"""The audit log under `backup`, `restore`, `fsck`, `kek rotate` and `rekey`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from he_client.cli import main
from he_engine.errors import WrongKeyError
from he_server.audit.heads import read_head
from he_server.audit.log import open_audit_log
from he_server.audit.verify import verify
from he_server.operate.backup import backup
from he_server.operate.fsck import check
from he_server.operate.restore import restore
from he_server.storage.kek import new_kek_file, open_kek
from he_server.storage.store import Store
from tests.audit_fixture import entry


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A data folder with five entries, and its KEK."""
    new_kek_file(tmp_path / "kek")
    spec = f"file:{tmp_path / 'kek'}" if request.param else ""
    data = tmp_path / "data"
    Store(data, kek=open_kek(spec) if spec else None).close()
    _append(data, spec, 0)
    return data, spec


def _append(data: Path, spec: str, first: int) -> None:
    with open_audit_log(data, open_kek(spec) if spec else None) as log:
        for number in range(first, first + 5):
            log.append(entry(number))


def test_a_backup_brings_the_log_back(folder: tuple[Path, str], tmp_path: Path) -> None:
    data, spec = folder
    kek = open_kek(spec) if spec else None
    early = read_head(data / "audit/head")
    backup(data, tmp_path / "backup")
    with open_audit_log(data, kek) as log:
        for number in range(5, 9):
            log.append(entry(number))
        assert backup(data, tmp_path / "backup").damage == [], "while a server appends"
    late = read_head(data / "audit/head")
    assert check(tmp_path / "backup", kek).clean
    restore(tmp_path / "backup", tmp_path / "restored")
    restored = tmp_path / "restored"
    assert check(restored, kek).clean
    _append(restored, spec, 9)
    assert verify(restored / "audit", [early, late]).proven == late.sequence
    assert not list((tmp_path / "backup").rglob("*.new"))


def test_fsck_finds_what_was_changed(folder: tuple[Path, str]) -> None:
    data, spec = folder
    kek = open_kek(spec) if spec else None
    raw = (data / "audit/log").read_bytes()
    (data / "audit/log").write_bytes(raw[:-1])
    for repair in (False, True):
        found = check(data, kek, repair=repair)
        assert len(found.problems) == 1
        assert found.problems[0].startswith("audit log: line 5")
    assert (data / "audit/log").read_bytes() == raw[:-1]


def test_keys_follow_the_kek(folder: tuple[Path, str], tmp_path: Path) -> None:
    """`rekey` seals an unsealed log with the folder; `kek rotate` takes it to the next KEK."""
    data, _ = folder
    head = read_head(data / "audit/head")
    first, second = f"file:{tmp_path / 'kek'}", f"file:{tmp_path / 'second'}"
    new_kek_file(tmp_path / "second")
    assert main(["rekey", str(data), "--kek", first]) == 0
    _append(data, first, 5)
    if os.geteuid() == 0:
        for path in (data, *data.rglob("*")):
            os.chown(path, 12345, 12345)
    for _ in range(2):
        assert main(["kek", "rotate", str(data), "--kek", second, "--previous-kek", first]) == 0
    with pytest.raises(WrongKeyError):
        open_audit_log(data, open_kek(first))
    assert len({path.stat().st_uid for path in data.rglob("*")}) == 1, "also where it was root who turned the key"
    _append(data, second, 10)
    assert verify(data / "audit", [head]).proven == head.sequence

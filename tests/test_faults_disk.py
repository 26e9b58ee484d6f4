"""The model of what a disk may keep when the power goes (tests.faults.disk), on calls written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk import Choice, Data, Disk, Durable, Everything, Names, Subset
from tests.faults.faultio import Call, Calls, Op

EIO = 5
_KINDS = {Op.WRITE: Calls.WRITE, Op.SYNC: Calls.SYNC, Op.RENAME: Calls.RENAME, Op.UNLINK: Calls.REMOVE}


def call(
    op: Op, path: str, *, second: str = "", inode: int = 0, at: int = 0, data: bytes = b"", error: int = 0
) -> Call:
    return Call(op, _KINDS.get(op, Calls.CREATE), error, path, second, inode, at, data)


def after(folder: Path, calls: list[Call], choice: Choice) -> dict[str, bytes]:
    disk = Disk(folder)
    for each in calls:
        disk.apply(each)
    return {name: bytes(content) for name, content in disk.state(choice).files.items()}


NEW = [call(Op.CREATE, "a", inode=7), call(Op.WRITE, "a", inode=7, data=b"new")]
SYNC_FILE, SYNC_FOLDER = call(Op.SYNC, "a", inode=7), call(Op.SYNC, "")


def test_nothing_that_was_not_synced_is_certain(tmp_path: Path) -> None:
    assert after(tmp_path, NEW, Durable()) == {}
    assert after(tmp_path, NEW, Everything()) == {"a": b"new"}
    assert after(tmp_path, NEW, Names()) == {"a": b""}
    assert after(tmp_path, NEW, Data()) == {}


def test_bytes_are_durable_with_their_file_and_names_with_their_folder(tmp_path: Path) -> None:
    assert after(tmp_path, [*NEW, SYNC_FILE], Durable()) == {}
    assert after(tmp_path, [*NEW, SYNC_FOLDER], Durable()) == {"a": b""}
    assert after(tmp_path, [*NEW, SYNC_FOLDER, SYNC_FILE], Durable()) == {"a": b"new"}


def test_a_rename_within_a_folder_is_whole_and_one_across_folders_is_two(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "x").write_bytes(b"x")
    (tmp_path / "from" / "y").write_bytes(b"y")
    within = [call(Op.RENAME, "from/x", second="from/y")]
    across = [call(Op.RENAME, "from/x", second="to/x")]
    seen = {tuple(sorted(after(tmp_path, within, Subset(str(seed))).items())) for seed in range(40)}
    assert seen == {(("from/x", b"x"), ("from/y", b"y")), (("from/y", b"x"),)}
    names = {tuple(sorted(after(tmp_path, across, Subset(str(seed))))) for seed in range(40)}
    assert names == {("from/x", "from/y"), ("from/y", "to/x"), ("from/x", "from/y", "to/x"), ("from/y",)}
    durable = after(tmp_path, [*across, call(Op.SYNC, "to")], Durable())
    assert durable == {"from/x": b"x", "from/y": b"y", "to/x": b"x"}


def test_a_write_may_be_there_in_sectors_and_a_truncation_may_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"o" * 2000)
    inode = (tmp_path / "a").stat().st_ino
    write = call(Op.WRITE, "a", inode=inode, at=100, data=b"n" * 1500)
    seen = {after(tmp_path, [write], Subset(str(seed)))["a"] for seed in range(80)}
    assert len(seen) > 8
    for content in seen:
        assert len(content) == 2000
        assert content[:100] == b"o" * 100
        assert content[1600:] == b"o" * 400
        for first, last in [(100, 512), (512, 1024), (1024, 1536), (1536, 1600)]:
            assert len(set(content[first:last])) == 1
    cut = call(Op.TRUNCATE, "a", inode=inode, at=3)
    assert after(tmp_path, [cut], Durable())["a"] == b"o" * 2000
    assert after(tmp_path, [cut, call(Op.SYNC, "a", inode=inode)], Durable())["a"] == b"ooo"


def test_what_a_failed_sync_forgot_no_later_sync_brings(tmp_path: Path) -> None:
    failed = call(Op.SYNC, "a", inode=7, error=EIO)
    more = call(Op.WRITE, "a", inode=7, at=3, data=b"er")
    calls = [*NEW, SYNC_FOLDER, failed, more, SYNC_FILE]
    assert after(tmp_path, calls, Durable()) == {"a": b"\0\0\0er"}
    assert after(tmp_path, calls, Everything()) == {"a": b"newer"}


def test_a_file_of_shared_memory_is_never_kept(tmp_path: Path) -> None:
    assert after(tmp_path, [call(Op.CREATE, "catalogue.sqlite-shm", inode=9)], Everything()) == {}


def test_a_call_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not seen before"):
        after(tmp_path, [call(Op.WRITE, "a", inode=7, data=b"x")], Durable())

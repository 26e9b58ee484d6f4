"""What a disk may hold when the power goes: a model of files and names that are durable, and of those that are not yet.

* Bytes of a file are durable from its next fsync or fdatasync on. A write or truncation that no sync followed may be
  there or not, each by itself, in any combination; a write may be there in part, in sectors of 512 bytes. Where it is
  not, there is what was there before, or zeros.
* Names (create, link, rename, unlink, mkdir, rmdir) are durable from the next fsync of their folder on, and only of it:
  not of the file. Until then each may be there or not. A rename within a folder is one change; one across folders is
  two, each durable with its own folder. A file without a name, or in a folder without one, is gone.
* After a sync of a file that failed, what it was to make durable may be there or not, and no later sync makes it
  durable: the system forgets that it has not been written. Names are journalled in order: their next sync does.
* SQLite's -shm file is rebuilt after every crash; it is never kept.

`Disk` follows a record; `Disk.state(choice)` is what one choice leaves. The strictest choice is `Durable`, the laxest
`Everything`; `Subset` is a seeded one in between.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.faultio import Call, Op

SECTOR_BYTES = 512
_NEVER_KEPT = "-shm"


@dataclass(slots=True, eq=False)
class Change:
    """Of a file: `data` at `offset`, or a truncation to `offset`. Of a folder: what `names` mean; None: nothing."""

    number: int  #: of the call
    offset: int = 0
    data: bytes | None = None
    names: dict[str, File | Folder | None] = field(default_factory=dict)
    durable: bool = False
    forgotten: bool = False  #: its sync failed


@dataclass(slots=True, eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    number: int = 0  #: of the call that made it
    settled: int = 0  #: how many changes became part of `content`


@dataclass(slots=True, eq=False)
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    number: int = 0
    settled: int = 0


class Choice:
    """Which of the changes that are not durable are on the disk. This one: none; the strictest."""

    label = "durable"

    def keeps_data(self, change: Change) -> bool | set[int]:  # noqa: ARG002
        """Of a file; a set: these sectors of it, counted from the start of the file."""
        return False

    def keeps_names(self, folder: Folder) -> set[int]:  # noqa: ARG002
        """The changes, by place in `folder.changes`, that are there."""
        return set()


class Durable(Choice):
    """Nothing that was not synced."""


class Everything(Choice):
    """All of it, as after a crash of the process alone."""

    label = "everything"

    def keeps_data(self, change: Change) -> bool | set[int]:  # noqa: ARG002
        return True

    def keeps_names(self, folder: Folder) -> set[int]:
        return set(range(len(folder.changes)))


class Names(Choice):
    """All names, no data: files that are there and empty."""

    label = "names"

    def keeps_names(self, folder: Folder) -> set[int]:
        return set(range(len(folder.changes)))


class Data(Choice):
    """All data, no names."""

    label = "data"

    def keeps_data(self, change: Change) -> bool | set[int]:  # noqa: ARG002
        return True


class Subset(Choice):
    """Drawn from a seed: of data an arbitrary subset with torn writes; of a folder's names a prefix or a subset."""

    def __init__(self, seed: str) -> None:
        self.label = f"subset {seed}"
        self._rng = random.Random(seed)
        self._share = self._rng.choice((0.2, 0.5, 0.8))

    def keeps_data(self, change: Change) -> bool | set[int]:
        if change.data and self._rng.random() < 0.3:
            first = change.offset // SECTOR_BYTES
            last = (change.offset + len(change.data) - 1) // SECTOR_BYTES
            return {sector for sector in range(first, last + 1) if self._rng.random() < 0.5}
        return self._rng.random() < self._share

    def keeps_names(self, folder: Folder) -> set[int]:
        count = len(folder.changes)
        if self._rng.random() < 0.5:
            return set(range(self._rng.randint(0, count)))
        return {place for place in range(count) if self._rng.random() < self._share}


@dataclass(slots=True)
class State:
    """A folder's content. `key`: equal for equal states of one disk."""

    folders: list[str]
    files: dict[str, bytes | bytearray]
    key: tuple[object, ...]

    def write(self, target: Path) -> None:
        target.mkdir()
        for folder in self.folders:
            (target / folder).mkdir()
        for name, content in self.files.items():
            (target / name).write_bytes(content)


class Disk:
    """One folder. What is there at first is durable."""

    def __init__(self, folder: Path) -> None:
        self._number = 0
        self._by_inode: dict[int, File] = {}
        self._root = self._load(folder)

    def _load(self, path: Path) -> Folder:
        folder = Folder()
        for entry in os.scandir(path):
            if entry.is_dir():
                folder.names[entry.name] = self._load(Path(entry.path))
            else:
                file = File(bytearray(Path(entry.path).read_bytes()))
                folder.names[entry.name] = self._by_inode[entry.inode()] = file
        return folder

    # ---- following a record ----------------------------------------------------------------------------
    def apply(self, call: Call) -> None:
        """The next call. Raises ValueError for one that does not fit what came before."""
        self._number += 1
        if call.error:
            if call.op is Op.SYNC and call.inode in self._by_inode:
                self._sync(call, forgotten=True)
            return
        match call.op:
            case Op.CREATE:
                self._by_inode[call.inode] = file = File(number=self._number)
                self._name(call.path, file)
            case Op.MKDIR:
                self._by_inode.pop(call.inode, None)  # numbers of files that are gone are used again
                self._name(call.path, Folder(number=self._number))
            case Op.WRITE:
                self._file(call).changes.append(Change(self._number, call.offset, call.data))
            case Op.TRUNCATE:
                self._file(call).changes.append(Change(self._number, call.offset))
            case Op.SYNC:
                self._sync(call)
            case Op.LINK:
                self._name(call.second, self._at(call.path))
            case Op.UNLINK | Op.RMDIR:
                self._name(call.path, None)
            case Op.RENAME:
                self._rename(call.path, call.second)

    def _file(self, call: Call) -> File:
        if call.inode not in self._by_inode:
            raise ValueError(f"record: {call.op.name} on {call.path!r}, which was not seen before")
        return self._by_inode[call.inode]

    def _split(self, path: str) -> tuple[Folder, str]:
        above, _, name = path.rpartition("/")
        folder = self._at(above)
        if not isinstance(folder, Folder):
            raise ValueError(f"record: {above!r} is no folder")
        return folder, name

    def _at(self, path: str) -> File | Folder:
        """As the process sees it: with all changes."""
        node: File | Folder | None = self._root
        for name in filter(None, path.split("/")):
            node = _seen(node).get(name) if isinstance(node, Folder) else None
        if node is None:
            raise ValueError(f"record: there is no {path!r}")
        return node

    def _name(self, path: str, node: File | Folder | None) -> None:
        folder, name = self._split(path)
        folder.changes.append(Change(self._number, names={name: node}))

    def _rename(self, old: str, new: str) -> None:
        node = self._at(old)
        (source, before), (target, after) = self._split(old), self._split(new)
        if source is target:
            source.changes.append(Change(self._number, names={before: None, after: node}))
        else:
            target.changes.append(Change(self._number, names={after: node}))
            source.changes.append(Change(self._number, names={before: None}))

    def _sync(self, call: Call, forgotten: bool = False) -> None:
        node = self._by_inode.get(call.inode) or self._at(call.path)
        for change in node.changes:
            if forgotten:
                change.forgotten = not change.durable
            elif not change.forgotten:
                change.durable = True
        while node.changes and node.changes[0].durable:
            change = node.changes.pop(0)
            node.settled += 1
            if isinstance(node, File):
                _write(node.content, change, True)
            else:
                _rename(node.names, change)

    # ---- what is left ----------------------------------------------------------------------------------
    def state(self, choice: Choice) -> State:
        state = State([], {}, ())
        state.key = tuple(self._collect(self._root, "", choice, state))
        return state

    def _collect(self, folder: Folder, path: str, choice: Choice, state: State) -> Iterator[object]:
        names, kept = dict(folder.names), choice.keeps_names(folder)
        for place, change in enumerate(folder.changes):
            if change.durable or place in kept:
                _rename(names, change)
        for name, node in sorted(names.items()):
            if name.endswith(_NEVER_KEPT):
                continue
            if isinstance(node, Folder):
                state.folders.append(path + name)
                yield path + name
                yield from self._collect(node, f"{path}{name}/", choice, state)
            else:
                chosen = [(c, True if c.durable else choice.keeps_data(c)) for c in node.changes]
                content = node.content
                if any(kept for _, kept in chosen):
                    content = bytearray(content)
                    for change, kept_data in chosen:
                        _write(content, change, kept_data)
                state.files[path + name] = content
                done = tuple((c.number, k if isinstance(k, bool) else tuple(sorted(k))) for c, k in chosen if k)
                yield path + name, node.number, node.settled, done


def _seen(folder: Folder) -> dict[str, File | Folder]:
    names = dict(folder.names)
    for change in folder.changes:
        _rename(names, change)
    return names


def _rename(names: dict[str, File | Folder], change: Change) -> None:
    for name, node in change.names.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _write(content: bytearray, change: Change, kept: bool | set[int]) -> None:
    """Does the change, or those sectors of it."""
    if kept is False or kept == set():
        return
    if change.data is None:
        if change.offset < len(content):
            del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    end = change.offset + len(change.data)
    for first, last in [(change.offset, end)] if kept is True else _sectors(change.offset, end, kept):
        content.extend(bytes(max(0, last - len(content))))
        content[first:last] = change.data[first - change.offset : last - change.offset]


def _sectors(start: int, end: int, kept: set[int]) -> Iterator[tuple[int, int]]:
    for sector in sorted(kept):
        yield max(start, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)

"""The same three troubles for what an operator does: backup, the next backup, restore, and fsck --repair.

A folder is watched that holds a data folder, a backup of it, and what is restored. After each trouble: the source is
what it was; a backup that can be restored is the earlier one, or the new one, whole, and one that was there before can
be; a restored folder is whole, or no server takes it; no byte that a repair replaces is lost; and done again without
trouble, it is all there.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from he_engine.errors import HesearchError, TamperedDataError
from he_server.operate import fsck_catalogue
from he_server.operate.backup import backup
from he_server.operate.fsck import check
from he_server.operate.restore import restore
from he_server.storage.folder import place
from he_server.storage.kek import KeyProvider
from he_server.storage.segment_file import open_source
from he_server.storage.store import Store
from tests.faults.disk import Choice, Data, Disk, Durable, Everything, Names, Subset
from tests.faults.faultio import ERRORS, KILLS, Call, Calls, Fault, Op, read_record
from tests.faults.forked import Died, forked
from tests.faults.scenes import END, Stage
from tests.faults.verdict import Verdict
from tests.store_fixture import KEK, made, path_of, uploaded

Run = tuple[str, Callable[[], Verdict | None]]
Content = tuple[object, ...]
SUBSETS = 3
_SEGMENTS = [[b"i" * 5000, b"h" * 100], [b"j" * 9000, b"h"], [b"k"]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`run(folder)` does it, and says whether all is well then; `wrong(folder, done)` says what is wrong afterwards.
    `done`: it was said that all is well."""

    name: str
    image: Path  #: the folder before
    run: Callable[[Path], bool]
    wrong: Callable[[Path, bool], list[str]]


# ---- what is done, and what must be there then ---------------------------------------------------------------
def content(root: Path, kek: KeyProvider | None) -> Content:
    """All that a server would find. Raises TamperedDataError where fsck finds something."""
    report = check(root, kek)
    if not report.clean:
        raise TamperedDataError(report.problems[0])
    rows = fsck_catalogue.read(root / "catalogue.sqlite", kek)
    states = {state.to_bytes() for state in rows.collections.values()}
    segments = {}
    for record, _ in rows.segments.values():
        key = rows.collections[record.collection_id].key(record.generation)
        source = open_source(place(root / "segments", record.file_id), key)
        segments[record.segment_id] = source.read(0, source.size_bytes())
    return states, segments


def _found(root: Path, kek: KeyProvider | None) -> Content | None:
    """None: it is refused."""
    try:
        return content(root, kek)
    except HesearchError:
        return None


def _restorable(source: Path, kek: KeyProvider | None) -> Content | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            restore(source, Path(folder) / "data")
        except HesearchError:
            return None
        return content(Path(folder) / "data", kek)


def operations(folder: Path, kek: KeyProvider | None) -> list[Operation]:
    """`folder` gets the images."""
    first, second, torn = folder / "first", folder / "second", folder / "torn"
    live = made(first / "data", kek, _SEGMENTS)
    before = content(first / "data", kek)
    shutil.copytree(first, second)
    backup(second / "data", second / "backup")
    shutil.copytree(second, torn)
    store = Store(second / "data", kek=kek)
    uploaded(store, _SEGMENTS[1])  # of a sealed folder: the same name, other bytes
    store.commit(store.find("notes"), 2, b"sealed 3", [*live[:2], uploaded(store, [b"new"])])
    store.close()
    after = content(second / "data", kek)
    _damage(path_of(torn / "data", live[1]))
    catalogue = torn / "data" / "catalogue.sqlite"
    with contextlib.closing(sqlite3.connect(catalogue)) as db, db:
        db.execute("UPDATE segments SET cell = cell || x'00' WHERE segment_id = ?", (live[0],))
    torn_bytes = [catalogue.read_bytes(), path_of(torn / "data", live[1]).read_bytes()]

    def back_up(root: Path) -> bool:
        return not backup(root / "data", root / "backup").damage

    def bring_back(root: Path) -> bool:
        return not restore(root / "backup", root / "restored").damage

    def repair(root: Path) -> bool:
        return check(root / "data", kek, repair=True, source=root / "backup").clean

    def wrong_backup(now: Content, allowed: tuple[Content | None, ...], root: Path, done: bool) -> list[str]:
        problems = [] if _found(root / "data", kek) == now else ["the data folder was harmed"]
        if _restorable(root / "backup", kek) not in ((now,) if done else (*allowed, now)):
            problems.append("the backup is neither the earlier one nor the new one")
        back_up(root)
        return problems + ([] if _restorable(root / "backup", kek) == now else ["done again, it is not whole"])

    def wrong_restore(root: Path, done: bool) -> list[str]:
        problems = [] if _restorable(root / "backup", kek) == before else ["the backup was harmed"]
        if _found(root / "restored", kek) not in ((before,) if done else (None, before)):
            problems.append("what was restored is not whole, and is not refused")
        shutil.rmtree(root / "restored", ignore_errors=True)
        bring_back(root)
        return problems + ([] if _found(root / "restored", kek) == before else ["done again, it is not whole"])

    def wrong_repair(root: Path, done: bool) -> list[str]:
        problems = [] if _restorable(root / "backup", kek) == before else ["the backup was harmed"]
        if done and _found(root / "data", kek) != before:
            problems.append("it is not whole")
        there = [path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()]
        problems += [f"{len(lost)} bytes were lost" for lost in torn_bytes if lost not in there]
        again = check(root / "data", kek, repair=True, source=root / "backup")
        whole = _found(root / "data", kek) == before
        return problems + ([] if whole else [f"done again, it is not whole: {again.problems} {again.repaired}"])

    return [
        Operation("backup", first, back_up, partial(wrong_backup, before, (None,))),
        Operation("next-backup", second, back_up, partial(wrong_backup, after, (before,))),
        Operation("restore", torn, bring_back, wrong_restore),
        Operation("repair", torn, repair, wrong_repair),
    ]


def _damage(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


# ---- the troubles --------------------------------------------------------------------------------------------
def runs(what: str, stage: Stage, seed: int) -> Iterator[Run]:
    """As of tests.faults.campaigns: `what` is power, errors or kill."""
    for kind, kek in (("plain", None), ("sealed", KEK)):
        for operation in operations(Path(tempfile.mkdtemp(dir=stage.scratch)), kek):
            for label, run in {"power": _cuts, "errors": _errors, "kill": _kills}[what](stage, operation, seed):
                yield f"{kind}-{operation.name}/{label}", run


def _rehearse(stage: Stage, operation: Operation) -> tuple[Disk, list[Call]]:
    """The disk before, and all calls on it, with a mark where it was acknowledged."""
    stage.reset(operation.image)
    disk = Disk(stage.data)

    def run() -> None:
        with stage.io.recording(stage.record):
            operation.run(stage.data)
            stage.io.mark(END)

    if isinstance(died := forked(run), Died):
        raise RuntimeError(f"{operation.name}: {died}")
    return disk, read_record(stage.record)


def _judged(stage: Stage, operation: Operation, done: bool) -> Verdict:
    problems = forked(partial(operation.wrong, stage.data, done))
    return Verdict(
        problems=[f"{operation.name}: {p}" for p in ([str(problems)] if isinstance(problems, Died) else problems)]
    )


def _cuts(stage: Stage, operation: Operation, seed: int) -> Iterator[Run]:
    disk, calls = _rehearse(stage, operation)
    seen: set[object] = set()
    done = False

    def run(choice: Choice, done: bool) -> Verdict | None:
        state = disk.state(choice)
        if (key := (state.key, done)) in seen:
            return None
        seen.add(key)
        stage.clear()
        state.write(stage.data)
        return _judged(stage, operation, done)

    for position, call in enumerate(calls, 1):
        disk.apply(call)
        done = done or call.op is Op.MARK
        if call.kind & Calls.CHANGE or call.op is Op.MARK:
            subsets = [Subset(f"{seed} {operation.name} {position} {number}") for number in range(SUBSETS)]
            for number, choice in enumerate([Durable(), Everything(), Names(), Data(), *subsets]):
                yield (
                    f"{position}/{f'subset-{number - 4}' if number >= 4 else choice.label}",
                    partial(run, choice, done),
                )


def _errors(stage: Stage, operation: Operation, _seed: int) -> Iterator[Run]:
    yield from _strikes(stage, operation, ERRORS, _refused)


def _kills(stage: Stage, operation: Operation, _seed: int) -> Iterator[Run]:
    yield from _strikes(stage, operation, KILLS, _killed)


def _strikes(
    stage: Stage,
    operation: Operation,
    faults: tuple[Fault, ...],
    struck: Callable[[Stage, Operation, Fault, int], Verdict | None],
) -> Iterator[Run]:
    _, calls = _rehearse(stage, operation)
    for fault in faults:
        for index in range(sum(bool(call.kind & fault.calls) for call in calls)):
            yield f"{fault.name}/{index}", partial(struck, stage, operation, fault, index)


def _refused(stage: Stage, operation: Operation, fault: Fault, index: int) -> Verdict | None:
    """One of our errors, or done in spite of it."""
    stage.reset(operation.image)

    def run() -> tuple[bool, str, bool]:
        stage.io.arm(fault, index)
        done, note = False, "reported damage"
        try:
            if done := operation.run(stage.data):
                note = "done in spite of it"
        except HesearchError as error:
            note = f"raised {type(error).__name__}"
        return stage.io.disarm() > index, note, done

    result = forked(run)
    if isinstance(result, Died):
        return Verdict(problems=[f"{operation.name}: {result}"])
    met, note, done = result
    if not met:
        return None
    verdict = _judged(stage, operation, done)
    verdict.notes.append(note)
    return verdict


def _killed(stage: Stage, operation: Operation, fault: Fault, index: int) -> Verdict | None:
    stage.reset(operation.image)

    def run() -> None:
        stage.io.arm(fault, index)
        operation.run(stage.data)

    result = forked(run)
    if result is None:
        return None
    if not isinstance(result, Died) or result.signal != signal.SIGKILL:
        return Verdict(problems=[f"{operation.name}: {result}"])
    return _judged(stage, operation, False)

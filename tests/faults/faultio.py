"""faultio.c from Python: compiled, loaded before libc, told what to spoil; and its records read back."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faultio.c")
_HEADER = struct.Struct("<IIiIIQQQ")


class Calls(enum.IntFlag):
    """Classes of calls. CREATE, GROW and WRITE need room on the disk."""

    WRITE = 1
    CREATE = 2
    REMOVE = 4
    GROW = 8
    SHRINK = 16
    SYNC = 32
    READ = 64
    RENAME = 128

    CHANGE = WRITE | CREATE | REMOVE | GROW | SHRINK | SYNC | RENAME
    ROOM = WRITE | CREATE | GROW


class Op(enum.IntEnum):
    """What a record says was done. LOST: something that no record can describe."""

    MARK, OPEN, CREATE, WRITE, TRUNCATE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, READ, LOST = range(13)


class Action(enum.IntEnum):
    FAIL, SHORT, KILL, KILL_HALF = range(1, 5)


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one call, and perhaps those after it."""

    name: str
    calls: Calls  #: those that are counted, and one of which is spoilt
    action: Action
    error: int = 0
    after: int = 0  #: Calls that fail from then on


#: `eio` and `enospc` befall one call; `full` and `dead` all that follow, too; a `short` write is a half.
ERRORS = (
    Fault("eio", Calls.CHANGE | Calls.READ, Action.FAIL, errno.EIO),
    Fault("enospc", Calls.CHANGE, Action.FAIL, errno.ENOSPC),
    Fault("full", Calls.ROOM, Action.FAIL, errno.ENOSPC, Calls.ROOM),
    Fault("dead", Calls.CHANGE, Action.FAIL, errno.EIO, Calls.CHANGE),
    Fault("short", Calls.WRITE, Action.SHORT),
    Fault("short-full", Calls.WRITE, Action.SHORT, errno.ENOSPC, Calls.ROOM),
)
KILLS = (
    Fault("kill", Calls.CHANGE, Action.KILL),
    Fault("kill-half", Calls.WRITE, Action.KILL_HALF),
)
FAULTS = {fault.name: fault for fault in (*ERRORS, *KILLS)}


@dataclass(frozen=True, slots=True)
class Call:
    """One record. Paths are relative to the folder, "" for itself; a mark's text is its path."""

    op: Op
    kind: Calls
    error: int  #: errno; 0: it was done
    path: str
    second: str
    inode: int
    offset: int  #: a truncation's length
    data: bytes


def read_record(path: Path) -> list[Call]:
    """Raises ValueError where something was done that a record cannot describe, such as a write through a mapping."""
    raw, calls, at = path.read_bytes(), [], 0
    while at + _HEADER.size <= len(raw):
        op, kind, error, path_bytes, second_bytes, inode, offset, data_bytes = _HEADER.unpack_from(raw, at)
        first = at + _HEADER.size
        second, data = first + path_bytes, first + path_bytes + second_bytes
        at = data + data_bytes
        names = raw[first:second].decode(), raw[second:data].decode()
        call = Call(Op(op), Calls(kind), error, *names, inode, offset, raw[data:at])
        if call.op is Op.LOST and not call.error:
            raise ValueError(f"record: a call on {names[0]!r} that cannot be replayed")
        calls.append(call)
    return calls


class FaultIO:
    """The library in this process. Raises RuntimeError where it was not loaded before libc."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        if not hasattr(library, "faultio_arm"):
            raise RuntimeError("faultio is not loaded: start this process with `environment`")
        self._library = library
        library.faultio_disarm.restype = ctypes.c_long
        library.faultio_arm.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int)

    def watch(self, folder: Path) -> None:
        """Looks at calls beneath this folder, and at no others; and sleeps no more."""
        self._library.faultio_folder(os.fsencode(folder.resolve()))
        self._library.faultio_hurry()

    @contextlib.contextmanager
    def recording(self, path: Path) -> Iterator[None]:
        if self._library.faultio_record(os.fsencode(path)):
            raise OSError(f"record: cannot write {path}")
        try:
            yield
        finally:
            self._library.faultio_record(None)

    def mark(self, text: str) -> None:
        self._library.faultio_mark(text.encode())

    def arm(self, fault: Fault, index: int) -> None:
        """`index` counts the calls of the fault's classes from now on; −1: count, but spoil none."""
        self._library.faultio_arm(fault.calls, index, fault.action, fault.error, fault.after)

    def disarm(self) -> int:
        """How many calls of the fault's classes there were before it struck for good."""
        return int(self._library.faultio_disarm())


def environment(folder: Path) -> dict[str, str]:
    """Of a process with the library, which is compiled into `folder`. Raises RuntimeError without a C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("a C compiler is missing: expected cc, gcc or clang")
    library = folder / "faultio.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-lpthread"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

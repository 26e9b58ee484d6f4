"""Every byte of a segment that the server writes or reads passes through this module, and through no other.

A file is written once, from its start to its end, under a temporary name; it gets its own name only when it
is complete and on the disk. Then it is read at any offset, mapped for the kernels, and one day removed.

A sync that fails says that bytes may be lost which seemed to be written, and a second one may succeed without having
written them. So nobody repeats one: it raises ReadOnlyError, and the store takes no writes any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from he_engine.engine import Buffer
from he_engine.errors import LimitExceeded, ReadOnlyError, TamperedDataError, Unavailable
from he_server.rpc.calls import step

PAGE_BYTES = 4096  #: parts start at multiples, so that each can be mapped
TEMPORARY_SUFFIX = ".part"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Listed:
    """What lies where segments do."""

    name: str  #: below the prefix, or the folder
    modified_s: float  #: Unix time, by the storage's clock
    size_bytes: int


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """OSError becomes LimitExceeded (no room), TamperedDataError (no such file) or Unavailable (all else).

    The messages name no path: they go to clients.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise TamperedDataError(f"storage: a file is missing while {doing}") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise LimitExceeded(f"storage: no room left while {doing}; nothing was changed") from error
        name = errno.errorcode.get(error.errno or 0, "error")
        raise Unavailable(f"storage: {name} while {doing}; nothing was changed") from error


def sync(descriptor: int) -> None:
    """On the disk when it returns. Raises ReadOnlyError, and is not to be called again then."""
    try:
        with step("sync"):
            os.fsync(descriptor)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "error")
        raise ReadOnlyError(
            f"storage: {name} while syncing; this server takes no writes until it is restarted"
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: a rename is lost with the power otherwise. Raises as `sync`, and OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder and those it lies in, where they are missing, durably. `mode` is for the last."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
        sync_folder(folder.parent)


class NewFile:
    """A file that nobody sees until `publish`. A context manager: what was not published is removed. Where root writes,
    it is its folder's owner's: a command on the server's data must not leave files that the server cannot read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / (secrets.token_hex(16) + TEMPORARY_SUFFIX)
        self.position_bytes = 0
        with storage_errors("making a file"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
            if os.geteuid() == 0 and (owner := folder.stat()).st_uid:
                with contextlib.suppress(OSError):  # not every file system has owners
                    os.fchown(self._descriptor, owner.st_uid, owner.st_gid)

    def append(self, data: Buffer) -> None:
        """Raises LimitExceeded where the disk or a quota is full, Unavailable where it fails."""
        view = memoryview(data)
        with storage_errors("writing"):
            while view:
                written = os.write(self._descriptor, view)
                view = view[written:]
                self.position_bytes += written

    def pad_to(self, position_bytes: int) -> None:
        """Zeros up to a position, which is less than a page away."""
        self.append(bytes(position_bytes - self.position_bytes))

    def sync(self) -> None:
        """On the disk when it returns. Raises ReadOnlyError."""
        sync(self._descriptor)

    def publish(self, target: Path) -> None:
        """Gives the file its name, replacing a namesake at once; `sync_folder` then makes that durable."""
        with storage_errors("naming a file"):
            self.path.rename(target)
        self._close()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            self._close()
            remove(self.path)

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


class PlainFile:
    """A file as it lies on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size_bytes(self) -> int:
        """Raises TamperedDataError if the file is gone."""
        with storage_errors("looking at a file"):
            return self.path.stat().st_size

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Exactly that many bytes. Raises TamperedDataError if the file is gone or ends before."""
        out = bytearray(length_bytes)
        self.read_into(offset_bytes, memoryview(out))
        return bytes(out)

    def read_into(self, offset_bytes: int, out: memoryview) -> None:
        """Fills `out` with the bytes from an offset on; raises as `read`."""
        with self.opened() as read_into:
            read_into(offset_bytes, out)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int, memoryview], None]]:
        """A function that fills memory with the bytes from an offset on; raises as `read`."""
        with storage_errors("reading"), self.path.open("rb", buffering=0) as file:
            descriptor = file.fileno()

            def read_into(offset_bytes: int, out: memoryview) -> None:
                while out:
                    try:
                        count = os.preadv(descriptor, [out], offset_bytes)
                    except OSError as error:
                        if error.errno != errno.EIO:
                            raise
                        raise TamperedDataError("storage: the disk cannot read a file any more") from error
                    if not count:
                        raise TamperedDataError(f"storage: a file ends {len(out)} bytes too early")
                    offset_bytes, out = offset_bytes + count, out[count:]

            yield read_into


def remove(path: Path) -> None:
    """No error if that fails: what has no entry in the catalogue is removed at the next start anyway."""
    with contextlib.suppress(OSError):
        path.unlink()

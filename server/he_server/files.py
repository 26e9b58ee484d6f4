"""Every byte of a segment that the server writes or reads passes through this module, and through no other.

A file is written once, from its start to its end, under a temporary name; it gets its own name only when it
is complete and on the disk. Then it is read at any offset, mapped for the kernels, and one day removed.
(Whoever encrypts what is at rest does it here: `append` seals, `read` and `index_file` open.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import LimitExceeded, TamperedDataError, Unavailable

PAGE_BYTES = 4096  #: parts start at multiples, so that each can be mapped
TEMPORARY_SUFFIX = ".part"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: a rename is lost with the power otherwise."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder and those it lies in, where they are missing, durably. `mode` is for the last."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
        sync_folder(folder.parent)


class NewFile:
    """A file that nobody sees until `publish`. A context manager: what was not published is removed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / (secrets.token_hex(16) + TEMPORARY_SUFFIX)
        self.position_bytes = 0
        with storage_errors("making a file"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)

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
        """On the disk when it returns."""
        with storage_errors("syncing"):
            os.fsync(self._descriptor)

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


def read(path: Path, offset_bytes: int, length_bytes: int) -> bytes:
    """Exactly that many bytes. Raises TamperedDataError if the file is gone or ends before."""
    with storage_errors("reading"), path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), length_bytes, offset_bytes)
        while 0 < len(data) < length_bytes:
            more = os.pread(file.fileno(), length_bytes - len(data), offset_bytes + len(data))
            if not more:
                break
            data += more
    if len(data) != length_bytes:
        raise TamperedDataError(f"storage: a file ends {length_bytes - len(data)} bytes too early")
    return data


def size_bytes(path: Path) -> int:
    """Raises TamperedDataError if the file is gone."""
    with storage_errors("looking at a file"):
        return path.stat().st_size


def index_file(path: Path, offset_bytes: int, length_bytes: int, blocks: int) -> IndexFile:
    """Where an engine may map the index part of a segment."""
    return IndexFile(path=path, offset_bytes=offset_bytes, length_bytes=length_bytes, blocks=blocks)


def remove(path: Path) -> None:
    """No error if that fails: what has no entry in the catalogue is removed at the next start anyway."""
    with contextlib.suppress(OSError):
        path.unlink()

"""Indexes as the kernels read them: mapped from the disk where that can be, else loaded into memory: those that are
sealed are decrypted, those of a cluster's shards are fetched.

Loaded indexes lie in one anonymous memory file, each at a position of its own that is never used again, so worker
processes can map them too, by /proc/PID/fd/N. The kernel frees it when this process ends, in whatever way. What is in
memory is bounded: who opens one more drops those that were unused the longest.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from he_engine.engine import IndexFile
from he_server.storage.files import storage_errors
from he_server.storage.segment_file import Description, FileSource, StoredSegment


class Loadable(Protocol):
    """A segment whose index can be opened."""

    @property
    def key(self) -> tuple[bytes, bytes]: ...  #: collection and segment: the same content for ever

    @property
    def in_place(self) -> bool: ...  #: whether kernels can read its file

    @property
    def index(self) -> IndexFile: ...  #: in that file; of those alone that are `in_place`

    def opened(self) -> contextlib.AbstractContextManager[tuple[Description, FileSource]]:
        """What its header says, and its bytes, checked as they are read or before. Raises TamperedDataError,
        Unavailable."""


Forget = Callable[[bytes, IndexFile], None]  #: (parameter digest, index): drop what is mapped of it

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_ALIGNMENT = 2 << 20  #: of positions: that of huge pages
_SIZE_BYTES = 1 << 62  #: of the memory file, which has memory only where something was written


@dataclass(slots=True)
class _Opened:
    lock: threading.Lock = field(default_factory=threading.Lock)  #: held while it is loaded
    index: IndexFile | None = None
    parameter_digest: bytes = b""
    users: int = 0
    stale: bool = False  #: to be dropped with its last user


def _memory_file() -> int:
    """Of a size that positions never reach."""
    with storage_errors("making a memory file"):
        descriptor = os.memfd_create("hesearch-indexes", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE_BYTES)
    return descriptor


class Indexes:
    """Thread-safe. `forget` is called before memory is given up, and when a mapped file goes."""

    def __init__(self, limit_bytes: int, forget: Forget) -> None:
        self._limit_bytes = limit_bytes
        self._forget = forget
        self._lock = threading.Lock()
        self._opened: dict[tuple[bytes, bytes], _Opened] = {}  # by collection and segment, the latest used last
        self._memory = -1
        self._end_bytes = 0
        self.held_bytes = 0  #: loaded, in memory

    @contextlib.contextmanager
    def open(self, segment: Loadable) -> Iterator[IndexFile]:
        """The index of a segment, readable until the block ends. Raises TamperedDataError, Unavailable."""
        if segment.in_place:
            yield segment.index
            return
        opened = self._take(segment)
        try:
            with opened.lock:
                if opened.index is None:
                    with segment.opened() as (description, source):
                        opened.index = self._loaded(description, source)
                    opened.parameter_digest = description.parameter_digest
            yield opened.index
        finally:
            self._give_back(segment.key, opened)

    def holds(self, key: tuple[bytes, bytes]) -> bool:
        """Whether it is loaded, as far as one can tell without waiting."""
        with self._lock:
            opened = self._opened.get(key)
            return opened is not None and opened.index is not None

    def has_room(self, length_bytes: int) -> bool:
        """For so many more bytes, with nothing dropped for them."""
        with self._lock:
            return self.held_bytes + length_bytes <= self._limit_bytes

    def _take(self, segment: Loadable) -> _Opened:
        with self._lock:
            opened = self._opened.pop(segment.key, None) or _Opened()
            opened.users += 1
            self._opened[segment.key] = opened
            return opened

    def _give_back(self, key: tuple[bytes, bytes], opened: _Opened) -> None:
        with self._lock:
            opened.users -= 1
            if not opened.users and (opened.stale or opened.index is None):
                self._drop(key, opened)
            self._make_room(0)  # while all were in use, they may have been more than the limit

    def _loaded(self, description: Description, source: FileSource) -> IndexFile:
        part = description.parts[0]
        length_bytes = part.end_bytes
        with self._lock:
            self._make_room(length_bytes)
            if self._memory < 0:
                self._memory = _memory_file()
            start = self._end_bytes
            self._end_bytes += -(-length_bytes // _ALIGNMENT) * _ALIGNMENT
            self.held_bytes += length_bytes
        path = Path(f"/proc/{os.getpid()}/fd/{self._memory}")
        index = IndexFile(path, start + part.offset_bytes, part.length_bytes, description.blocks)
        try:
            with storage_errors("mapping memory"):
                mapped = mmap.mmap(self._memory, length_bytes, offset=start)
            with mapped, memoryview(mapped) as view:
                source.read_into(0, view)
        except BaseException:
            with self._lock:
                self._free(index)
            raise
        return index

    def _make_room(self, length_bytes: int) -> None:
        for key, opened in list(self._opened.items()):
            if self.held_bytes + length_bytes <= self._limit_bytes:
                return
            if not opened.users:
                self._drop(key, opened)

    def _drop(self, key: tuple[bytes, bytes], opened: _Opened) -> None:
        """The lock is held, and nobody uses it."""
        if self._opened.get(key) is opened:
            del self._opened[key]
        if opened.index is not None:
            self._forget(opened.parameter_digest, opened.index)
            self._free(opened.index)
            opened.index = None

    def _free(self, index: IndexFile) -> None:
        start = index.offset_bytes // _ALIGNMENT * _ALIGNMENT
        length_bytes = index.offset_bytes - start + index.length_bytes
        whole_pages = -(-length_bytes // _ALIGNMENT) * _ALIGNMENT  # of a part of one, only zeros would be made
        _LIBC.fallocate(self._memory, _PUNCH_HOLE_KEEP_SIZE, start, whole_pages)
        self.held_bytes -= length_bytes

    def forget(self, segment: StoredSegment) -> None:
        """Its file has gone or was replaced."""
        if segment.in_place:
            self._forget(segment.description.parameter_digest, segment.index)
            return
        with self._lock:
            opened = self._opened.get(segment.key)
            if opened is not None:
                opened.stale = True
                if not opened.users:
                    self._drop(segment.key, opened)
                else:
                    del self._opened[segment.key]

    def close(self) -> None:
        """No index is in use any more."""
        with self._lock:
            for key, opened in list(self._opened.items()):
                self._drop(key, opened)
            if self._memory >= 0:
                os.close(self._memory)
                self._memory = -1

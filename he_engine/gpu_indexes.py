"""Indexes in a device's memory: brought there when they are first asked for, at most so many bytes of them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import IndexFile
from he_engine.errors import TamperedDataError
from he_engine.gpu_device import Device, Memory

MEMORY_SHARE = 0.8  #: of the device's; the rest is for queries, results and others
_READ_BYTES = 16 << 20  #: read from the file and copied at a time


@dataclass(slots=True, eq=False)
class _Resident:
    length_bytes: int
    lock: threading.Lock = field(default_factory=threading.Lock)  #: held while it is brought there
    memory: Memory | None = None
    users: int = 0
    gone: bool = False  #: nobody finds it any more; its last user frees it


class GpuIndexes:
    """For any number of engines. Thread-safe. Who needs room takes that of the indexes that were unused the longest."""

    def __init__(self, device: Device, limit_bytes: int | None = None) -> None:
        self.device = device
        self.limit_bytes = int(MEMORY_SHARE * device.memory_bytes) if limit_bytes is None else limit_bytes
        self._lock = threading.Lock()
        self._residents: dict[tuple[object, IndexFile], _Resident] = {}  # by engine, the latest used last
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @contextlib.contextmanager
    def using(self, engine: object, index: IndexFile, evict: bool = True) -> Iterator[Memory | None]:
        """The index on the device, which stays until the block ends; None where there is no room for it.

        evict: whether it may take the place of others. Raises TamperedDataError if its file is too short or cannot be
        read, OSError if it is gone; RuntimeError for what CUDA reports.
        """
        resident = self._found(engine, index, evict)
        if resident is None:
            yield None
            return
        try:
            yield self._brought(engine, index, resident)
        finally:
            with self._lock:
                resident.users -= 1
                self._free(resident)

    def forget(self, engine: object, index: IndexFile) -> None:
        """Frees it, once nobody uses it."""
        with self._lock:
            self._drop((engine, index))

    def forget_all(self, engine: object) -> None:
        with self._lock:
            for key in [key for key in self._residents if key[0] is engine]:
                self._drop(key)

    def _found(self, engine: object, index: IndexFile, evict: bool) -> _Resident | None:
        """With one user more, and its bytes counted."""
        key = (engine, index)
        with self._lock:
            resident = self._residents.pop(key, None)
            if resident is None:
                if not self._has_room(index.length_bytes, evict):
                    return None
                resident = _Resident(index.length_bytes)
                self._held_bytes += index.length_bytes
            self._residents[key] = resident
            resident.users += 1
            return resident

    def _has_room(self, length_bytes: int, evict: bool) -> bool:
        missing = self._held_bytes + length_bytes - self.limit_bytes
        idle = [(key, one) for key, one in self._residents.items() if not one.users] if evict else []
        if missing > sum(one.length_bytes for _, one in idle):
            return False
        for key, one in idle:
            if missing > 0:
                missing -= one.length_bytes
                self._drop(key)
        return True

    def _drop(self, key: tuple[object, IndexFile]) -> None:
        if resident := self._residents.pop(key, None):
            resident.gone = True
            self._free(resident)

    def _free(self, resident: _Resident) -> None:
        if resident.gone and not resident.users:
            resident.memory = None
            self._held_bytes -= resident.length_bytes

    def _brought(self, engine: object, index: IndexFile, resident: _Resident) -> Memory | None:
        """Who comes first brings it, others wait. Where that fails nobody finds it any more."""
        with resident.lock:
            if resident.memory is None and not resident.gone:
                try:
                    resident.memory = self._copied(index)
                except BaseException as error:
                    with self._lock:
                        if self._residents.get((engine, index)) is resident:
                            self._drop((engine, index))
                    if not isinstance(error, MemoryError):
                        raise
            return resident.memory

    def _copied(self, index: IndexFile) -> Memory:
        """Read, not mapped: a page of a mapped file that the disk cannot read would end the process in CUDA's copy."""
        memory, queue = self.device.allocate(index.length_bytes), self.device.queue()
        buffer = np.empty(min(_READ_BYTES, index.length_bytes) // 4, np.uint32)
        descriptor = os.open(index.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset in range(0, index.length_bytes, buffer.nbytes):
                part = buffer[: (index.length_bytes - offset) // 4]
                _fill(part, descriptor, index.offset_bytes + offset)
                queue.upload(memory, offset, part)
        finally:
            os.close(descriptor)
        queue.wait()
        return memory


def _fill(part: NDArray[np.uint32], descriptor: int, position: int) -> None:
    """Reads it from there. Raises TamperedDataError, OSError."""
    view = part.data.cast("B")
    while view:
        try:
            read = os.preadv(descriptor, [view], position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise TamperedDataError("index: the disk cannot read a part of its file any more") from None
        if not read:
            raise TamperedDataError(f"index: its file has {position} bytes, expected more")
        view, position = view[read:], position + read

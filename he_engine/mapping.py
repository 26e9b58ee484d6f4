"""Index files mapped into memory: without a descriptor each, and no more at a time than a process may map."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import IndexFile

MAX_MAPPED = 1 << 15  #: files; Linux gives a process 65,530 mappings for all that it does

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED = ctypes.c_void_p(-1).value
_MADV_HUGEPAGE, _MADV_POPULATE_READ = 14, 22


def populate(array: NDArray[np.uint32]) -> None:
    """Reads the pages under a mapped array and enters them in the page tables; huge ones where the system has them.

    It is advice: where the system does not take it (before Linux 5.14), pages come when they are first read.
    """
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    for advice in (_MADV_HUGEPAGE, _MADV_POPULATE_READ):
        _LIBC.madvise(start, length, advice)


class _Mapping:
    """The bytes of an index, read-only, for as long as an array over them lives. Raises OSError.

    mmap.mmap, and so np.memmap, keeps a descriptor for each file (until Python 3.13's `trackfd`); this keeps none.
    """

    def __init__(self, index: IndexFile) -> None:
        before = index.offset_bytes % mmap.PAGESIZE
        length, start = index.length_bytes + before, index.offset_bytes - before
        descriptor = os.open(index.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            address = _LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, start)
        finally:
            os.close(descriptor)
        if address == _MAP_FAILED:
            raise OSError(number := ctypes.get_errno(), os.strerror(number))
        self._mapped = (address, length)
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<u4",
            "shape": (index.length_bytes // 4,),
            "data": (address + before, True),  # True: not to be written
        }

    def __del__(self) -> None:
        if mapped := getattr(self, "_mapped", None):
            _LIBC.munmap(*mapped)


class Mappings:
    """At most `limit` index files, mapped for any number of engines; who maps one more unmaps the longest unused.

    Thread-safe. An array that was handed out stays valid whatever is unmapped here.
    """

    def __init__(self, limit: int = MAX_MAPPED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._arrays: dict[tuple[object, IndexFile], NDArray[np.uint32]] = {}  # by engine, the latest used last

    def array(self, engine: object, index: IndexFile) -> NDArray[np.uint32]:
        """The words of the index. Raises OSError."""
        key = (engine, index)
        with self._lock:
            array = self._arrays.pop(key, None)
            if array is None:
                array = np.asarray(_Mapping(index))
                if len(self._arrays) == self._limit:
                    del self._arrays[next(iter(self._arrays))]
            self._arrays[key] = array
            return array

    def forget(self, engine: object, index: IndexFile) -> None:
        with self._lock:
            self._arrays.pop((engine, index), None)

    def forget_all(self, engine: object) -> None:
        with self._lock:
            for key in [key for key in self._arrays if key[0] is engine]:
                del self._arrays[key]

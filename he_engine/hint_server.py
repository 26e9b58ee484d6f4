"""The server's side of the hint engine: T[k] = Σ_i b[k,i]·c[i] at the score positions, and nothing else.

It multiplies and adds residues of ciphertexts. It knows no secret and imports nothing that could use one; the
kernel behind it has no code to encrypt or to recover.

Index files are mapped, without a descriptor each, and at most MAX_MAPPED at a time. Reading a page that a file no
longer has ends a process (SIGBUS), so its length is looked at before each call of the kernel. What remains: a file
cut short, or a disk that fails, within the milliseconds of such a call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import ResidueError, TamperedDataError
from he_engine.kernels._answer import AnswerKernel
from he_engine.params import TILE, Parameters

MAX_MAPPED = 1024  #: files of one engine; Linux gives a process 65,530 mappings, whatever for
_CHECK_BYTES = 32 << 20  #: of index looked at in one call of the kernel

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


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


class HintServer:
    """A ServerEngine for one set of parameters. Thread-safe: the kernel is stateless and runs without the GIL.

    `target` names an instruction set ("" for the best of this machine; see he_engine.kernels).
    """

    def __init__(self, parameters: Parameters, target: str = "") -> None:
        ring = parameters.ring
        self._kernel = AnswerKernel(ring.log_n, ring.primes, parameters.stride, parameters.planes, target)
        self._primes = len(ring.primes)
        self._rows = parameters.rows_per_block
        self._block_shape = (self._primes, ring.degree // TILE, parameters.planes, TILE)
        self._block_words = parameters.block_words
        self._lock = threading.Lock()
        self._maps: dict[Path, NDArray[np.uint32]] = {}  # the latest used last

    @property
    def query_bytes(self) -> int:
        """4·P·I·N."""
        return 4 * self._block_words

    @property
    def index_bytes_per_block(self) -> int:
        """4·P·I·N."""
        return 4 * self._block_words

    @property
    def answer_bytes_per_block(self) -> int:
        """4·P·B."""
        return 4 * self._primes * self._rows

    def check_index(self, index: IndexFile) -> None:
        """Raises ResidueError for a length that is not that of the blocks, or a residue ≥ q_j; and as `answer`."""
        step = max(1, _CHECK_BYTES // self.index_bytes_per_block)
        for first in range(0, index.blocks, step):
            self._check(self._mapped(index)[first : first + step], f"index from block {first}")

    def check_queries(self, queries: Buffer, count: int) -> None:
        """Raises ResidueError for a length that is not that of `count` queries, or a residue ≥ q_j."""
        self._check(self._stacks(queries, count), "queries")

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Buffer, count: int) -> list[bytes]:
        """For each query (blocks, P, B) uint32, little-endian. Queries and index have been checked before.

        Raises TamperedDataError if the file has become too short, OSError if it is gone or cannot be mapped.
        """
        out = np.empty((count, blocks, self._primes, self._rows), np.uint32)
        stacks = self._mapped(index)[first_block : first_block + blocks]
        self._kernel.answer(stacks, self._stacks(queries, count), out)
        return [answers.tobytes() for answers in out]

    def forget(self, index: IndexFile) -> None:
        """Drops the mapping; running calls keep theirs until they end."""
        with self._lock:
            self._maps.pop(index.path, None)

    def close(self) -> None:
        with self._lock:
            self._maps.clear()

    def _stacks(self, queries: Buffer, count: int) -> NDArray[np.uint32]:
        if len(queries) != count * self.query_bytes:
            raise ResidueError(f"queries: got {len(queries)} bytes, expected {count * self.query_bytes} for {count}")
        return np.frombuffer(queries, "<u4").reshape(count, *self._block_shape)

    def _mapped(self, index: IndexFile) -> NDArray[np.uint32]:
        if index.length_bytes != index.blocks * self.index_bytes_per_block:
            raise ResidueError(
                f"index: got {index.length_bytes} bytes, expected "
                f"{index.blocks * self.index_bytes_per_block} for {index.blocks} blocks"
            )
        size, needed = index.path.stat().st_size, index.offset_bytes + index.length_bytes
        if size < needed:
            raise TamperedDataError(f"index: its file has {size} bytes, expected at least {needed}")
        with self._lock:
            mapped = self._maps.pop(index.path, None)
            if mapped is None:
                mapped = np.asarray(_Mapping(index)).reshape(index.blocks, *self._block_shape)
                if len(self._maps) == MAX_MAPPED:
                    del self._maps[next(iter(self._maps))]  # unmapped once no call uses it
            self._maps[index.path] = mapped
            return mapped

    def _check(self, stacks: NDArray[np.uint32], what: str) -> None:
        position = self._kernel.first_noncanonical(stacks.reshape(len(stacks), self._primes, -1))
        if position >= 0:
            raise ResidueError(f"{what}: got a residue that is not canonical, word {position}")

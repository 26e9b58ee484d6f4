"""A Device of he_engine.gpu_device on this machine's CPU: answer.cu compiled as C++, its threads emulated."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_engine.gpu_device import THREADS, Memory, Queue, Work

_SOURCE = Path(__file__).parent / "cuda_emulation.cpp"
_GUARD_WORDS = 64  #: after each allocation, never to be touched: the emulation reports it
_one_at_a_time = threading.RLock()


@cache
def emulation(folder: Path) -> Any:
    """Compiled there."""
    library = folder / "cuda_emulation.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    flags += ["-U_FORTIFY_SOURCE"]  # glibc then forbids jumps between stacks
    subprocess.run(["g++", *flags, str(_SOURCE), "-o", str(library)], check=True)
    loaded: Any = ctypes.CDLL(str(library))
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("allow", None, [pointer, word]),
        ("used", word, [pointer]),
        ("forget", None, [pointer]),
        ("launch", word, [ctypes.c_char_p, pointer, ctypes.c_uint, ctypes.c_bool, *[pointer] * 5]),
    ):
        getattr(loaded, f"emulation_{name}").restype = result
        getattr(loaded, f"emulation_{name}").argtypes = arguments
    return loaded


class EmulatedMemory:
    def __init__(self, library: Any, length_bytes: int, held: list[int]) -> None:
        self._library, self._held, self.length_bytes = library, held, length_bytes
        self._words = np.full(length_bytes // 4 + _GUARD_WORDS + 64, 0xFFFFFFFF, np.uint32)
        self.address = -(-self._words.ctypes.data // 256) * 256
        with _one_at_a_time:
            library.emulation_allow(self.address, length_bytes)
            held[0] += length_bytes

    @property
    def used_bytes(self) -> int:
        """That kernels read or wrote, counted every time."""
        return int(self._library.emulation_used(self.address))

    def __del__(self) -> None:
        with _one_at_a_time:
            self._library.emulation_forget(self.address)
            self._held[0] -= self.length_bytes


class EmulatedDevice:
    """Fails with RuntimeError at the download after a launch in which the emulation saw a fault."""

    def __init__(self, library: Any, memory_bytes: int = 1 << 30, multiprocessors: int = 1) -> None:
        self.memory_bytes, self.multiprocessors = memory_bytes, multiprocessors
        self.library, self.backwards = library, False
        self.launches: list[tuple[str, int]] = []  #: kernels and queries
        self.held = [0]  #: bytes allocated now

    def allocate(self, length_bytes: int) -> Memory:
        if self.held[0] + length_bytes > self.memory_bytes:
            raise MemoryError(f"got {length_bytes} bytes, expected at most {self.memory_bytes} in all")
        return EmulatedMemory(self.library, length_bytes, self.held)

    def queue(self) -> Queue:
        return _EmulatedQueue(self)


class _EmulatedQueue:
    def __init__(self, device: EmulatedDevice) -> None:
        self._device, self._faults = device, 0

    def upload(self, memory: Memory, offset_bytes: int, data: NDArray[np.uint32]) -> None:
        ctypes.memmove(memory.address + offset_bytes, data.ctypes.data, data.nbytes)

    def launch(self, kernel: str, grid: tuple[int, int, int], work: Work) -> None:
        sizes = np.array([work.blocks, work.count, work.rows, work.scores, work.planes, work.stride], np.int32)
        cut = np.array(grid, np.uint32)
        addresses = (work.index, work.queries, work.out, work.primes)
        with _one_at_a_time:
            self._faults += self._device.library.emulation_launch(
                kernel.encode(), cut.ctypes.data, THREADS, self._device.backwards, *addresses, sizes.ctypes.data
            )
            self._device.launches.append((kernel, work.count))

    def download(self, memory: Memory, out: NDArray[np.uint32]) -> None:
        self.wait()
        ctypes.memmove(out.ctypes.data, memory.address, out.nbytes)

    def wait(self) -> None:
        if self._faults:
            raise RuntimeError(f"emulation: {self._faults} faults")

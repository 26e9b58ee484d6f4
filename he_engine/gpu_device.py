"""What the kernels of answer.cu need of a GPU: memory, and queues that copy and compute in order; through CuPy.

CuPy is imported when a device is opened, so a machine without it has everything else. It compiles the source with
NVRTC for the GPU that is there, and keeps what it compiled in its cache.
"""

from __future__ import annotations

import importlib
from dataclasses import astuple, dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from he_engine.errors import MissingExtra

WARPS = 8  #: of a thread block, as in answer.cu
THREADS = 32 * WARPS
KERNELS = ("answer_1", "answer_4", "answer_16", "answer_narrow")


def source() -> str:
    """answer.cu."""
    return resources.files("he_engine.kernels").joinpath("answer.cu").read_text(encoding="utf-8")


class Memory(Protocol):
    """Bytes of the device, freed when nobody refers to this object any more."""

    @property
    def address(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Work:
    """The arguments of every kernel, in their order: addresses on the device, then sizes."""

    index: int  #: (blocks, P, N/16, I, 16)
    queries: int  #: (count, P, N/16, I, 16)
    out: int  #: (count, blocks, P, B)
    primes: int  #: (P,)
    blocks: int
    count: int
    rows: int  #: P·B
    scores: int  #: B
    planes: int  #: I
    stride: int  #: g


class Queue(Protocol):
    """Does one thing after another. For one thread at a time. What `upload` was given may be changed afterwards."""

    def upload(self, memory: Memory, offset_bytes: int, data: NDArray[np.uint32]) -> None: ...

    def launch(self, kernel: str, grid: tuple[int, int, int], work: Work) -> None: ...

    def download(self, memory: Memory, out: NDArray[np.uint32]) -> None:
        """Returns when it is there. Raises RuntimeError if anything before it failed."""

    def wait(self) -> None:
        """As `download`."""


class Device(Protocol):
    """Thread-safe."""

    @property
    def memory_bytes(self) -> int: ...  #: that it has in all

    @property
    def multiprocessors(self) -> int: ...

    def allocate(self, length_bytes: int) -> Memory:
        """At a multiple of 256 bytes. Raises MemoryError."""

    def queue(self) -> Queue: ...


class CupyDevice:
    """The first GPU that this process may see (CUDA_VISIBLE_DEVICES says which). Raises MissingExtra."""

    def __init__(self) -> None:
        try:
            self._cupy: Any = importlib.import_module("cupy")
        except ImportError as error:
            raise MissingExtra("device gpu: CuPy is not installed: pip install '.[gpu]'") from error
        runtime = self._cupy.cuda.runtime
        try:
            runtime.setDevice(0)
            properties = runtime.getDeviceProperties(0)
        except RuntimeError as error:  # CUDARuntimeError is one
            raise MissingExtra(f"device gpu: no GPU that CUDA can use here ({error})") from error
        self.memory_bytes = int(properties["totalGlobalMem"])
        self.multiprocessors = int(properties["multiProcessorCount"])
        module = self._cupy.RawModule(code=source(), options=("-std=c++17",))
        self._functions = {name: module.get_function(name) for name in KERNELS}

    def allocate(self, length_bytes: int) -> Memory:
        """Not from CuPy's pool, which would keep what was freed from other users of the GPU."""
        try:
            return _CupyMemory(self._cupy.cuda.Memory(length_bytes))
        except RuntimeError as error:
            raise MemoryError(f"device gpu: no {length_bytes} bytes of memory left ({error})") from error

    def queue(self) -> Queue:
        return _CupyQueue(self._cupy, self._functions)


class _CupyMemory:
    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.address = int(memory.ptr)


class _CupyQueue:
    """A stream. Copies are from and to ordinary memory: CUDA stages them, and returns once it has read the source."""

    def __init__(self, cupy: Any, functions: dict[str, Any]) -> None:
        self._runtime, self._functions = cupy.cuda.runtime, functions
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def upload(self, memory: Memory, offset_bytes: int, data: NDArray[np.uint32]) -> None:
        kind, target = self._runtime.memcpyHostToDevice, memory.address + offset_bytes
        self._runtime.memcpyAsync(target, data.ctypes.data, data.nbytes, kind, self._stream.ptr)

    def launch(self, kernel: str, grid: tuple[int, int, int], work: Work) -> None:
        addresses, sizes = astuple(work)[:4], astuple(work)[4:]
        with self._stream:
            self._functions[kernel](grid, (THREADS, 1, 1), (*map(np.uint64, addresses), *map(np.int32, sizes)))

    def download(self, memory: Memory, out: NDArray[np.uint32]) -> None:
        kind = self._runtime.memcpyDeviceToHost
        self._runtime.memcpyAsync(out.ctypes.data, memory.address, out.nbytes, kind, self._stream.ptr)
        self.wait()

    def wait(self) -> None:
        self._stream.synchronize()

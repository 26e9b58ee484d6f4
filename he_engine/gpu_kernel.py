"""Answers computed on a device: which kernel takes how many queries, how its grid is cut, and where results lie."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_engine.gpu_device import THREADS, WARPS, Device, Memory, Queue, Work
from he_engine.params import TILE

U32 = NDArray[np.uint32]
#: Queries of one pass, and index blocks of one thread block at a time, as in answer.cu.
_QUERIES = {"answer_1": 1, "answer_4": 4, "answer_16": 16, "answer_narrow": 16}
_BLOCKS = {"answer_1": 8, "answer_4": 2 * WARPS, "answer_16": 2 * WARPS, "answer_narrow": 1}
#: Thread blocks for each multiprocessor, several times what it holds: fewer, and some would end early; many more, and
#: each would load its query words for few index blocks.
_THREAD_BLOCKS = 8
_MAX_GRID_Y = 65_535


def passes(stride: int, queries: int) -> Iterator[tuple[str, int, int]]:
    """(kernel, first query, how many), every query once."""
    first = 0
    while first < queries:
        left = queries - first
        if stride < TILE:
            kernel = "answer_narrow"
        else:
            kernel = next((name for name in ("answer_1", "answer_4") if left <= _QUERIES[name]), "answer_16")
        count = min(left, _QUERIES[kernel])
        yield kernel, first, count
        first += count


@dataclass(slots=True)
class Workspace:
    """A queue and memory for queries and results, for one call at a time; the memory grows to the largest call."""

    device: Device
    queue: Queue
    _memory: Memory | None = None
    _length_bytes: int = 0

    def memory(self, length_bytes: int) -> Memory:
        """Raises MemoryError."""
        if self._memory is None or self._length_bytes < length_bytes:
            self._memory = None  # freed before more is asked for
            self._memory, self._length_bytes = self.device.allocate(length_bytes), length_bytes
        return self._memory


class Workspaces:
    """As many as there were calls at a time. Thread-safe."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._idle: list[Workspace] = []

    def take(self) -> Workspace:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Workspace(self._device, self._device.queue())

    def give_back(self, workspace: Workspace) -> None:
        """Not one whose call failed: its queue may be in any state."""
        with self._lock:
            self._idle.append(workspace)

    def clear(self) -> None:
        with self._lock:
            self._idle.clear()


class GpuKernel:
    """One ring and one layout, with the arguments and results of AnswerKernel (kernels/_answer.pyi), on a device.

    The same requirements, which the caller has checked. Thread-safe.
    """

    def __init__(self, log_n: int, primes: Sequence[int], stride: int, planes: int, device: Device) -> None:
        self._device, self._stride, self._planes = device, stride, planes
        self._scores = (1 << log_n) // stride
        self._rows = len(primes) * self._scores
        self._stack_bytes = 4 * (len(primes) << log_n) * planes
        self.workspaces = Workspaces(device)
        self._primes = device.allocate(4 * len(primes))
        queue = device.queue()
        queue.upload(self._primes, 0, np.array(primes, np.uint32))
        queue.wait()

    def answer(self, index: Memory, first_block: int, blocks: int, queries: Sequence[U32], out: U32) -> None:
        """Blocks [first_block, first_block + blocks) of the stacks at `index`; out (Q, blocks, P, B).

        blocks and Q ≥ 1. Raises MemoryError, and RuntimeError for what CUDA reports.
        """
        workspace = self.workspaces.take()
        queries_bytes = -(-len(queries) * self._stack_bytes // 256) * 256
        memory = workspace.memory(queries_bytes + out.nbytes)
        results = _Part(memory.address + queries_bytes)
        for number, query in enumerate(queries):
            workspace.queue.upload(memory, number * self._stack_bytes, query)
        for kernel, first, count in passes(self._stride, len(queries)):
            work = Work(
                index=index.address + first_block * self._stack_bytes,
                queries=memory.address + first * self._stack_bytes,
                out=results.address + 4 * first * blocks * self._rows,
                primes=self._primes.address,
                blocks=blocks,
                count=count,
                rows=self._rows,
                scores=self._scores,
                planes=self._planes,
                stride=self._stride,
            )
            workspace.queue.launch(kernel, self.grid(kernel, blocks, count), work)
        workspace.queue.download(results, out)
        self.workspaces.give_back(workspace)

    def grid(self, kernel: str, blocks: int, count: int) -> tuple[int, int, int]:
        """Thread blocks (for the rows, for groups of index blocks, for queries)."""
        across = {"answer_1": -(-self._rows // WARPS), "answer_narrow": -(-self._rows // THREADS)}.get(
            kernel, self._rows
        )
        wanted = -(-_THREAD_BLOCKS * self._device.multiprocessors // across)
        down = min(-(-blocks // _BLOCKS[kernel]), wanted, _MAX_GRID_Y)
        return across, down, count if kernel == "answer_narrow" else 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of somebody's memory."""

    address: int

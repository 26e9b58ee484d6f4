"""The server's side of the hint engine on a GPU: the sums of hint_server.py, over indexes in the GPU's memory.

The kernels were compiled, and their source was run by an emulation of CUDA's threads on the CPU; they have not been run
on a GPU. What is checked is checked by the CPU's engine, which also answers what has no room on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import InvalidInput, Unavailable
from he_engine.gpu_indexes import GpuIndexes
from he_engine.gpu_kernel import GpuKernel
from he_engine.hint_server import HintServer
from he_engine.params import Parameters


class GpuServer:
    """A ServerEngine for one set of parameters. Thread-safe: each call has a queue of the device of its own.

    cpu: an engine for the same parameters, closed with this one. Engines of one process share `indexes`. Raises
    MemoryError, and RuntimeError for what CUDA reports.
    """

    #: Of index in one unit of work, if the caller can have them so large. The CPU's 32 MiB would take a GPU 10 µs,
    #: which is less than its launch, its copies of queries and answers, and Python's share.
    unit_index_bytes = 512 << 20

    def __init__(self, parameters: Parameters, cpu: HintServer, indexes: GpuIndexes) -> None:
        ring = parameters.ring
        self._cpu, self._indexes = cpu, indexes
        self._kernel = GpuKernel(ring.log_n, ring.primes, parameters.stride, parameters.planes, indexes.device)
        self._answer_shape = (len(ring.primes), parameters.rows_per_block)

    @property
    def query_bytes(self) -> int:
        """4·P·I·N."""
        return self._cpu.query_bytes

    @property
    def index_bytes_per_block(self) -> int:
        """4·P·I·N."""
        return self._cpu.index_bytes_per_block

    @property
    def answer_bytes_per_block(self) -> int:
        """4·P·B."""
        return self._cpu.answer_bytes_per_block

    def check_index(self, index: IndexFile) -> None:
        """See HintServer."""
        self._cpu.check_index(index)

    def check_queries(self, queries: Sequence[Buffer]) -> None:
        """See HintServer."""
        self._cpu.check_queries(queries)

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        """See HintServer: the same bytes. Raises InvalidInput for blocks that are not there, Unavailable for what CUDA
        reports."""
        if not 0 <= first_block <= first_block + blocks <= index.blocks:
            raise InvalidInput(
                f"blocks: got {first_block} to {first_block + blocks}, expected them within {index.blocks}"
            )
        self._cpu.require_length(index)
        stacks = [self._cpu.stack(query) for query in queries]
        out = np.empty((len(queries), blocks, *self._answer_shape), np.uint32)
        if out.size:
            try:
                with self._indexes.using(self, index) as memory:
                    if memory is None:
                        raise MemoryError
                    self._kernel.answer(memory, first_block, blocks, stacks, out)
            except MemoryError:
                return self._cpu.answer(index, first_block, blocks, queries)
            except RuntimeError as error:
                raise Unavailable(f"device gpu: {error}") from error
        return [answers.tobytes() for answers in out]

    def warm(self, index: IndexFile) -> None:
        """Brings it into the GPU's memory if there is room without taking that of others, else into this machine's."""
        self._cpu.require_length(index)
        with self._indexes.using(self, index, evict=False) as memory:
            if memory is None:
                self._cpu.warm(index)

    def forget(self, index: IndexFile) -> None:
        """Frees it everywhere; running calls keep it until they end."""
        self._indexes.forget(self, index)
        self._cpu.forget(index)

    def close(self) -> None:
        self._indexes.forget_all(self)
        self._kernel.workspaces.clear()
        self._cpu.close()

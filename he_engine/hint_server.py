"""The server's side of the hint engine: T[k] = Σ_i b[k,i]·c[i] at the score positions, and nothing else.

It multiplies and adds residues of ciphertexts. It knows no secret and imports nothing that could use one; the
kernel behind it has no code to encrypt or to recover.

A file's length is looked at before each call of the kernel. What happens to it within the call, and a page that the
disk cannot read, are ReadFaults of the kernel: TamperedDataError here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from he_engine.engine import Buffer, IndexFile
from he_engine.errors import ResidueError, TamperedDataError
from he_engine.kernels._answer import AnswerKernel, ReadFault
from he_engine.mapping import Mappings, populate
from he_engine.params import TILE, Parameters

_CHECK_BYTES = 32 << 20  #: of index looked at in one call of the kernel


class HintServer:
    """A ServerEngine for one set of parameters. Thread-safe: the kernel is stateless and runs without the GIL.

    `target` names an instruction set ("" for the best of this machine; see he_engine.kernels). Engines of one
    process share `mappings`.
    """

    def __init__(self, parameters: Parameters, target: str = "", mappings: Mappings | None = None) -> None:
        ring = parameters.ring
        self._kernel = AnswerKernel(ring.log_n, ring.primes, parameters.stride, parameters.planes, target)
        self._primes = len(ring.primes)
        self._rows = parameters.rows_per_block
        self._block_shape = (self._primes, ring.degree // TILE, parameters.planes, TILE)
        self._block_words = parameters.block_words
        self._mappings = mappings or Mappings()

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

    def check_queries(self, queries: Sequence[Buffer]) -> None:
        """Raises ResidueError for a length that is not a query's, or a residue ≥ q_j."""
        for number, query in enumerate(queries):
            self._check(self.stack(query)[None], f"query {number}")

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        """For each query (blocks, P, B) uint32, little-endian. Queries and index have been checked before.

        Raises TamperedDataError if the file has become too short or cannot be read, OSError if it is gone or cannot be
        mapped.
        """
        out = np.empty((len(queries), blocks, self._primes, self._rows), np.uint32)
        stacks = self._mapped(index)[first_block : first_block + blocks]
        with _readable():
            self._kernel.answer(stacks, [self.stack(query) for query in queries], out)
        return [answers.tobytes() for answers in out]

    def warm(self, index: IndexFile) -> None:
        """Reads and maps every page of it: answers then meet no page fault, as long as memory lasts."""
        populate(self._mapped(index))

    def forget(self, index: IndexFile) -> None:
        """Drops the mapping; running calls keep theirs until they end."""
        self._mappings.forget(self, index)

    def close(self) -> None:
        self._mappings.forget_all(self)

    def stack(self, query: Buffer) -> NDArray[np.uint32]:
        """The words of a query, (P, N/16, I, 16). Raises ResidueError for another length."""
        if len(query) != self.query_bytes:
            raise ResidueError(f"query: got {len(query)} bytes, expected {self.query_bytes}")
        return np.frombuffer(query, "<u4").reshape(self._block_shape)

    def require_length(self, index: IndexFile) -> None:
        """Raises ResidueError for a length that is not that of the blocks."""
        if index.length_bytes != index.blocks * self.index_bytes_per_block:
            raise ResidueError(
                f"index: got {index.length_bytes} bytes, expected "
                f"{index.blocks * self.index_bytes_per_block} for {index.blocks} blocks"
            )

    def _mapped(self, index: IndexFile) -> NDArray[np.uint32]:
        self.require_length(index)
        size, needed = index.path.stat().st_size, index.offset_bytes + index.length_bytes
        if size < needed:
            raise TamperedDataError(f"index: its file has {size} bytes, expected at least {needed}")
        return self._mappings.array(self, index).reshape(index.blocks, *self._block_shape)

    def _check(self, stacks: NDArray[np.uint32], what: str) -> None:
        with _readable():
            position = self._kernel.first_noncanonical(stacks.reshape(len(stacks), self._primes, -1))
        if position >= 0:
            raise ResidueError(f"{what}: got a residue that is not canonical, word {position}")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ReadFault:
        raise TamperedDataError("index: the disk cannot read a part of its file any more") from None

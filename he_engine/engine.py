"""The four verbs, as two protocols: what a client does with a key and what a server does without one.

setup    rows    → EncryptedRows    client; the index goes to the server
query    vector  → Query            client; only `ciphertext` leaves it
answer   index × queries → answers  server; no key of any kind
recover  answers → scores           client; verified first, then decrypted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

MAX_QUERIES = 64  #: ciphertexts in one answer call


class EngineKind(StrEnum):
    HINT = "hint"
    TENSEAL = "tenseal"


Advance = Callable[[int], None]


def nothing(_rows: int) -> None:
    """No progress wanted."""


@dataclass(frozen=True, slots=True)
class EncryptedRows:
    """What `setup` makes of the rows of one segment."""

    rows: int
    blocks: int
    index: Buffer = field(repr=False)  #: goes to the server, which computes with it
    hint: Buffer = field(repr=False)  #: for clients only, useless without the key; empty for tenseal
    seed: bytes = field(repr=False)  #: secret, to be sealed; empty for tenseal
    fingerprint: bytes = field(repr=False)  #: secret, to be sealed; empty for tenseal


class Query(Protocol):
    """One encrypted query. Everything but `ciphertext` is secret and stays in the process."""

    @property
    def ciphertext(self) -> Buffer: ...

    def close(self) -> None:
        """Forget its secrets; it recovers nothing any more."""


class Segment(Protocol):
    """What a client must hold of one segment to recover its answers; made by `ClientEngine.load`."""

    @property
    def rows(self) -> int: ...
    @property
    def blocks(self) -> int: ...


class ClientEngine(Protocol):
    """Made for one collection: parameters, collection key, engine state."""

    @property
    def rows_per_block(self) -> int: ...

    @property
    def index_bytes_per_block(self) -> int: ...

    @property
    def query_bytes(self) -> int: ...

    @property
    def answer_bytes_per_block(self) -> int: ...  #: for one query

    def setup(self, rows: NDArray[np.float64], advance: Advance = nothing) -> EncryptedRows:
        """rows (n, d), n ≥ 1, each of norm ≤ 1. Calls `advance` with the number of rows that are done, n in all."""

    def setup_encoded(self, rows: NDArray[Any], advance: Advance = nothing) -> EncryptedRows:
        """`setup` for rows (n, d) as `decrypt` gave them: the same integers (tenseal: floats), fresh randomness."""

    def decrypt(self, segment: Any, index: Buffer) -> NDArray[Any]:
        """The rows of a segment as they were encoded, (n, d): int32, exactly; tenseal: float64, nearly.

        segment: from `load`. index: the bytes of its index part, whose digest the caller has checked. Raises
        TamperedDataError or ResidueError for bytes that are no index of this segment.
        """

    def fingerprint_again(self, segment: Any, index: Buffer) -> bytes:
        """A new fingerprint of a stored segment, to be sealed, with weights of its own; tenseal: empty.

        segment: from `load`. index: the bytes of its index part, whose digest the caller has checked. Raises
        TamperedDataError for bytes that are no index.
        """

    def load(self, encrypted: EncryptedRows) -> Segment:
        """Prepare to recover (from `setup` directly, or from downloaded and unsealed parts; `index` unused)."""

    def row_squares(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """‖x‖² of rows (n, d) as `setup` encodes them, in the units of `recover`'s inner products."""

    def query_square(self, vector: NDArray[np.float64]) -> float:
        """‖y‖² of vector (d,) as `query` encodes it, in the same units."""

    def query(self, vector: NDArray[np.float64]) -> Query:
        """vector (d,), of norm ≤ 1; encrypted with fresh randomness at every call."""

    def recover(self, query: Any, segments: Sequence[Any], answers: Sequence[Buffer]) -> list[NDArray[np.float64]]:
        """One float64 array of inner products, (rows,), for each segment.

        Where the engine can verify, all answers are verified before any is decrypted: TamperedAnswerError. May be
        called from several threads, also for one query.
        """

    def release(self, segment: Any) -> None:
        """The segment will not be searched again: forget what is kept for it."""

    def close(self) -> None:
        """Forget secrets."""


@dataclass(frozen=True, slots=True)
class IndexFile:
    """Where the server finds one segment's index bytes; the file never changes while it exists."""

    path: Path
    offset_bytes: int  #: a multiple of 4096
    length_bytes: int
    blocks: int


class ServerEngine(Protocol):
    """Made for one set of parameters; holds no key. Thread-safe."""

    @property
    def query_bytes(self) -> int: ...  #: exact length of one query ciphertext

    @property
    def index_bytes_per_block(self) -> int: ...  #: exact

    @property
    def answer_bytes_per_block(self) -> int: ...  #: exact, for one query

    def check_index(self, index: IndexFile) -> None:
        """Raises ResidueError unless every residue is canonical."""

    def check_queries(self, queries: Sequence[Buffer]) -> None:
        """One ciphertext each. Raises ResidueError for a wrong length or residue."""

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        """For each query, the answers of blocks [first_block, first_block + blocks), end to end.

        Runs without the GIL, or in another process. Takes milliseconds: callers split the work by blocks and
        look for cancellation in between.
        """

    def warm(self, index: IndexFile) -> None:
        """Bring the index into memory before it is asked for. Raises as `answer` does."""

    def forget(self, index: IndexFile) -> None:
        """The segment is being deleted: drop whatever is mapped or cached."""

    def close(self) -> None: ...

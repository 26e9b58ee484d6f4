"""How many answers of each block were released, and the warning once there were more than the budget.

Under `compact` and `precise` a score is key material (docs/score-release.md): with about 400·d of them a row, for known
queries, whoever has the index finds the secret of the block. The budget is d answers for a block, d the dimension; then
its rows are encrypted anew, by compaction or reseal, and counting begins at 0. An answer of a block is released when
`search` returns at least one score of it; what ranking has thrown away is not. Nothing is counted under `exact`.

Counts belong to ciphertexts, by the digest of a segment's index: a segment that gets a new fingerprint keeps them.

In memory, counts last as long as the client; in a folder, beyond, and processes share them: a file for each index, of
one number of 32 bits for each block. They are not synced: a power loss may take some away.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

from he_client.durable import make_folder, state_errors
from he_client.parts import part_of
from he_engine.params import Parameters, Profile
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

Block = tuple[bytes, int]  #: the digest of a segment's index, and the number of one of its blocks

_COUNT = struct.Struct("<I")
_MOST = (1 << 32) - 1


class ScoreReleaseWarning(UserWarning):
    """More answers of a block were released than the budget; their scores are key material.

    Filter it as other warnings: `warnings.simplefilter("error", ScoreReleaseWarning)` makes `search` raise it, and
    return nothing, where it would go over the budget.
    """


def index_digest(entry: pb.SegmentEntry) -> bytes:
    """By which a segment's answers are counted."""
    part = part_of(entry, pb.PART_KIND_INDEX)
    assert part is not None
    return part.sha256


def budget(parameters: wire.PublicParameters) -> int | None:
    """Answers of a block that may be released; None: no number is known (`tenseal`), or none is needed (`exact`)."""
    if isinstance(parameters, Parameters) and parameters.profile is not Profile.EXACT:
        return parameters.dim
    return None


class Released:
    """Thread-safe. `folder` None: memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._counts: dict[bytes, dict[int, int]] = {}  # by index, by block; without a folder
        if folder is not None:
            make_folder(folder)

    def add(self, answers: Mapping[Block, int]) -> int:
        """So many answers more for each of these blocks. Returns the largest count that one of them has now, or 0.

        Raises HesearchError where the folder cannot be written."""
        indexes: dict[bytes, dict[int, int]] = {}
        for (index, block), number in answers.items():
            indexes.setdefault(index, {})[block] = number
        return max((self._add(index, blocks) for index, blocks in indexes.items()), default=0)

    def _add(self, index: bytes, blocks: Mapping[int, int]) -> int:
        if self._folder is None:
            with self._lock:
                counts = self._counts.setdefault(index, {})
                for block, number in blocks.items():
                    counts[block] = counts.get(block, 0) + number
                return max(counts[block] for block in blocks)
        with state_errors(self._folder, "released answers"):
            descriptor = os.open(self._path(index), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return max(_count(descriptor, block, number) for block, number in blocks.items())
            finally:
                os.close(descriptor)

    def most(self, entry: pb.SegmentEntry) -> int:
        """The largest count of any block of this segment."""
        if self._folder is None:
            with self._lock:
                return max(self._counts.get(index_digest(entry), {}).values(), default=0)
        with state_errors(self._folder, "released answers"):
            path = self._path(index_digest(entry))
            raw = path.read_bytes() if path.exists() else b""
        return max((count for (count,) in _COUNT.iter_unpack(raw[: len(raw) // _COUNT.size * _COUNT.size])), default=0)

    def _path(self, index: bytes) -> Path:
        assert self._folder is not None
        return self._folder / f"{index.hex()}.released"


def _count(descriptor: int, block: int, number: int) -> int:
    """`number` more for a block, in a file that is locked. Returns its count."""
    place = block * _COUNT.size
    before = os.pread(descriptor, _COUNT.size, place).ljust(_COUNT.size, b"\0")  # beyond the end of the file: 0
    count: int = min(_COUNT.unpack(before)[0] + number, _MOST)
    os.pwrite(descriptor, _COUNT.pack(count), place)
    return count

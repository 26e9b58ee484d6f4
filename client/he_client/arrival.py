"""Answers as they arrive: pieces are put in their places, and groups of segments handed on once they are complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_client.manifest import Manifest
from he_client.segments import Segment
from he_engine.engine import Buffer
from he_engine.errors import TamperedAnswerError
from he_proto.v1 import hesearch_pb2 as pb

#: A group is verified by one product of the query with the sum of its fingerprints, 3·P·N·I multiply-adds however few
#: blocks it has: what decrypting 1.5·I blocks takes, 24 or 48 at the default strides. Many segments of one row must
#: not each cost that; over this many blocks it is small. More would leave more to do after the last piece.
GROUP_BLOCKS = 256
HEAD_BYTES = 16  #: of ciphertexts, that a report shows


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Group:
    """Consecutive live segments, which are verified, decrypted and ranked together."""

    segments: tuple[Segment, ...]
    first_row: int  #: its place among the rows of all live segments
    deleted: NDArray[np.intp]  #: rows, counted from first_row

    @property
    def blocks(self) -> int:
        return sum(s.entry.blocks for s in self.segments)


def grouped(manifest: Manifest, segments: Sequence[Segment]) -> list[Group]:
    """`segments`, in the manifest's order, as groups of at least GROUP_BLOCKS blocks; the last may have fewer."""
    groups: list[Group] = []
    members: list[Segment] = []
    deleted: list[int] = []
    first = end = blocks = 0  # of rows, counted over all segments; of blocks, in this group
    for number, (entry, segment) in enumerate(zip(manifest.message.segments, segments, strict=True), 1):
        members.append(segment)
        deleted += [end - first + row for row in entry.deleted_rows]
        end += entry.rows
        blocks += entry.blocks
        if blocks >= GROUP_BLOCKS or number == len(segments):
            groups.append(Group(tuple(members), first, np.array(deleted, np.intp)))
            members, deleted, first, blocks = [], [], end, 0
    return groups


class Collector:
    """Every block of every live segment, exactly once, for each query of one call.

    complete(query, group, answers) is called, with the answer of each segment, when the last block of a group came.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        queries: int,
        bytes_per_block: int,
        complete: Callable[[int, int, list[Buffer]], None],
    ) -> None:
        self.head = b""  #: of the first piece
        self._places: dict[bytes, tuple[int, int, int]] = {}  # segment id → group, its blocks there
        for number, group in enumerate(groups):
            end = 0
            for segment in group.segments:
                first, end = end, end + segment.entry.blocks
                self._places[segment.id] = (number, first, end)
        sizes = [group.blocks for group in groups]
        self._left = np.tile(np.array(sizes, np.int64), (queries, 1))
        self._seen = [[np.zeros(size, bool) for size in sizes] for _ in range(queries)]
        self._answers = [[np.empty((size, bytes_per_block), np.uint8) for size in sizes] for _ in range(queries)]
        self._groups = groups
        self._bytes_per_block = bytes_per_block
        self._complete = complete

    def add(self, piece: pb.AnswerResponse) -> None:
        """Raises TamperedAnswerError."""
        place = self._places.get(piece.segment_id)
        if place is None or piece.query >= len(self._seen):
            raise TamperedAnswerError("answer: concerns a segment or a query that was not asked for")
        group, start, stop = place
        first, end = start + piece.first_block, start + piece.first_block + piece.blocks
        seen = self._seen[piece.query][group]
        residues = piece.residues  # a copy, each time
        if not first < end <= stop or seen[first:end].any() or len(residues) != piece.blocks * self._bytes_per_block:
            raise TamperedAnswerError("answer: a piece repeats blocks, exceeds its segment or has a wrong length")
        seen[first:end] = True
        answers = self._answers[piece.query]
        answers[group][first:end] = np.frombuffer(residues, np.uint8).reshape(-1, self._bytes_per_block)
        self.head = self.head or residues[:HEAD_BYTES]
        self._left[piece.query, group] -= piece.blocks
        if not self._left[piece.query, group]:
            whole, answers[group] = answers[group], np.empty((0, 0), np.uint8)  # a view would keep all of it
            places = (self._places[s.id][1:] for s in self._groups[group].segments)
            self._complete(piece.query, group, [whole[a:b].data.cast("B") for a, b in places])

    def require_complete(self) -> None:
        """Raises TamperedAnswerError."""
        if missing := int(self._left.sum()):
            raise TamperedAnswerError(f"answer: {missing} blocks are missing")

"""Compaction: small and half-dead segments become few full ones. No row is lost, changed or brought back.

Which. A segment is small when it has room for twice its rows (index below half of SEGMENT_BYTES), and half-dead when
over half of its rows are deleted. Each holds under half of a full segment's live rows, so they are packed, in the
manifest's order and first fit, into groups that fill one new segment. A group of two or more is rewritten; alone is
one that is half-dead, or whose secrets served too often (he_client.released); a small one alone would gain nothing.
Hence at most one segment stays small, a second compaction does nothing, and stored rows are at most twice the live
ones.

How. For each group: download, decrypt, encrypt under a fresh seed, upload, and one commit that puts the new segment
in the place of the old ones. In memory are one downloaded index and its rows, or the new index and its rows: about
two segments, with the payloads of one. What is not committed does not exist: after a crash, the server collects an
uploaded segment that no manifest names, and the next compaction starts with the first group that is left.

Others write meanwhile. The commit is rebased on their manifests. Rows that they deleted or replaced after they were
read here are marked deleted in the new segment too, by position, not by id: an id that lives again lives elsewhere.
Where an old segment has left the manifest (another compaction, or nothing in it lives), nothing is committed, and
groups are chosen again. Only segments of the first manifest are ever taken up, and each round takes one of them out
of the manifest, so this ends however fast others write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_client.manifest import Entries, without_rows
from he_client.progress import progress_bar
from he_client.results import CompactReport
from he_client.rows import Rows
from he_client.segments import Segment, SegmentStore
from he_client.state import State
from he_engine.engine import Advance, ClientEngine
from he_engine.errors import NotFound
from he_proto.v1 import hesearch_pb2 as pb


class _Gone(Exception):
    """An old segment has left the manifest: its rows are elsewhere, or nowhere."""


@dataclass(frozen=True, slots=True)
class _Source:
    """An old segment as it was read."""

    entry: pb.SegmentEntry
    segment: Segment
    kept: NDArray[np.intp]  #: the rows that lived, ascending


def groups(
    entries: Iterable[pb.SegmentEntry], full_rows: int, spent: Callable[[pb.SegmentEntry], bool] = lambda _: False
) -> list[list[pb.SegmentEntry]]:
    """What to rewrite together; `full_rows`: of a full segment; `spent`: whether one must be, even alone."""
    packed: list[tuple[int, list[pb.SegmentEntry]]] = []
    for entry in entries:
        live = entry.rows - len(entry.deleted_rows)
        if 2 * entry.rows >= full_rows and not _half_dead(entry) and not spent(entry):
            continue
        for number, (rows, members) in enumerate(packed):
            if rows + live <= full_rows:
                packed[number] = rows + live, [*members, entry]
                break
        else:
            packed.append((live, [entry]))
    return [members for _, members in packed if len(members) > 1 or _half_dead(members[0]) or spent(members[0])]


def _half_dead(entry: pb.SegmentEntry) -> bool:
    return 2 * len(entry.deleted_rows) > entry.rows


class Compactor:
    """One compaction of one collection."""

    def __init__(
        self,
        state: State,
        store: SegmentStore,
        engine: ClientEngine,
        segment_bytes: int,
        spent: Callable[[pb.SegmentEntry], bool],
    ) -> None:
        self._spent = spent
        self._state = state
        self._store = store
        self._full_rows = max(1, segment_bytes // engine.index_bytes_per_block) * engine.rows_per_block
        self._sources: list[_Source] = []
        self._new: list[Segment] = []

    def run(self, progress: bool | None) -> CompactReport:
        """Raises as `Collection.compact`."""
        self._state.refresh()
        before = self._state.manifest.message.segments
        first = {entry.segment_id for entry in before}
        total = sum(_live(group) for group in groups(before, self._full_rows, self._spent))
        with progress_bar(progress, total, "compact", "rows") as advance:
            while group := self._next(first):
                try:
                    self._rewrite(group, advance)
                except _Gone:
                    continue
        return CompactReport(
            segments_before=len(before),
            segments_after=len(self._state.manifest.message.segments),
            rewritten=len(self._sources),
            rows=sum(len(s.kept) for s in self._sources),
            dropped_rows=sum(s.entry.rows - len(s.kept) for s in self._sources),
            freed_bytes=_bytes(s.entry for s in self._sources) - _bytes(s.entry for s in self._new),
            commits=len(self._new),
        )

    def _next(self, first: set[bytes]) -> list[_Source]:
        """The first group that is left, as of one manifest."""
        manifest, segments = self._state.current
        opened = {segment.id: segment for segment in segments}
        old = (entry for entry in manifest.message.segments if entry.segment_id in first)
        left = groups(old, self._full_rows, self._spent)
        return [
            _Source(entry, opened[entry.segment_id], np.setdiff1d(np.arange(entry.rows), entry.deleted_rows))
            for entry in (left[0] if left else [])
        ]

    def _rewrite(self, group: list[_Source], advance: Advance) -> None:
        """Raises _Gone; then nothing was committed, and the manifest has been read again."""
        segment, contents = self._store.build_again(self._read(group), advance)
        self._store.upload(segment, contents)

        def replace(current: Entries) -> Entries:
            now = {entry.segment_id: entry for entry in current}
            if any(source.entry.segment_id not in now for source in group):
                raise _Gone
            dead = _dead_rows(group, [now.pop(source.entry.segment_id) for source in group])
            return [*now.values(), *without_rows([segment.entry], {segment.id: dead})]

        try:
            self._state.commit(replace, {segment.id: segment})
        except BaseException:
            self._store.forget(segment)
            raise
        self._sources += group
        self._new.append(segment)

    def _read(self, group: Sequence[_Source]) -> Rows:
        try:
            return Rows.joined([self._store.rows(source.segment, source.kept) for source in group])
        except NotFound:
            self._state.require_retired(source.entry.segment_id for source in group)
            raise _Gone from None


def _dead_rows(group: Sequence[_Source], now: Sequence[pb.SegmentEntry]) -> list[int]:
    """Rows of the new segment that were deleted in the old ones since those were read."""
    dead: list[int] = []
    first = 0
    for source, entry in zip(group, now, strict=True):
        lost = np.isin(source.kept, np.array(entry.deleted_rows, np.intp))
        dead += (first + np.flatnonzero(lost)).tolist()
        first += len(source.kept)
    return dead


def _live(entries: Iterable[pb.SegmentEntry]) -> int:
    return sum(e.rows - len(e.deleted_rows) for e in entries)


def _bytes(entries: Iterable[pb.SegmentEntry]) -> int:
    return sum(part.length_bytes for entry in entries for part in entry.parts)

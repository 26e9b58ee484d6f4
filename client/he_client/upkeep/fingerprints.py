"""New fingerprints: the same ciphertexts, ids, payloads and row numbers, verified with fresh weights from then on.

For a fingerprint that has rejected so many answers that it may verify no more (he_client.rejections), or that may have
leaked. One segment after the other: download its parts, and compare each with its digest in the signed manifest; only
then draw a salt and compute F from the index; upload; and one commit that puts the new segment in the place of the old
one, with the rows marked that are deleted by then. The order matters: a fingerprint vouches for the bytes that it is
made of, and ciphertexts that the server altered are ciphertexts.

A segment's id is the digest of its parts, so another fingerprint makes another segment, and the server takes segments
as a whole: the index travels twice, as the same bytes. Nothing is decrypted, and nothing is encrypted under an old
seed. No score changes by a bit. Rejections are counted by the fingerprint's digest, so they begin at 0; released
answers by the index's, so they do not (he_client.released).

What is not committed does not exist: after a crash the server collects what no manifest names, and the next call takes
up the fingerprints that are worn still. Others write meanwhile: a segment that has left the manifest before the commit
(a compaction, another of these calls) is given up, and only segments of the first manifest are taken up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from he_client.manifest import Entries
from he_client.progress import progress_bar
from he_client.results import FingerprintReport
from he_client.segments import Segment, SegmentStore
from he_client.state import State
from he_engine.engine import EngineKind
from he_engine.errors import InvalidInput, NotFound
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb


class _Gone(Exception):
    """The segment has left the manifest."""


class Refingerprinter:
    """Of one collection. `worn`: whether a segment's fingerprint may verify no more."""

    def __init__(self, state: State, store: SegmentStore, worn: Callable[[pb.SegmentEntry], bool]) -> None:
        self._state = state
        self._store = store
        self._worn = worn

    def run(self, everything: bool, progress: bool | None) -> FingerprintReport:
        """Raises as `Collection.reseal_fingerprints`."""
        if wire.engine_kind(self._state.manifest.parameters) is not EngineKind.HINT:
            raise InvalidInput("fingerprints: got a collection of the engine 'tenseal', which verifies no answers")
        self._state.refresh()
        chosen = [s for s in self._state.current[1] if everything or self._worn(s.entry)]
        made: list[Segment] = []
        with progress_bar(progress, sum(s.entry.rows for s in chosen), "fingerprints", "rows") as advance:
            for segment in chosen:
                with contextlib.suppress(_Gone):
                    made.append(self._replaced(segment))
                advance(segment.entry.rows)
        return FingerprintReport(
            version=self._state.manifest.version,
            segments=len(self._state.manifest.message.segments),
            rebuilt=len(made),
            uploaded_bytes=sum(part.length_bytes for segment in made for part in segment.entry.parts),
        )

    def _replaced(self, segment: Segment) -> Segment:
        """Raises _Gone; then nothing was committed."""
        try:
            made, contents = self._store.fingerprint_again(segment)
        except NotFound:
            self._state.require_retired([segment.id])
            raise _Gone from None
        self._store.upload(made, contents)

        def replace(current: Entries) -> Entries:
            if all(entry.segment_id != segment.id for entry in current):
                raise _Gone
            return [_with_parts(entry, made.entry) if entry.segment_id == segment.id else entry for entry in current]

        try:
            self._state.commit(replace, {made.id: made})
        except BaseException:
            self._store.forget(made, self._state.manifest.message.segments)
            raise
        return made


def _with_parts(entry: pb.SegmentEntry, made: pb.SegmentEntry) -> pb.SegmentEntry:
    """The new segment, with the rows deleted that are deleted now: they have the same numbers."""
    replaced = pb.SegmentEntry()
    replaced.CopyFrom(made)
    replaced.deleted_rows.extend(entry.deleted_rows)
    return replaced

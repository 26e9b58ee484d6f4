"""Reseal: every live segment encrypted again under a new key, then one commit that switches to it.

Rows that are deleted are left out. Others may write meanwhile: what they committed is encrypted again too, and what
they deleted is marked in the new segments, before the switch, which expects the manifest that was copied. A journal
says what is stored already, since nothing at the server names the new segments before the switch; those that the
server has given up meanwhile (after a day) are made again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from he_client.cache import PartCache
from he_client.engines import generate_state, make_engine
from he_client.manifest import Entries, Manifest, open_manifest, seal_manifest, without_rows
from he_client.progress import progress_bar
from he_client.results import ResealReport
from he_client.segments import Segment, SegmentStore
from he_client.signing import Writer
from he_client.state import State
from he_client.stored import header_of, is_stored
from he_client.transport import Remote
from he_client.upkeep.reseal_journal import Resealed, ResealJournal, open_journal
from he_engine.engine import Advance
from he_engine.errors import Conflict, NotFound, WrongKeyError
from he_engine.keys import RootKey
from he_proto.v1 import hesearch_pb2 as pb

MAX_ROUNDS = 64  #: tries to switch, each on top of what others committed since the one before


class Resealer:
    """One reseal of one open collection: `state` and `store` are the old key's."""

    def __init__(
        self,
        name: str,
        remote: Remote,
        state: State,
        store: SegmentStore,
        old_key: RootKey,
        new_key: RootKey,
        writer: Writer | None = None,
    ) -> None:
        self._name = name
        self._remote = remote
        self._state = state
        self._old_store = store
        self._keys = (old_key, new_key)
        self._writer = writer
        self._made = self._reused = 0

    def run(self, path: Path, progress: bool | None, threads: int | None) -> ResealReport:
        """Raises as `Collection.reseal`."""
        first = self._state.manifest
        state = generate_state(first.parameters)
        with open_journal(path, first.collection_id, *self._keys, state) as journal:
            switched = self._run(journal, progress, threads)
            for segment in self._state.current[1]:
                self._old_store.forget(segment)
            journal.remove()
        return ResealReport(
            version=switched.version,
            segments=len(switched.message.segments),
            rows=switched.count,
            made=self._made,
            reused=self._reused,
        )

    def _run(self, journal: ResealJournal, progress: bool | None, threads: int | None) -> Manifest:
        manifest = self._state.manifest
        key, collection_id = self._keys[1], manifest.collection_id
        engine = make_engine(manifest.parameters, key, collection_id, journal.engine_state, threads=threads)
        store = SegmentStore(self._remote, collection_id, key, engine, manifest.space, PartCache(None), True)
        stored: set[bytes] = set()  # new segments that the server had when it was asked last, by source
        try:
            with progress_bar(progress, manifest.count, "reseal", "rows") as advance:
                for _ in range(MAX_ROUNDS):
                    try:
                        self._state.refresh()
                    except WrongKeyError:  # the reply to the last try was lost
                        return self._switched(journal)
                    try:
                        return self._switch(journal, self._copy(journal, store, stored, advance))
                    except Conflict:
                        continue
                    except NotFound:  # the server has given up new segments
                        stored.clear()
        finally:
            engine.close()
        raise Conflict(
            f"collection {self._name!r}: {MAX_ROUNDS} commits by others came first; stop them for a moment and reseal "
            "again: it goes on where it stopped"
        )

    # ---- copying ---------------------------------------------------------------------------------------
    def _copy(self, journal: ResealJournal, store: SegmentStore, stored: set[bytes], advance: Advance) -> Manifest:
        """The manifest, each of whose segments is now stored under the new key, and in the journal."""
        manifest, segments = self._state.current
        for entry, segment in zip(manifest.message.segments, segments, strict=True):
            found = journal.done.get(entry.segment_id)
            if found is not None and set(found.dropped) <= set(entry.deleted_rows):
                if entry.segment_id in stored:
                    continue
                if is_stored(self._remote, header_of(self._remote, manifest.collection_id, found.entry)):
                    stored.add(entry.segment_id)
                    self._reused += 1
                    advance(found.entry.rows)
                    continue
            journal.add(self._copied(entry, segment, store, advance))
            stored.add(entry.segment_id)
            self._made += 1
        return manifest

    def _copied(self, entry: pb.SegmentEntry, segment: Segment, store: SegmentStore, advance: Advance) -> Resealed:
        kept = np.setdiff1d(np.arange(entry.rows), entry.deleted_rows)
        try:
            rows = self._old_store.rows(segment, kept)
        except NotFound:
            self._state.require_retired([entry.segment_id])
            raise Conflict("a segment was retired meanwhile") from None
        made, contents = store.build_again(rows, advance)
        store.upload(made, contents)
        return Resealed(entry.segment_id, tuple(entry.deleted_rows), made.entry)

    # ---- switching -------------------------------------------------------------------------------------
    def _switch(self, journal: ResealJournal, base: Manifest) -> Manifest:
        """Raises Conflict where `base` is no longer current, NotFound where the server has given up a new segment."""
        entries = [e for old in base.message.segments for e in _renewed(old, journal.done[old.segment_id])]
        following = base.successor(entries)
        following.engine_state = journal.engine_state
        sealed, manifest = seal_manifest(self._keys[1], self._name, following, self._writer)
        request = pb.CommitManifestRequest(
            context=self._remote.context,
            collection_id=base.collection_id,
            expected_version=base.version,
            sealed_manifest=sealed,
            live_segments=[entry.segment_id for entry in entries],
        )
        self._remote.call("CommitManifest", request)  # the same bytes again change nothing
        return manifest

    def _switched(self, journal: ResealJournal) -> Manifest:
        """The manifest that this reseal made, or one that followed it. Raises WrongKeyError if it is another's."""
        manifest = _read(self._remote, self._name, self._keys[1])
        if manifest.message.engine_state != journal.engine_state:
            raise WrongKeyError(f"collection {self._name!r}: another reseal, under the same key, came first")
        return manifest


def _renewed(old: pb.SegmentEntry, resealed: Resealed) -> Entries:
    """The new segment's entry, with the rows marked that were deleted in the old one since it was read."""
    kept = np.setdiff1d(np.arange(old.rows), resealed.dropped)
    later = np.setdiff1d(np.array(old.deleted_rows, np.int64), resealed.dropped)
    return without_rows([resealed.entry], {resealed.entry.segment_id: np.searchsorted(kept, later).tolist()})


def _read(remote: Remote, name: str, key: RootKey) -> Manifest:
    response = remote.call("ReadManifest", pb.ReadManifestRequest(context=remote.context))
    return open_manifest(key, name, response)


def finished(remote: Remote, name: str, old_key: RootKey, new_key: RootKey, journal: Path) -> ResealReport:
    """What an earlier reseal made that was interrupted after its switch; its journal is removed now.

    Raises WrongKeyError where the new key does not open the collection either.
    """
    manifest = _read(remote, name, new_key)
    if journal.exists():
        with open_journal(journal, manifest.collection_id, old_key, new_key, b"") as found:
            found.remove()
    segments = len(manifest.message.segments)
    return ResealReport(version=manifest.version, segments=segments, rows=manifest.count, made=0, reused=segments)

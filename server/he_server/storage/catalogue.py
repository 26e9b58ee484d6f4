"""The catalogue: which collections and segments there are, and which segments each manifest makes live.

It is small and read all the time, so all but the manifests is kept in memory (he_server.storage.catalogue_memory).
Each change is first a transaction in its file (he_server.storage.catalogue_file), which is read once, when the
catalogue is opened. One that several servers share is he_server.storage.catalogue_shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from he_engine.errors import AlreadyExists, Conflict, LimitExceeded, NotFound, TamperedDataError
from he_server.storage.backend import Backend
from he_server.storage.catalogue_file import CatalogueFile
from he_server.storage.catalogue_memory import CatalogueMemory
from he_server.storage.catalogue_rows import CollectionRecord, SegmentRecord, State
from he_server.storage.database import Database
from he_server.storage.kek import KeyProvider


class Catalogue(CatalogueMemory):
    """Thread-safe. `kek`: None for a folder that is not sealed; one that is not, is sealed where it is given.

    Raises TamperedDataError, WrongKeyError, InvalidInput (no kek for a sealed folder), FormatVersionError, and where
    the file fails LimitExceeded, Unavailable or ReadOnlyError.
    """

    def __init__(
        self, where: Path | Backend, kek: KeyProvider | None = None, previous_kek: KeyProvider | None = None
    ) -> None:
        """where: SQLite's file, or an open database, which is closed with this."""
        super().__init__()
        self.retired: Callable[[Sequence[SegmentRecord]], None] = lambda _: None
        """Is told of segments that were forgotten or moved, but not by a call of this object; raises nothing."""
        self._dropped = 0  # generations of data keys up to this one may be those of collections that were dropped
        self._file = CatalogueFile(Database(where) if isinstance(where, Path) else where, kek, previous_kek)
        try:
            with self._view():
                self._load()
            if kek is not None and not self._file.sealed:
                with self._exclusive():
                    self._seal(kek)
        except BaseException:
            self._file.close()
            raise

    def _exclusive(self) -> AbstractContextManager[object]:
        """Around what is checked and then written: it is the newest, and nobody else changes it."""
        return self._file.exclusive()

    def _view(self) -> AbstractContextManager[object]:
        """Around what is read from memory and from the file: both are of one moment."""
        return self._file.view()

    def look(self) -> None:
        """What is in memory is as new as this call, whoever writes. Raises Unavailable, TamperedDataError."""

    # ---- opening ---------------------------------------------------------------------------------------
    def _load(self) -> None:
        self._file.require_ids()
        for state in self._file.states():
            self._remember(state)
        for segment, touched_s in self._file.segments():
            if segment.collection_id not in self._states:
                raise TamperedDataError("catalogue: a segment belongs to no collection")
            self._segments[segment.collection_id][segment.segment_id] = segment, touched_s
        for collection_id, state in self._states.items():
            if not self._segments[collection_id].keys() >= set(state.live):
                raise TamperedDataError("catalogue: a live segment has no row")

    def _remember(self, state: State) -> None:
        collection_id = state.record.collection_id
        with self._lock:
            self._states[collection_id] = state
            self._places[state.record.place] = collection_id
            self._segments.setdefault(collection_id, {})

    def _seal(self, kek: KeyProvider) -> None:
        """From now on the folder is sealed; files of segments follow (he_server.storage.rekey)."""
        states = {c: state.with_new_key(time.time()) for c, state in self._states.items()}
        self._seal_anew(kek, states)
        self._states = states

    def replace_folder_key(self, kek: KeyProvider) -> None:
        """A new one, under `kek`, for every row; data keys stay. Before anybody else uses this. Raises Unavailable,
        LimitExceeded, ReadOnlyError; then all is as before, and this is to be closed."""
        self._seal_anew(kek, self._states)

    def _seal_anew(self, kek: KeyProvider, states: dict[bytes, State]) -> None:
        segments = [row for known in self._segments.values() for row in known.values()]
        self._file.seal_anew(kek, states.values(), segments)

    @property
    def sealed(self) -> bool:
        return self._file.sealed

    # ---- collections -----------------------------------------------------------------------------------
    def create(self, record: CollectionRecord, sealed_manifest: bytes, limit: int, now_s: float) -> None:
        """A collection at its version; without a manifest where it is imported. The same request again changes
        nothing. Raises AlreadyExists for a name or an id that is taken, LimitExceeded if there are `limit`."""
        with self._exclusive():
            found = self._states.get(self._places.get(record.place, record.collection_id))
            if found:
                same = (
                    found.record == record
                    and (self._file.manifest(found) if found.has_manifest else b"") == sealed_manifest
                )
                if same:
                    return
                taken = f"{record.name!r} exists" if record.place in self._places else "one on this server has this id"
                raise AlreadyExists(f"collection: {taken}")
            if len(self._states) >= limit:
                raise LimitExceeded(f"collections: got {len(self._states)}, and this server holds at most {limit}")
            state = State(record, bool(sealed_manifest), (), ())
            if self._file.sealed:
                state = state.with_new_key(now_s, self._dropped)
            with self._file.transaction() as db:
                self._file.add(db, state, sealed_manifest)
            self._remember(state)

    def drop(self, collection_id: bytes) -> list[SegmentRecord]:
        """Forgets a collection, its data keys and its segments, whose files may then be removed. Raises NotFound."""
        with self._exclusive():
            state = self._state(collection_id)
            record = state.record
            with self._file.transaction() as db:
                self._file.remove(db, collection_id)
            if state.newest_key is not None:  # segments may be on their way under it, and the id may come back
                self._dropped = max(self._dropped, state.newest_key.generation)
            with self._lock:
                del self._states[collection_id]
                del self._places[record.place]
                return [segment for segment, _ in self._segments.pop(collection_id).values()]

    # ---- segments --------------------------------------------------------------------------------------
    def touch(self, collection_id: bytes, segment_id: bytes, now_s: float) -> bool:
        """Whether the segment is stored; if so, it counts as sent just now."""
        with self._exclusive():
            known = self._segments.get(collection_id, {})
            if segment_id not in known:
                return False
            segment, _ = known[segment_id]
            self._store_segment(segment, now_s)
            return True

    def add(self, segment: SegmentRecord, now_s: float) -> SegmentRecord | None:
        """A segment whose file is on the disk; not live, unless it was. The one that it replaces, if another.

        Raises NotFound if its collection is gone, Conflict if its data key is.
        """
        with self._exclusive():
            state = self._state(segment.collection_id)
            if segment.generation and segment.generation not in {k.generation for k in state.keys}:
                raise Conflict("segment: its data key was replaced meanwhile; send it again")
            before = self._segments[segment.collection_id].get(segment.segment_id)
            self._store_segment(segment, now_s)
        return before[0] if before and before[0] != segment else None

    def _store_segment(self, segment: SegmentRecord, touched_s: float) -> None:
        with self._file.transaction() as db:
            self._file.write_segment(db, segment, touched_s)
        with self._lock:
            self._segments[segment.collection_id][segment.segment_id] = (segment, touched_s)

    def collect(self, before_s: float) -> list[SegmentRecord]:
        """Forgets the segments that are not live and were last sent before that time."""
        with self._exclusive():
            orphans = [
                segment
                for collection_id, known in self._segments.items()
                for live in [set(self._states[collection_id].live)]
                for segment, touched_s in known.values()
                if touched_s < before_s and segment.segment_id not in live
            ]
            if orphans:
                with self._file.transaction() as db:
                    self._file.remove_segments(db, orphans)
                self._forget(orphans)
        return orphans

    def _forget(self, segments: Iterable[SegmentRecord]) -> None:
        with self._lock:
            for segment in segments:
                del self._segments[segment.collection_id][segment.segment_id]

    # ---- the manifest ----------------------------------------------------------------------------------
    def manifest(self, collection_id: bytes) -> tuple[CollectionRecord, bytes, list[bytes]]:
        """The record, the sealed manifest and the live segments' ids in the order committed: all of one
        version. The manifest is empty while the collection is being imported. Raises NotFound."""
        with self._view():
            state = self._state(collection_id)
            return state.record, self._file.manifest(state), list(state.live)

    def commit(
        self, collection_id: bytes, expected_version: int, sealed_manifest: bytes, live: Sequence[bytes]
    ) -> tuple[int, list[SegmentRecord]]:
        """Compare-and-swap: the new version, and the segments that were live and are no more (forgotten here; their
        files may be removed). Committing again what is committed changes nothing.

        Raises Conflict if the version is another one, NotFound if a live segment is not stored here.
        """
        with self._exclusive():
            state = self._state(collection_id)
            version, known = state.record.version, self._segments[collection_id]
            if (
                version == expected_version + 1
                and state.live == tuple(live)
                and self._file.manifest(state) == sealed_manifest
            ):
                return version, []
            if version != expected_version:
                raise Conflict(f"expected_version: got {expected_version}, but the manifest is at version {version}")
            if missing := next((segment_id for segment_id in live if segment_id not in known), None):
                raise NotFound(f"live_segments: segment {missing.hex()[:16]}… is not stored here")
            retired = [known[segment_id][0] for segment_id in sorted(set(state.live) - set(live))]
            record = replace(state.record, version=version + 1)
            following = replace(state, record=record, has_manifest=True, live=tuple(live))
            with self._file.transaction() as db:
                self._file.remove_segments(db, retired)
                self._file.write_state(db, following)
                self._file.write_manifest(db, following, sealed_manifest)
            with self._lock:
                self._states[collection_id] = following
            self._forget(retired)
        return version + 1, retired

    # ---- data keys -------------------------------------------------------------------------------------
    def add_data_key(self, collection_id: bytes, now_s: float) -> None:
        """A new data key, for all that is written from now on. Raises NotFound."""
        with self._exclusive():
            self._replace_state(self._state(collection_id).with_new_key(now_s))

    def drop_old_data_keys(self, collection_id: bytes, in_use: Collection[int] = ()) -> None:
        """Forgets all data keys but the newest; those that still seal a file stay, and those of generations that are
        in use. Raises NotFound."""
        with self._exclusive():
            state = self._state(collection_id)
            used = {segment.generation for segment, _ in self._segments[collection_id].values()}
            used |= set(in_use)
            kept = tuple(k for k in state.keys if k is state.newest_key or k.generation in used)
            if kept != state.keys:
                self._replace_state(replace(state, keys=kept))

    def _replace_state(self, state: State) -> None:
        with self._file.transaction() as db:
            self._file.write_state(db, state)
        with self._lock:
            self._states[state.record.collection_id] = state

    def move(self, segment: SegmentRecord, moved: SegmentRecord) -> bool:
        """Its file under another data key is on the disk, and is its file from now on. False: it is gone by now."""
        with self._exclusive():
            found = self._segments.get(segment.collection_id, {}).get(segment.segment_id)
            if found is None or found[0] != segment:
                return False
            self._store_segment(moved, found[1])
            return True

    @property
    def failed(self) -> bool:
        """The disk failed: nothing is written any more."""
        return self._file.failed

    def close(self) -> None:
        self._file.close()

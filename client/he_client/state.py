"""What a client holds of a collection: the current manifest, its segments opened, and where each id is.

Reading a manifest and adopting it, or committing one and adopting it, happen under one lock, so that an older
response can never be adopted after a newer one. Searches take `current`, an immutable pair, without waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from he_client.manifest import Entries, Manifest, open_manifest, seal_manifest
from he_client.pins import Pin, Pins
from he_client.progress import progress_bar
from he_client.results import RowId
from he_client.segments import Segment, SegmentStore
from he_client.signing import Writer
from he_client.transport import Remote
from he_engine.errors import Conflict, InvalidInput, NotFound, TamperedDataError, Unavailable
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

MAX_REBASES = 16


class State:
    """Of one open collection. Thread-safe. `current`: the manifest, and its segments in the manifest's order."""

    def __init__(
        self,
        name: str,
        remote: Remote,
        key: RootKey,
        store: SegmentStore,
        manifest: Manifest,
        pins: Pins,
        writer: Writer | None = None,
    ) -> None:
        self._name = name
        self._pins = pins
        self._writer = writer
        self._remote = remote
        self._key = key
        self._store = store
        self._lock = threading.RLock()
        self._open: dict[bytes, Segment] = {}
        self._positions: dict[RowId, tuple[bytes, int]] = {}
        self.current: tuple[Manifest, tuple[Segment, ...]] = (manifest, ())
        pins.require(name, manifest)
        try:
            self._adopt(manifest, {})
        except NotFound:  # a segment was retired since the manifest was read
            self.refresh()

    @property
    def manifest(self) -> Manifest:
        return self.current[0]

    def position(self, row_id: RowId) -> tuple[bytes, int] | None:
        """(segment id, row) of a live id."""
        return self._positions.get(row_id)

    def places(self, row_ids: Iterable[RowId]) -> dict[bytes, list[int]]:
        """The rows that have these ids and live, by segment."""
        found: dict[bytes, list[int]] = {}
        for row_id in row_ids:
            if (place := self.position(row_id)) is not None:
                found.setdefault(place[0], []).append(place[1])
        return found

    def refresh(self, built: dict[bytes, Segment] | None = None) -> None:
        """Read the current manifest and open it. Raises RollbackError unless it extends what was seen, NotFound
        when the collection is gone, TamperedDataError when the server lost one of its segments."""
        with self._lock:
            for _ in range(MAX_REBASES):
                manifest = self._read()
                try:
                    return self._adopt(manifest, built or {})
                except NotFound:  # a segment: retired since, if there is a newer manifest
                    if self._read().version == manifest.version:
                        raise TamperedDataError(
                            f"collection {self._name!r}: the server no longer has a segment of its manifest"
                        ) from None
            raise Conflict(f"collection {self._name!r}: changes faster than it can be read; try again")

    def require_retired(self, segment_ids: Iterable[bytes]) -> None:
        """After a NotFound that concerned one of them. Raises TamperedDataError where all are live still."""
        self.refresh()
        live = {entry.segment_id for entry in self.manifest.message.segments}
        if live.issuperset(segment_ids):
            raise TamperedDataError(f"collection {self._name!r}: the server no longer has a segment of its manifest")

    def _read(self) -> Manifest:
        response = self._remote.call("ReadManifest", pb.ReadManifestRequest(context=self._remote.context))
        if response.collection_id != self.manifest.collection_id:
            raise NotFound(f"collection {self._name!r}: was dropped, and another has its name now")
        return open_manifest(self._key, self._name, response)

    def commit(self, change: Callable[[Entries], Entries], built: dict[bytes, Segment]) -> None:
        """Apply `change` to the live segments and commit; on top of other writers' commits where they came first.

        `built`: segments that this client made and need not fetch. Raises what `change` raises, Conflict after
        MAX_REBASES lost races, Unavailable.
        """
        tried: set[bytes] = set()
        repeats, rebases = self._remote.repeats(), 0
        with self._lock:
            while rebases < MAX_REBASES:
                base = self.manifest
                if tried & {base.sha256, *base.message.ancestors_sha256}:
                    return None  # an earlier attempt was committed although its reply was lost
                following = base.successor(change(list(base.message.segments)))
                sealed, manifest = seal_manifest(self._key, self._name, following, self._writer)
                if len(sealed) > wire.MAX_MANIFEST_BYTES:
                    raise InvalidInput("the collection has too many segments or deleted rows for one manifest")
                request = pb.CommitManifestRequest(
                    context=self._remote.context,
                    collection_id=base.collection_id,
                    expected_version=base.version,
                    sealed_manifest=sealed,
                    live_segments=[s.segment_id for s in following.segments],
                )
                try:
                    self._remote.once("CommitManifest", request)
                    return self._adopt(manifest, built)
                except (Conflict, Unavailable) as error:
                    tried.add(manifest.sha256)
                    if isinstance(error, Unavailable):
                        repeats.pause(error)
                    else:
                        rebases += 1
                    self.refresh(built)
        raise Conflict(f"collection {self._name!r}: {MAX_REBASES} commits by others came first; try again")

    # ---- adopting --------------------------------------------------------------------------------------
    def _adopt(self, manifest: Manifest, built: dict[bytes, Segment]) -> None:
        """Make `manifest` current: open its new segments, forget the ones that are gone. All or nothing."""
        with self._lock:
            Pin.of(self.manifest).require_successor(manifest)
            entries = {e.segment_id: e for e in manifest.message.segments}
            known = {**built, **self._open}
            missing = [e for e in entries.values() if e.segment_id not in known]
            total = sum(self._store.missing_bytes(e) for e in missing)
            with progress_bar(None, total, "fetch hints", "B") as advance:
                for entry in missing:
                    known[entry.segment_id] = self._store.open(entry)
                    advance(self._store.needed_bytes(entry))
            for segment_id in {**self._open, **entries}:
                self._place(segment_id, known[segment_id], entries.get(segment_id))
            if len(self._positions) != manifest.count:
                self._place_again(known.values())
                raise TamperedDataError("manifest: an id is live in two rows")
            for segment_id in self._open.keys() - entries.keys():
                self._store.forget(known[segment_id], entries.values())
            self._open = {segment_id: known[segment_id] for segment_id in entries}
            self.current = (manifest, tuple(self._open.values()))
            self._pins.pin(self._name, manifest)

    def _place_again(self, touched: Iterable[Segment]) -> None:
        """Positions as the current manifest has them, after one that was refused."""
        self._positions.clear()
        for segment in touched:
            segment.deleted = None
        for entry in self.manifest.message.segments:
            if entry.segment_id in self._open:
                self._place(entry.segment_id, self._open[entry.segment_id], entry)

    def _place(self, segment_id: bytes, segment: Segment, entry: pb.SegmentEntry | None) -> None:
        """Bring the positions of one segment's ids up to date: none live where `entry` is None."""
        everything = range(len(segment.table.ids))
        deleted = set(everything if entry is None else entry.deleted_rows)
        before = set(everything) if segment.deleted is None else segment.deleted
        for row in deleted - before:
            self._positions.pop(segment.table.ids[row], None)
        for row in before - deleted:
            self._positions[segment.table.ids[row]] = (segment_id, row)
        segment.deleted = None if entry is None else deleted

"""What the catalogue knows, in memory: who reads it waits for no disk."""

from __future__ import annotations

import threading

from he_engine.errors import NotFound
from he_server.storage.catalogue_rows import LOCAL_TENANT, CollectionRecord, FileId, Key, SegmentRecord, State, Totals


class CatalogueMemory:
    """Thread-safe. All but the manifests, which only he_server.storage.catalogue.Catalogue has, and changes."""

    def __init__(self) -> None:
        self._states: dict[bytes, State] = {}  # by collection id
        self._places: dict[tuple[str, str], bytes] = {}
        self._segments: dict[bytes, dict[bytes, tuple[SegmentRecord, float]]] = {}  # and when each was last sent
        self._lock = threading.Lock()  # never held while the disk works

    # ---- collections -----------------------------------------------------------------------------------
    def find(self, name: str, collection_id: bytes | None = None, tenant: str = LOCAL_TENANT) -> CollectionRecord:
        """Raises NotFound, also where the name is now another collection's."""
        with self._lock:
            if (found := self._places.get((tenant, name))) is None:
                raise NotFound(f"collection: there is no {name!r}")
            record = self._states[found].record
        if collection_id is not None and record.collection_id != collection_id:
            raise NotFound(f"collection: {name!r} is now another collection; the one meant was dropped")
        return record

    def state(self, collection_id: bytes) -> State:
        """Raises NotFound."""
        with self._lock:
            return self._state(collection_id)

    def _state(self, collection_id: bytes) -> State:
        if (state := self._states.get(collection_id)) is None:
            raise NotFound("collection: it was dropped meanwhile")
        return state

    def states(self) -> list[State]:
        """Of all collections, as they are now."""
        with self._lock:
            return list(self._states.values())

    def collections(self) -> list[CollectionRecord]:
        """Sorted by tenant, then name."""
        with self._lock:
            return [self._states[self._places[place]].record for place in sorted(self._places)]

    def counts(self, tenant: str, owner: str) -> tuple[int, int]:
        """Of collections: those that the owner made, and all of the tenant."""
        owners = [record.owner for record in self.collections() if record.tenant == tenant]
        return owners.count(owner), len(owners)

    def totals(self, collection_id: bytes) -> Totals:
        with self._lock:
            state = self._states.get(collection_id)
            known = self._segments.get(collection_id, {})
            live = [known[segment_id][0] for segment_id in (state.live if state else ())]
        return Totals(
            segments=len(live),
            blocks=sum(s.blocks for s in live),
            stored_bytes=sum(s.stored_bytes for s in live),
            index_bytes=sum(s.index_bytes for s in live),
        )

    # ---- segments --------------------------------------------------------------------------------------
    def kept_bytes(self, collection_id: bytes) -> int:
        """Of all segments of a collection, live or not."""
        with self._lock:
            return sum(segment.stored_bytes for segment, _ in self._segments.get(collection_id, {}).values())

    def segment(self, key: Key) -> SegmentRecord | None:
        with self._lock:
            found = self._segments.get(key[0], {}).get(key[1])
        return found[0] if found else None

    def contains(self, file_id: FileId) -> bool:
        """Whether this is the file of a stored segment."""
        segment = self.segment(file_id[:2])
        return segment is not None and segment.file_id == file_id

    def segments(self, collection_id: bytes | None = None) -> list[SegmentRecord]:
        """Every stored segment, of one collection or of all."""
        with self._lock:
            chosen = self._segments.values() if collection_id is None else [self._segments.get(collection_id, {})]
            return [segment for known in chosen for segment, _ in known.values()]

    def live(self, collection_id: bytes) -> list[bytes]:
        """The ids of a collection's live segments, in the order committed; none where it is gone."""
        with self._lock:
            state = self._states.get(collection_id)
            return list(state.live) if state else []

"""A catalogue in PostgreSQL that several servers use: what each has in memory is read again once another changed it.

Nobody is told; everybody asks. What begins a call compares one revision number, and if that is another than that of the
memory, reads what changed. So a server never answers from a state that is older than the call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from he_engine.errors import InvalidInput, TamperedDataError, Unavailable
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import LOCAL_TENANT, CollectionRecord, SegmentRecord, State
from he_server.storage.kek import KeyProvider
from he_server.storage.postgres import Mark, Postgres
from he_server.storage.tally import Tally


class SharedCatalogue(Catalogue):
    """See Catalogue."""

    def __init__(
        self,
        url: str,
        kek: KeyProvider | None = None,
        previous_kek: KeyProvider | None = None,
        tally: Tally | None = None,
    ) -> None:
        """url: of the database. Raises as Catalogue; InvalidInput where there are collections, not sealed, and a kek:
        servers that have no key may have them open."""
        self._tally = tally or Tally()
        self._database = Postgres(url)
        self._mark: Mark | None = None  # of the state in memory; None: nothing is
        self._gone: list[SegmentRecord] = []
        super().__init__(self._database, kek, previous_kek)

    def require_place(self, place_id: bytes, has_segments: bool) -> None:
        """Raises InvalidInput where the segments that this catalogue is about lie in another place than this: whatever
        has no row would be removed there. Nobody has used it yet."""
        with self._exclusive():
            (known,) = self._database.one("SELECT store_id FROM folder")
            if not known and not has_segments:
                with self._file.transaction() as db:
                    db.execute("UPDATE folder SET store_id = ?", (place_id,))
            elif known != place_id:
                raise InvalidInput("catalogue: it belongs to other segments than those that are here")

    # ---- the newest state ------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._file.exclusive():
            self._catch_up()
            yield
            self._mark = self._database.mark
        self._tell()

    @contextlib.contextmanager
    def _view(self) -> Iterator[None]:
        with self._file.view():
            self._catch_up()
            yield
        self._tell()

    def look(self) -> None:
        self._tally.add("catalogue_looks")
        try:
            if self._database.newest() != self._mark:
                with self._view():
                    pass
        except Unavailable:
            self._tally.add("catalogue_failed_looks")
            raise

    def find(self, name: str, collection_id: bytes | None = None, tenant: str = LOCAL_TENANT) -> CollectionRecord:
        self.look()
        return super().find(name, collection_id, tenant)

    def states(self) -> list[State]:
        self.look()
        return super().states()

    def collections(self) -> list[CollectionRecord]:
        self.look()
        return super().collections()

    # ---- reading what others changed -------------------------------------------------------------------
    def _load(self) -> None:
        self._require_same_sealing()
        super()._load()
        self._mark = self._database.mark
        self._dropped = self._database.mark[0]

    def _seal(self, kek: KeyProvider) -> None:
        if self._states:
            raise InvalidInput("kek: got one for a catalogue that is not sealed and has collections; import them anew")
        super()._seal(kek)

    def _require_same_sealing(self) -> None:
        if self._database.sealed != self._file.sealed:
            raise Unavailable("catalogue: it was sealed meanwhile; start this server anew, with --kek")

    def _catch_up(self) -> None:
        """Within an exclusive or a view."""
        if self._mark is None or self._mark == self._database.mark:
            return
        self._require_same_sealing()
        changed = self._database.changed_since(self._mark)
        self._tally.add("catalogue_refreshes")
        if changed is None:
            self._tally.add("catalogue_reloads")
            states, segments = self._file.states(), self._file.segments()
        else:
            states, segments = self._file.states_since(self._mark[0]), self._file.segments_since(self._mark[0])
        self._replace(changed, list(states), list(segments))
        self._mark = self._database.mark

    def _replace(
        self,
        changed: Iterable[tuple[bytes, bytes]] | None,
        states: Sequence[State],
        segments: Sequence[tuple[SegmentRecord, float]],
    ) -> None:
        """changed: what may be other than in memory; None: everything. The rest: what there is of that now."""
        new_states = {state.record.collection_id: state for state in states}
        new_segments = {segment.file_id[:2]: (segment, touched_s) for segment, touched_s in segments}
        with self._lock:
            if changed is None:
                known = [(c, s) for c, of in self._segments.items() for s in of]
                changed = {*known, *new_segments, *((c, b"") for c in {*self._states, *new_states})}
            ordered = sorted(changed)  # a collection before its segments
            for collection_id in (c for c, segment_id in ordered if not segment_id):
                self._replace_state_of(collection_id, new_states.get(collection_id))
            for key in (key for key in ordered if key[1] and key[0] in self._states):
                self._replace_segment(key, new_segments.get(key))
            for collection_id in {c for c, _ in ordered} & self._states.keys():
                if not self._segments[collection_id].keys() >= set(self._states[collection_id].live):
                    raise TamperedDataError("catalogue: a live segment has no row")
        # Newer than the data keys of whatever was dropped: a generation takes a transaction.
        self._dropped = self._database.mark[0]

    def _replace_state_of(self, collection_id: bytes, state: State | None) -> None:
        if (before := self._states.pop(collection_id, None)) is not None:
            self._places.pop(before.record.place, None)
        if state is None:
            self._gone += [segment for segment, _ in self._segments.pop(collection_id, {}).values()]
        else:
            self._states[collection_id] = state
            self._places[state.record.place] = collection_id
            self._segments.setdefault(collection_id, {})

    def _replace_segment(self, key: tuple[bytes, bytes], row: tuple[SegmentRecord, float] | None) -> None:
        known = self._segments[key[0]]
        before = known.pop(key[1], None)
        if row is not None:
            known[key[1]] = row
        if before is not None and (row is None or before[0] != row[0]):
            self._gone.append(before[0])

    def _tell(self) -> None:
        with self._lock:
            gone, self._gone = self._gone, []
        if gone:
            self.retired(gone)

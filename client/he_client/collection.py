"""Collection: insert, search, delete and count, on rows that only key holders can read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from he_client.cache import PartCache
from he_client.engines import make_engine
from he_client.manifest import Manifest, open_manifest, seal_manifest
from he_client.progress import progress_bar
from he_client.results import Payload, RowId, SearchReport
from he_client.rows import check_ids, encode_payloads
from he_client.searching import Searcher
from he_client.segments import Segment, SegmentStore, split
from he_client.transport import Transport, with_retries
from he_engine.errors import (
    Conflict,
    DuplicateIdError,
    InvalidInput,
    NotFound,
    TamperedDataError,
    Unavailable,
)
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

SEGMENT_BYTES = 64 << 20  #: index bytes of one segment; two are in memory while inserting
MAX_REBASES = 16

PayloadMode = Literal["cache", "direct"]


class Collection:
    """An open collection. Made by `Client.create_collection` and `Client.open_collection`. Thread-safe."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        key: RootKey,
        manifest: Manifest,
        cache: PartCache,
        *,
        payloads: PayloadMode,
        timeout_s: float,
        threads: int | None,
    ) -> None:
        if payloads not in ("cache", "direct"):
            raise InvalidInput(f"payloads: got {payloads!r}, expected 'cache' or 'direct'")
        self.name = name
        self._transport = transport
        self._key = key
        self._manifest = manifest
        self._space = manifest.space
        self._parameters = manifest.parameters
        self._timeout_s = timeout_s
        self._context = wire.context(name, self._parameters.digest)
        message = manifest.message
        self._engine = make_engine(self._parameters, key, message.collection_id, message.engine_state, threads=threads)
        self._store = SegmentStore(transport, self._context, message.collection_id, key, self._engine, cache, timeout_s)
        self._searcher = Searcher(
            transport, self._context, self._store, self._engine, self._space, payloads == "direct", timeout_s
        )
        self._open: dict[bytes, Segment] = {}
        self._positions: dict[RowId, tuple[bytes, int]] = {}
        self._state = threading.RLock()  # guards _manifest, _open, _positions
        self._writing = threading.Lock()  # one insert or delete at a time; searches go on
        self.last_search: SearchReport | None = None  #: what the last `search` cost
        self._adopt(manifest)

    def __repr__(self) -> str:
        p = self._parameters
        kind = wire.engine_kind(p).value
        return f"<Collection {self.name!r} dim={p.dim} metric={self._space.metric.value} engine={kind}>"

    # ---- writing ---------------------------------------------------------------------------------------
    def insert(
        self,
        ids: Iterable[RowId],
        vectors: ArrayLike,
        payloads: Sequence[Payload | None] | None = None,
        *,
        progress: bool | None = None,
    ) -> int:
        """Encrypt rows here, store them there; all of them or none. Returns how many.

        ids: int or str, unique in the collection. vectors: (n, d) float32 or float64. payloads: str, bytes or
        None for each row. progress: a bar on stderr; None: when that is a terminal. Durable when it returns.
        Raises DimensionError, NormError, DuplicateIdError, InvalidInput (nothing is changed then), Conflict
        after too many concurrent commits, Unavailable.
        """
        rows, norms = self._space.rows(vectors)
        checked = check_ids(ids, len(rows))
        encoded = encode_payloads(payloads, len(rows))
        if not len(rows):
            raise InvalidInput("vectors: got no rows, expected at least one")
        with self._writing:
            self._refresh()
            self._require_new(checked)
            built = self._upload(checked, rows, norms, encoded, progress)

            def add(current: list[pb.SegmentEntry]) -> list[pb.SegmentEntry]:
                self._require_new(checked)
                return [*current, *(s.entry for s in built)]

            self._commit(add, {s.id: s for s in built})
        return len(rows)

    def _upload(
        self,
        ids: list[RowId],
        rows: Any,
        norms: Any,
        payloads: list[bytes | None] | None,
        progress: bool | None,
    ) -> list[Segment]:
        """Encrypt and send; the next segment is encrypted while one is sent."""
        built: list[Segment] = []
        sending: Future[None] | None = None
        with (
            ThreadPoolExecutor(1) as sender,
            progress_bar(progress, len(rows), "encrypt and upload", "rows") as advance,
        ):
            for part in split(len(rows), self._engine, SEGMENT_BYTES):
                segment, contents = self._store.build(
                    ids[part],
                    rows[part],
                    None if norms is None else norms[part],
                    None if payloads is None else payloads[part],
                    advance,
                )
                if sending is not None:
                    sending.result()
                sending = sender.submit(self._store.upload, segment, contents)
                built.append(segment)
            if sending is not None:
                sending.result()
        return built

    def delete(self, ids: Iterable[RowId]) -> int:
        """Take rows out, all or none. Returns how many. Raises NotFound (nothing is changed), Conflict.

        The server does not learn which rows. Their ciphertexts stay until compaction, and readable to key
        holders: only a new key erases.
        """
        wanted = check_ids(ids)
        if not wanted:
            return 0

        def mark(current: list[pb.SegmentEntry]) -> list[pb.SegmentEntry]:
            missing = [i for i in wanted if i not in self._positions]
            if missing:
                raise NotFound(f"ids: {len(missing)} of {len(wanted)} are not in the collection")
            gone: dict[bytes, list[int]] = {}
            for row_id in wanted:
                segment, row = self._positions[row_id]
                gone.setdefault(segment, []).append(row)
            kept = []
            for entry in current:
                changed = pb.SegmentEntry()
                changed.CopyFrom(entry)
                deleted = sorted({*entry.deleted_rows, *gone.get(entry.segment_id, ())})
                if len(deleted) < entry.rows:
                    del changed.deleted_rows[:]
                    changed.deleted_rows.extend(deleted)
                    kept.append(changed)
            return kept

        with self._writing:
            self._refresh()
            self._commit(mark, {})
        return len(wanted)

    def _require_new(self, ids: list[RowId]) -> None:
        known = sum(i in self._positions for i in ids)
        if known:
            raise DuplicateIdError(f"ids: {known} of {len(ids)} are in the collection already")

    def _commit(
        self, change: Callable[[list[pb.SegmentEntry]], list[pb.SegmentEntry]], built: dict[bytes, Segment]
    ) -> None:
        """Apply `change` to the live segments and commit; another writer's commit in between is rebased onto.

        `built`: segments that this client made and need not fetch.
        """
        for _ in range(MAX_REBASES):
            base = self._manifest
            following = base.successor(change(list(base.message.segments)))
            sealed, manifest = seal_manifest(self._key, self.name, following)
            if len(sealed) > wire.MAX_MANIFEST_BYTES:
                raise InvalidInput("the collection has too many segments or deleted rows for one manifest")
            request = pb.CommitManifestRequest(
                context=self._context,
                collection_id=base.collection_id,
                expected_version=base.version,
                sealed_manifest=sealed,
                live_segments=[s.segment_id for s in following.segments],
            )
            try:
                self._transport.call("CommitManifest", request, timeout_s=self._timeout_s)
                self._adopt(manifest, built)
                return
            except (Conflict, Unavailable):
                # Also after a lost reply: if the commit was made, our own version is the current one.
                self._refresh(built)
                if self._manifest.sha256 == manifest.sha256:
                    return
        raise Conflict(f"collection {self.name!r}: {MAX_REBASES} commits by others came first; try again")

    # ---- state -----------------------------------------------------------------------------------------
    def _refresh(self, built: dict[bytes, Segment] | None = None) -> None:
        """Read the current manifest; refuse one that does not extend what was seen."""
        request = pb.ReadManifestRequest(context=self._context)
        response = with_retries(
            lambda: self._transport.call("ReadManifest", request, timeout_s=self._timeout_s),
            timeout_s=self._timeout_s,
        )
        if response.collection_id != self._manifest.collection_id:
            raise NotFound(f"collection {self.name!r}: was dropped, and another has its name now")
        self._adopt(open_manifest(self._key, self.name, response), built)

    def _adopt(self, manifest: Manifest, built: dict[bytes, Segment] | None = None) -> None:
        """Make `manifest` current: open its new segments, forget the ones that are gone."""
        with self._state:
            self._manifest.require_successor(manifest)
            entries = {e.segment_id: e for e in manifest.message.segments}
            known = {**(built or {}), **self._open}
            missing = [e for e in entries.values() if e.segment_id not in known]
            total = sum(self._store.missing_bytes(e) for e in missing)
            with progress_bar(None, total, "fetch hints", "B") as advance:
                for entry in missing:
                    size = self._store.missing_bytes(entry)
                    known[entry.segment_id] = self._store.open(entry)
                    advance(size)
            for segment_id in [*self._open, *entries]:
                self._place(segment_id, known[segment_id], entries.get(segment_id))
            if len(self._positions) != manifest.count:
                raise TamperedDataError("manifest: an id is live in two rows")
            self._open = {segment_id: known[segment_id] for segment_id in entries}
            self._manifest = manifest

    def _place(self, segment_id: bytes, segment: Segment, entry: pb.SegmentEntry | None) -> None:
        """Bring the positions of one segment's ids up to date: none live where `entry` is None."""
        previous = segment.placed
        deleted = set(range(len(segment.table.ids)) if entry is None else entry.deleted_rows)
        before = set(range(len(segment.table.ids))) if previous is None else previous
        for row in deleted - before:
            self._positions.pop(segment.table.ids[row], None)
        for row in before - deleted:
            self._positions[segment.table.ids[row]] = (segment_id, row)
        segment.placed = None if entry is None else deleted

    def count(self) -> int:
        """Rows in the collection now."""
        self._refresh()
        return self._manifest.count

    def __len__(self) -> int:
        return self.count()

    @property
    def version(self) -> int:
        """Of the last manifest that this client has seen."""
        return self._manifest.version

    # ---- searching -------------------------------------------------------------------------------------
    def search(self, query: ArrayLike, k: int = 10) -> Any:
        """The k nearest rows, best first: (d,) → [Hit], (B, d) → [[Hit]].

        Fewer where the collection has fewer. Raises DimensionError, NormError, InvalidInput (k < 1),
        TamperedAnswerError before anything is decrypted, RollbackError, Unavailable.
        """
        vectors, norms, batch = self._space.queries(query)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InvalidInput(f"k: got {k!r}, expected an integer of at least 1")
        for _ in range(MAX_REBASES):
            with self._state:
                manifest, segments = self._manifest, list(self._open.values())
            try:
                hits, self.last_search = self._searcher.search(manifest, segments, vectors, norms, int(k))
                return hits if batch else hits[0]
            except Conflict:  # the manifest is no longer current
                self._refresh()
        raise Conflict(f"collection {self.name!r}: changes faster than it can be searched; try again")

    def close(self) -> None:
        """Forget secrets that are cached in native buffers."""
        self._engine.close()

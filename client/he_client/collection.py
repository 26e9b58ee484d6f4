"""Collection: insert, search, delete and count, on rows that only key holders can read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_client.cache import PartCache
from he_client.engines import make_engine
from he_client.manifest import Manifest
from he_client.progress import progress_bar
from he_client.results import Payload, RowId, SearchReport
from he_client.rows import check_ids, encode_payloads
from he_client.searching import Searcher
from he_client.segments import Segment, SegmentStore, split
from he_client.state import MAX_REBASES, Entries, State
from he_client.transport import Remote
from he_engine.errors import Conflict, DuplicateIdError, InvalidInput, NotFound
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

SEGMENT_BYTES = 64 << 20  #: index bytes of one segment; two are in memory while inserting

PayloadMode = Literal["cache", "direct"]


def check_payload_mode(payloads: object) -> None:
    """Raises InvalidInput."""
    if payloads not in ("cache", "direct"):
        raise InvalidInput(f"payloads: got {payloads!r}, expected 'cache' or 'direct'")


class Collection:
    """An open collection. Made by `Client.create_collection` and `Client.open_collection`. Thread-safe."""

    def __init__(
        self,
        name: str,
        remote: Remote,
        key: RootKey,
        manifest: Manifest,
        cache: PartCache,
        *,
        payloads: PayloadMode,
        threads: int | None,
    ) -> None:
        self.name = name
        self.last_search: SearchReport | None = None  #: what the last `search` cost
        self._space = manifest.space
        self._parameters = manifest.parameters
        message = manifest.message
        remote = remote.of(wire.context(name, self._parameters.digest))
        direct = payloads == "direct"
        self._engine = make_engine(self._parameters, key, message.collection_id, message.engine_state, threads=threads)
        self._store = SegmentStore(remote, message.collection_id, key, self._engine, self._space, cache, direct)
        self._workers = ThreadPoolExecutor(threads or os.cpu_count() or 1, "recover")  # they start when first needed
        self._searcher = Searcher(remote, self._store, self._engine, self._space, self._workers)
        self._state = State(name, remote, key, self._store, manifest)
        self._writing = threading.Lock()  # one insert or delete at a time; searches go on
        self._closed = False

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
        self._require_open()
        checked_vectors = self._space.check_rows(vectors)
        checked = check_ids(ids, len(checked_vectors))
        encoded = encode_payloads(payloads, len(checked))
        if not checked:
            raise InvalidInput("vectors: got no rows, expected at least one")
        with self._writing:
            self._state.refresh()
            self._require_new(checked)
            built = self._upload(checked, checked_vectors, encoded, progress)

            def add(current: Entries) -> Entries:
                self._require_new(checked)
                return [*current, *(s.entry for s in built)]

            self._state.commit(add, {s.id: s for s in built})
        return len(checked)

    def _upload(
        self, ids: list[RowId], vectors: NDArray[Any], payloads: list[bytes | None] | None, progress: bool | None
    ) -> list[Segment]:
        """Encrypt and send; the next segment is encrypted while one is sent."""
        built: list[Segment] = []
        sending: Future[None] | None = None
        with (
            ThreadPoolExecutor(1) as sender,
            progress_bar(progress, len(ids), "encrypt and upload", "rows") as advance,
        ):
            for part in split(len(ids), self._engine, SEGMENT_BYTES):
                segment, contents = self._store.build(
                    ids[part], self._space.rows(vectors[part]), None if payloads is None else payloads[part], advance
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

        The server does not learn which rows, only how many at a time. Their ciphertexts stay until compaction, and
        readable to key holders: only a new key erases.
        """
        self._require_open()
        wanted = check_ids(ids)
        if not wanted:
            return 0

        def mark(current: Entries) -> Entries:
            places = [self._state.position(i) for i in wanted]
            missing = places.count(None)
            if missing:
                raise NotFound(f"ids: {missing} of {len(wanted)} are not in the collection")
            gone: dict[bytes, list[int]] = {}
            for segment, row in filter(None, places):
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
            self._state.refresh()
            self._state.commit(mark, {})
        return len(wanted)

    def _require_new(self, ids: list[RowId]) -> None:
        known = sum(self._state.position(i) is not None for i in ids)
        if known:
            raise DuplicateIdError(f"ids: {known} of {len(ids)} are in the collection already")

    # ---- reading ---------------------------------------------------------------------------------------
    def count(self) -> int:
        """Rows in the collection now. Raises RollbackError, NotFound, Unavailable."""
        self._require_open()
        self._state.refresh()
        return self._state.manifest.count

    @property
    def version(self) -> int:
        """Of the last manifest that this client has seen."""
        return self._state.manifest.version

    def search(self, query: ArrayLike, k: int = 10) -> Any:
        """The k nearest rows, best first: (d,) → [Hit], (B, d) → [[Hit]].

        Fewer where the collection has fewer. Raises DimensionError, NormError, InvalidInput (k < 1),
        TamperedAnswerError (what does not verify is not decrypted, and nothing is returned), RollbackError,
        Unavailable.
        """
        self._require_open()
        vectors, norms, batch = self._space.queries(query)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InvalidInput(f"k: got {k!r}, expected an integer of at least 1")
        if self._state.manifest.count == 0:
            self._state.refresh()  # there is nothing to ask the server, which would say that there is more now
        for _ in range(MAX_REBASES):
            manifest, segments = self._state.current
            try:
                hits, self.last_search = self._searcher.search(manifest, segments, vectors, norms, int(k))
                return hits if batch else hits[0]
            except (Conflict, NotFound):  # the manifest is no longer current, or a segment of it has gone
                self._state.refresh()
        raise Conflict(f"collection {self.name!r}: changes faster than it can be searched; try again")

    # ---- closing ---------------------------------------------------------------------------------------
    def _require_open(self) -> None:
        if self._closed:
            raise InvalidInput(f"collection {self.name!r}: it is closed; open it again")

    def close(self) -> None:
        """Forget secrets that are cached in native buffers; the collection can no longer be used."""
        self._closed = True
        self._workers.shutdown()
        self._engine.close()

"""Collection: insert, upsert, delete, compact, search and count, on rows that only key holders can read."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_client.cache import PartCache
from he_client.engines import make_engine
from he_client.manifest import Entries, Manifest, without_rows
from he_client.pins import Pins
from he_client.progress import progress_bar
from he_client.rejections import Rejections
from he_client.released import Released, ScoreReleaseWarning, budget
from he_client.results import (
    CompactReport,
    FingerprintReport,
    Hit,
    Payload,
    RepairReport,
    ResealReport,
    RowId,
    SearchReport,
)
from he_client.rows import check_ids, encode_payloads
from he_client.searching import Searcher
from he_client.segments import Segment, SegmentStore, split
from he_client.signing import Writer
from he_client.state import MAX_REBASES, State
from he_client.transport import Remote
from he_client.upkeep.compaction import Compactor
from he_client.upkeep.fingerprints import Refingerprinter
from he_client.upkeep.repair import Repairer
from he_client.upkeep.reseal import Resealer
from he_client.verdicts import raised_last
from he_engine.errors import Conflict, DuplicateIdError, InvalidInput, NotFound
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

SEGMENT_BYTES = 64 << 20  #: index bytes of one segment; two are in memory while inserting or compacting

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
        pins: Pins,
        rejections: Rejections,
        released: Released,
        writer: Writer | None,
    ) -> None:
        self.name = name
        self.last_search: SearchReport | None = None  #: what the last `search` cost
        self._space = manifest.space
        self._parameters = manifest.parameters
        message = manifest.message
        remote = remote.of(wire.context(name, self._parameters.digest))
        direct = payloads == "direct"
        self._remote, self._key, self._cache, self._threads = remote, key, cache, threads
        self._engine = make_engine(self._parameters, key, message.collection_id, message.engine_state, threads=threads)
        self._store = SegmentStore(remote, message.collection_id, key, self._engine, self._space, cache, direct)
        self._workers = ThreadPoolExecutor(threads or os.cpu_count() or 1, "recover")  # they start when first needed
        self._rejections, self._released = rejections, released
        self._budget = budget(self._parameters)  # of released answers for a block; None: not counted
        self._warned = False
        counts = None if self._budget is None else released
        self._searcher = Searcher(remote, self._store, self._engine, self._space, self._workers, rejections, counts)
        self._state = State(name, remote, key, self._store, manifest, pins, writer)
        self._writer = writer
        self._writing = threading.Lock()  # one insert or delete at a time; searches go on
        self._compacting = threading.Lock()
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
        return self._write(ids, vectors, payloads, progress, replace=False)

    def upsert(
        self,
        ids: Iterable[RowId],
        vectors: ArrayLike,
        payloads: Sequence[Payload | None] | None = None,
        *,
        progress: bool | None = None,
    ) -> int:
        """`insert`, but rows whose id is in the collection are replaced, vector and payload, in the same commit.

        No search sees an id without a row, or with two. The replaced ciphertexts stay until compaction, as those of
        deleted rows do. Raises as `insert`; DuplicateIdError only where an id occurs twice in this call.
        """
        return self._write(ids, vectors, payloads, progress, replace=True)

    def _write(
        self,
        ids: Iterable[RowId],
        vectors: ArrayLike,
        payloads: Sequence[Payload | None] | None,
        progress: bool | None,
        *,
        replace: bool,
    ) -> int:
        self._require_open()
        checked_vectors = self._space.check_rows(vectors)
        checked = check_ids(ids, len(checked_vectors))
        encoded = encode_payloads(payloads, len(checked))
        if not checked:
            raise InvalidInput("vectors: got no rows, expected at least one")
        with self._writing:
            self._state.refresh()
            if not replace:
                self._require_new(checked)
            built = self._upload(checked, checked_vectors, encoded, progress)

            def add(current: Entries) -> Entries:
                if replace:
                    current = without_rows(current, self._state.places(checked))
                else:
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
            places = self._state.places(wanted)
            missing = [at for at, row_id in enumerate(wanted) if self._state.position(row_id) is None]
            if missing:
                raise NotFound(f"{_some(missing, wanted, 'not in the collection')}; nothing was deleted")
            return without_rows(current, places)

        with self._writing:
            self._state.refresh()
            self._state.commit(mark, {})
        return len(wanted)

    def compact(self, *, progress: bool | None = None) -> CompactReport:
        """Make few full segments of small and of mostly deleted ones, here: rows are downloaded, decrypted, and
        encrypted anew; ids, payloads and encoded vectors stay as they are. So are segments of which more answers were
        released than the budget (he_client.released).

        Each group of segments is one commit, so a call that ended early, in whatever way, goes on where it stopped
        when it is repeated. Everybody may read and write meanwhile. he_client.upkeep.compaction says which segments are
        chosen, and what memory it takes. progress: a bar on stderr; None: when that is a terminal.
        Raises TamperedDataError, Conflict, Unavailable.
        """
        self._require_open()
        with self._compacting:
            report = Compactor(self._state, self._store, self._engine, SEGMENT_BYTES, self._spent).run(progress)
        self._warned = False
        return report

    def _spent(self, entry: pb.SegmentEntry) -> bool:
        """Whether a segment must be encrypted anew, although it is full and lives."""
        return self._budget is not None and self._released.most(entry) > self._budget

    def reseal_fingerprints(self, *, everything: bool = False, progress: bool | None = None) -> FingerprintReport:
        """New fingerprints, with fresh weights, for the segments whose fingerprint has rejected so many answers that it
        verifies no more (he_client.rejections); `everything`: for all of them, if one may have leaked, say.

        Nothing is encrypted anew: segments are downloaded, compared with their digests, and stored again with another
        fingerprint, one commit each. A call that ended early goes on where it stopped when it is repeated, but with
        `everything`, which then begins anew. Everybody may read and write meanwhile; he_client.upkeep.fingerprints
        says how. progress: a bar on stderr; None: when that is a terminal.
        Raises InvalidInput (the engine `tenseal` verifies nothing), TamperedDataError (what was downloaded is not what
        was stored; that segment stays as it is), Conflict, Unavailable.
        """
        self._require_open()
        with self._compacting:
            return Refingerprinter(self._state, self._store, self._rejections.worn).run(everything, progress)

    def reseal(
        self, new_key: RootKey, *, journal: str | os.PathLike[str], progress: bool | None = None
    ) -> ResealReport:
        """Encrypt every live row again under `new_key`, here, and switch to it in one commit. This object is closed
        then: open the collection with the new key. To whoever comes with the old one, WrongKeyError.

        journal: a file, made if it is not there, which lets a call that ended early go on; removed at the end. Others
        may write meanwhile, with the old key, and lose nothing. Ids, payloads and encoded vectors stay as they are.

        What it erases: nothing that the server holds as current opens under the old key any more, rows deleted before
        are not in it at all, and the old ciphertexts are deleted from the server's disk. What it does not: whoever
        has the old key and a copy of the old ciphertexts reads them for ever. Such copies are in backups and exported
        archives, in snapshots, in blocks of disks not yet written over, in caches of clients, and wherever a server
        that is not honest keeps them. If a key has leaked, reseal, and destroy those as well.
        Raises InvalidInput (the same key, another's journal), TamperedDataError, Conflict, WrongKeyError, Unavailable.
        """
        self._require_open()
        resealer = Resealer(self.name, self._remote, self._state, self._store, self._key, new_key, self._writer)
        report = resealer.run(Path(journal), progress, self._threads)
        self.close()
        return report

    def repair(self, *, confirm: bool = False, progress: bool | None = None) -> RepairReport:
        """See Client.repair_collection, which also repairs a collection that cannot be opened."""
        self._require_open()
        repairer = Repairer(self._remote, self._key, self._cache, self._threads, self._state.manifest, self._writer)
        report = repairer.run(confirm=confirm, progress=progress)
        self._state.refresh()
        return report

    def _require_new(self, ids: list[RowId]) -> None:
        known = [at for at, row_id in enumerate(ids) if self._state.position(row_id) is not None]
        if known:
            raise DuplicateIdError(
                f"{_some(known, ids, 'in the collection already')}; nothing was inserted (upsert replaces rows)"
            )

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
        Unavailable. Under `compact` and `precise` it warns (ScoreReleaseWarning) once more answers of a block were
        released than the dimension: docs/score-release.md.
        """
        self._require_open()
        vectors, norms, batch = self._space.queries(query)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InvalidInput(f"k: got {k!r}, expected an integer of at least 1")
        if self._state.manifest.count == 0:
            self._state.refresh()  # there is nothing to ask the server, which would say that there is more now
        with raised_last() as wrong:
            hits, report = self._current_hits(vectors, norms, int(k), wrong)
        self.last_search = report
        if self._budget is not None and report.released_answers > self._budget and not self._warned:
            warnings.warn(
                f"collection {self.name!r}: more than {self._budget} answers of a block were released since it was "
                "encrypted, and their scores are key material. If anybody without the key may have seen them, encrypt "
                "the rows anew: Collection.compact, `hesearch compact` (docs/score-release.md)",
                ScoreReleaseWarning,
                stacklevel=2,
            )
            self._warned = True
        return hits if batch else hits[0]

    def _current_hits(
        self, vectors: NDArray[np.float64], norms: NDArray[np.float64], k: int, wrong: list[BaseException]
    ) -> tuple[list[list[Hit]], SearchReport]:
        for _ in range(MAX_REBASES):
            try:
                return self._searcher.search(*self._state.current, vectors, norms, k, wrong)
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


def _some(positions: list[int], ids: list[RowId], what: str) -> str:
    """Which ids of a call: by position, since an id may name somebody, and errors end up in logs."""
    are, at = ("is", "at") if len(positions) == 1 else ("are", "the first at")
    return f"ids: {len(positions)} of {len(ids)} {are} {what}, {at} position {positions[0]} (counted from 0)"

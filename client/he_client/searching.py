"""One search, from vectors to hits: encrypt, send, and verify, decrypt and rank while answers arrive."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client.arrival import HEAD_BYTES, Collector, Group, grouped
from he_client.manifest import Manifest
from he_client.metrics import Space
from he_client.rejections import Rejections
from he_client.released import Block, Released, index_digest
from he_client.results import Hit, SearchReport
from he_client.segments import Segment, SegmentStore
from he_client.transport import Remote
from he_engine.engine import MAX_QUERIES, Buffer, ClientEngine
from he_engine.errors import InvalidInput, TamperedAnswerError
from he_proto import wire
from he_proto.chunks import answer_requests
from he_proto.v1 import hesearch_pb2 as pb

F64 = NDArray[np.float64]
CALL_BYTES = 64 << 20  #: of query ciphertexts, and of answers, in one call


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Asked:
    """One encrypted query, and what its scores need."""

    query: Any
    norm: float
    square: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Found:
    """The best rows of one group for one query, best first."""

    rows: NDArray[np.intp]  #: counted over all live segments
    near: F64  #: larger is closer
    work_s: float  #: processor time


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Reply:
    """All answers of one call, recovered."""

    found: list[list[_Found]]  #: for each query, of each group; empty where something was wrong
    received: float  #: when the last piece had come
    head: bytes  #: of the first piece


class Searcher:
    """Searches one collection; holds no state of a search. `workers` verify, decrypt and rank."""

    def __init__(
        self,
        remote: Remote,
        store: SegmentStore,
        engine: ClientEngine,
        space: Space,
        workers: Executor,
        rejections: Rejections,
        released: Released | None,
    ) -> None:
        """`released`: counts answers; None where scores may be shown."""
        self._rejections = rejections
        self._released = released
        self._remote = remote
        self._store = store
        self._engine = engine
        self._space = space
        self._workers = workers

    def search(
        self,
        manifest: Manifest,
        segments: Sequence[Segment],
        vectors: F64,
        norms: F64,
        k: int,
        wrong: list[BaseException],
    ) -> tuple[list[list[Hit]], SearchReport]:
        """`segments`: the live ones in the manifest's order. `vectors` (B, d): unit queries, of true norms `norms`.

        What does not verify is added to `wrong` (he_client.verdicts), and then the hits are none. Answers are counted
        before any score is returned. Raises Conflict when the manifest is no longer current.
        """
        groups = grouped(manifest, segments)
        k = min(k, manifest.count)
        found: list[list[_Found]] = []  # for each query, of each group
        shown: Counter[Block] = Counter()
        times = np.zeros(4)  # encrypt, server, recover after the last byte, all work of recovery
        query_bytes = 0
        heads = (b"", b"")
        payloads = self._store.fetch_payloads(segments)
        if k == 0:
            found = [[] for _ in vectors]
            vectors = vectors[:0]
        answer_bytes = self._engine.answer_bytes_per_block * sum(s.entry.blocks for s in segments)
        together = max(1, min(MAX_QUERIES, CALL_BYTES // max(self._engine.query_bytes, answer_bytes)))
        for start in range(0, len(vectors), together):
            part = slice(start, min(start + together, len(vectors)))
            began = time.perf_counter()
            asked: list[_Asked] = []
            try:
                for vector, norm in zip(vectors[part], norms[part], strict=True):
                    asked.append(self._encrypt(vector, norm))
                sent = time.perf_counter()
                reply = self._ask(manifest, groups, asked, k, wrong)
            finally:
                for one in asked:
                    one.query.close()
            found += reply.found
            ready = time.perf_counter()
            work_s = sum(f.work_s for parts in reply.found for f in parts)
            times += (sent - began, reply.received - sent, ready - reply.received, work_s)
            query_bytes += sum(len(one.query.ciphertext) for one in asked)
            heads = (bytes(asked[0].query.ciphertext[:HEAD_BYTES]), reply.head)
        began = time.perf_counter()
        hits = [] if wrong else [self._hits(segments, parts, payloads, k, shown) if parts else [] for parts in found]
        released = 0 if self._released is None else self._released.add(shown)
        times[2] += time.perf_counter() - began
        return hits, SearchReport(
            queries=len(hits),
            rows=sum(s.entry.rows for s in segments),
            encrypt_s=float(times[0]),
            server_s=float(times[1]),
            recover_s=float(times[2]),
            recover_work_s=float(times[3]),
            query_bytes=query_bytes,
            answer_bytes=answer_bytes * len(vectors),
            query_head=heads[0],
            answer_head=heads[1],
            released_answers=released,
        )

    def _encrypt(self, vector: F64, norm: float) -> _Asked:
        square = self._engine.query_square(vector) if self._space.needs_squares else 1.0
        return _Asked(self._engine.query(vector), float(norm), square)

    def _ask(
        self,
        manifest: Manifest,
        groups: Sequence[Group],
        asked: Sequence[_Asked],
        k: int,
        wrong: list[BaseException],
    ) -> _Reply:
        """Send the queries; recover each group as soon as its answers are there.

        Whatever is found in the answers, they are read to their end, and asked for again where they break off: it is
        added to `wrong`. No worker is left with the queries when this ends, in whatever way. Raises TamperedAnswerError
        for pieces in wrong places.
        """
        context = self._remote.context
        header = pb.AnswerHeader(
            context=context, collection_id=manifest.collection_id, version=manifest.version, queries=len(asked)
        )

        def receive(responses: Iterator[pb.AnswerResponse]) -> _Reply:
            work: dict[tuple[int, int], Future[_Found]] = {}

            def recover(query: int, group: int, answers: list[Buffer]) -> None:
                try:
                    work[query, group] = self._workers.submit(self._recover, asked[query], groups[group], answers, k)
                except RuntimeError:
                    raise InvalidInput("the collection was closed during a search") from None

            collector = Collector(groups, len(asked), self._engine.answer_bytes_per_block, recover)
            try:
                for response in responses:
                    _require_context(response.context, context)
                    collector.add(response)
                received = time.perf_counter()
                collector.require_complete()
                wait(work.values())
            finally:
                errors = _ended(work.values())
                wrong.extend(errors)
            found = [] if errors else [[work[q, g].result() for g in range(len(groups))] for q in range(len(asked))]
            return _Reply(found, received, collector.head)

        ciphertexts = [one.query.ciphertext for one in asked]
        return self._remote.stream("Answer", lambda: answer_requests(header, ciphertexts), receive)

    def _recover(self, asked: _Asked, group: Group, answers: list[Buffer], k: int) -> _Found:
        """Verify, decrypt, and keep the k best live rows of one group."""
        began = time.thread_time()
        entries = [segment.entry for segment in group.segments]
        self._rejections.require(entries)
        try:
            inner = self._engine.recover(asked.query, [s.engine for s in group.segments], answers)
        except TamperedAnswerError:
            self._rejections.add(entries)
            raise
        near = np.concatenate(
            [
                self._space.scores(products, segment.table.squares, asked.norm, asked.square)
                for segment, products in zip(group.segments, inner, strict=True)
            ]
        )
        if self._space.smaller_is_closer:
            np.negative(near, out=near)
        near[group.deleted] = -np.inf
        rows = best(near, k)
        return _Found(group.first_row + rows, near[rows], time.thread_time() - began)

    def _hits(
        self,
        segments: Sequence[Segment],
        found: Sequence[_Found],
        payloads: Mapping[bytes, bytes],
        k: int,
        shown: Counter[Block],
    ) -> list[Hit]:
        """The k best live rows of all groups; in `shown`, one answer more for each of their blocks."""
        rows = np.concatenate([f.rows for f in found])
        near = np.concatenate([f.near for f in found])
        starts = np.cumsum([0, *(s.entry.rows for s in segments)])
        hits = []
        blocks: set[Block] = set()
        for place in best(near, k):
            number = int(np.searchsorted(starts, rows[place], "right")) - 1
            segment, row = segments[number], int(rows[place] - starts[number])
            blocks.add((index_digest(segment.entry), row // self._engine.rows_per_block))
            score = float(near[place])
            hits.append(
                Hit(
                    id=segment.table.ids[row],
                    score=-score if self._space.smaller_is_closer else score,
                    payload=self._store.payload(segment, row, payloads),
                )
            )
        shown.update(blocks)
        return hits


def _require_context(received: pb.Context, expected: pb.Context) -> None:
    """Raises FormatVersionError, TamperedAnswerError."""
    try:
        wire.check_context(received, collection=expected.collection, parameter_digest=expected.parameter_digest)
    except InvalidInput as error:
        raise TamperedAnswerError(f"answer: {error}") from None


def _ended(work: Collection[Future[_Found]]) -> list[BaseException]:
    """What went wrong in it. When it returns, nobody works on any of it."""
    for future in work:
        future.cancel()
    wait(work)
    errors = [future.exception() for future in work if not future.cancelled()]
    return [error for error in errors if error is not None]


def best(near: F64, k: int) -> NDArray[np.intp]:
    """Positions of the k largest, or of all where there are fewer; the largest first, equal ones in their order."""
    threshold_at = max(0, len(near) - k)
    candidates = np.flatnonzero(near >= np.partition(near, threshold_at)[threshold_at])
    return candidates[np.argsort(-near[candidates], kind="stable")][:k]

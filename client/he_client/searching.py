"""One search, from vectors to hits: encrypt, send, collect, verify and decrypt, rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client.manifest import Manifest
from he_client.metrics import Space
from he_client.results import Hit, SearchReport
from he_client.segments import Segment, SegmentStore
from he_client.transport import Transport, with_retries
from he_engine.engine import MAX_QUERIES, ClientEngine
from he_engine.errors import TamperedAnswerError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

F64 = NDArray[np.float64]
HEAD_BYTES = 16
CALL_BYTES = 64 << 20  #: of query ciphertexts, and of answers, in one call


class Searcher:
    """Searches one collection; holds no state of a search."""

    def __init__(
        self,
        transport: Transport,
        context: pb.Context,
        store: SegmentStore,
        engine: ClientEngine,
        space: Space,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._context = context
        self._store = store
        self._engine = engine
        self._space = space
        self._timeout_s = timeout_s

    def search(
        self, manifest: Manifest, segments: Sequence[Segment], vectors: F64, norms: F64, k: int
    ) -> tuple[list[list[Hit]], SearchReport]:
        """`segments`: the live ones in the manifest's order. `vectors` (B, d): unit queries, of true norms `norms`.

        Raises Conflict when the manifest is no longer current.
        """
        deleted = [list(entry.deleted_rows) for entry in manifest.message.segments]
        k = min(k, manifest.count)
        hits: list[list[Hit]] = []
        times = np.zeros(3)  # encrypt, server, recover
        sizes = np.zeros(2, np.int64)  # sent, received
        heads = (b"", b"")
        self._store.fetch_payloads(segments)
        if k == 0:
            hits = [[] for _ in vectors]
            vectors = vectors[:0]
        answer_bytes = self._engine.answer_bytes_per_block * sum(s.entry.blocks for s in segments)
        together = max(1, min(MAX_QUERIES, CALL_BYTES // max(self._engine.query_bytes, answer_bytes)))
        for start in range(0, len(vectors), together):
            group = slice(start, min(start + together, len(vectors)))
            began = time.perf_counter()
            queries = [self._engine.query(vector) for vector in vectors[group]]
            sent = time.perf_counter()
            try:
                answers = self._ask(manifest, segments, queries)
                received = time.perf_counter()
                for query, answer, vector, norm in zip(queries, answers, vectors[group], norms[group], strict=True):
                    inner = self._engine.recover(query, [s.engine for s in segments], answer)
                    square = self._engine.query_square(vector) if self._space.needs_squares else 1.0
                    hits.append(self._rank(segments, inner, deleted, float(norm), square, k))
                    sizes += (len(query.ciphertext), sum(len(a) for a in answer))
            finally:
                for query in queries:
                    query.close()
            times += (sent - began, received - sent, time.perf_counter() - received)
            heads = (bytes(queries[0].ciphertext[:HEAD_BYTES]), bytes(answers[0][0][:HEAD_BYTES]))
        return hits, SearchReport(
            queries=len(hits),
            rows=sum(s.entry.rows for s in segments),
            encrypt_s=float(times[0]),
            server_s=float(times[1]),
            recover_s=float(times[2]),
            query_bytes=int(sizes[0]),
            answer_bytes=int(sizes[1]),
            query_head=heads[0],
            answer_head=heads[1],
        )

    def _ask(self, manifest: Manifest, segments: Sequence[Segment], queries: Sequence[Any]) -> list[list[bytearray]]:
        """For each query, the answer of each segment, complete. Raises TamperedAnswerError."""
        header = pb.AnswerHeader(
            context=self._context,
            collection_id=manifest.collection_id,
            version=manifest.version,
            queries=len(queries),
        )

        def ask() -> list[list[bytearray]]:
            collector = _Collector(segments, len(queries), self._engine.answer_bytes_per_block)
            requests = wire.answer_requests(header, [q.ciphertext for q in queries])
            for response in self._transport.stream("Answer", requests, timeout_s=self._timeout_s):
                wire.check_context(
                    response.context,
                    collection=self._context.collection,
                    parameter_digest=self._context.parameter_digest,
                )
                collector.add(response)
            return collector.complete()

        return with_retries(ask, timeout_s=self._timeout_s)

    def _rank(
        self,
        segments: Sequence[Segment],
        inner: list[F64],
        deleted: list[list[int]],
        norm: float,
        square: float,
        k: int,
    ) -> list[Hit]:
        """The best k live rows; equal scores in the order of insertion."""
        closeness = []
        for segment, products, gone in zip(segments, inner, deleted, strict=True):
            scores = self._space.scores(products, segment.table.squares, norm, square)
            near = -scores if self._space.smaller_is_closer else scores.copy()
            near[gone] = -np.inf
            closeness.append(near)
        everything = np.concatenate(closeness)
        threshold = np.partition(everything, len(everything) - k)[len(everything) - k]
        candidates = np.flatnonzero(everything >= threshold)
        order = candidates[np.argsort(-everything[candidates], kind="stable")][:k]
        starts = np.cumsum([0, *(len(c) for c in closeness)])
        hits = []
        for position in order:
            number = int(np.searchsorted(starts, position, "right")) - 1
            row = int(position - starts[number])
            segment = segments[number]
            score = float(everything[position])
            hits.append(
                Hit(
                    id=segment.table.ids[row],
                    score=-score if self._space.smaller_is_closer else score,
                    payload=self._store.payload(segment, row),
                )
            )
        return hits


class _Collector:
    """Puts the pieces of one call in their places; every block of every live segment, exactly once."""

    def __init__(self, segments: Sequence[Segment], queries: int, bytes_per_block: int) -> None:
        self._numbers = {s.id: number for number, s in enumerate(segments)}
        self._seen = [[np.zeros(s.entry.blocks, bool) for s in segments] for _ in range(queries)]
        self._answers = [[bytearray(s.entry.blocks * bytes_per_block) for s in segments] for _ in range(queries)]
        self._bytes_per_block = bytes_per_block

    def add(self, piece: pb.AnswerResponse) -> None:
        number = self._numbers.get(piece.segment_id)
        if number is None or piece.query >= len(self._seen):
            raise TamperedAnswerError("answer: concerns a segment or a query that was not asked for")
        seen = self._seen[piece.query][number]
        first, end = piece.first_block, piece.first_block + piece.blocks
        if (
            not first < end <= len(seen)
            or seen[first:end].any()
            or len(piece.residues) != piece.blocks * self._bytes_per_block
        ):
            raise TamperedAnswerError("answer: a piece repeats blocks, exceeds its segment or has a wrong length")
        seen[first:end] = True
        where = slice(first * self._bytes_per_block, end * self._bytes_per_block)
        self._answers[piece.query][number][where] = piece.residues

    def complete(self) -> list[list[bytearray]]:
        missing = sum(int((~seen).sum()) for row in self._seen for seen in row)
        if missing:
            raise TamperedAnswerError(f"answer: {missing} blocks are missing")
        return self._answers

"""How fast this machine is: the rates that he_client.plan needs, measured with the real code on random data.

For each set of parameters it encrypts one segment of random vectors, opens and recovers it as a client does, and
answers queries from a file of random residues that exceeds the caches, as a server does. Sizes shrink to those of the
planned collection, so that a small one is timed as small. Some tenths of a second for each; keys are thrown away.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from he_client.cache import PartCache
from he_client.metrics import Metric, Space
from he_client.plan import Rates, Sizes
from he_client.searching import best
from he_client.segments import Contents, Segment, SegmentStore
from he_client.transport import Remote
from he_engine.engine import IndexFile, nothing
from he_engine.hint_client import HintClient, generate_state
from he_engine.hint_server import HintServer
from he_engine.keys import KEY_BYTES, RootKey
from he_proto import wire
from he_proto.chunks import chunks
from he_proto.v1 import hesearch_pb2 as pb

SCAN_BYTES = 128 << 20  #: of index that answers read: more than a core complex caches
UNIT_BYTES = (4 << 20, 32 << 20)  #: of index in one call of the kernel, at least and at most, as servers cut it
SEGMENT_ROWS = 1 << 15  #: of the segment that is encrypted, at most
ROUNDS = 3
K = 10
_TILE_BYTES = 1 << 20
_COLLECTION_ID = bytes(wire.COLLECTION_ID_BYTES)


def calibrate(planned: Sequence[Sizes], threads: int) -> list[Rates]:
    """Rates of this machine as a client, on all cores, and as a server with `threads` threads; in the given order."""
    with tempfile.TemporaryDirectory(prefix="hesearch-plan-") as name:
        folder = Path(name)
        _write_residues(folder / "residues", max(min(SCAN_BYTES, sizes.index_bytes) for sizes in planned))
        return [_measure(sizes, folder, threads) for sizes in planned]


def _write_residues(path: Path, size_bytes: int) -> None:
    """Words under 2^30, canonical for every prime; a MiB of them, repeated."""
    tile = np.random.default_rng().integers(0, 1 << 30, _TILE_BYTES // 4, np.uint32).tobytes()
    with path.open("wb") as file:
        for start in range(0, size_bytes, _TILE_BYTES):
            file.write(tile[: size_bytes - start])


class _Stored:
    """A transport that knows the parts of one segment."""

    attempts = 1

    def __init__(self) -> None:
        self.contents: Contents = {}

    def call(self, method: str, request: Any, *, timeout_s: float) -> NoReturn:
        raise NotImplementedError(method)

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:  # noqa: ARG002
        for chunk in chunks(self.contents[request.kind]):
            yield pb.ReadSegmentPartResponse(chunk=chunk)

    def close(self) -> None: ...


def _measure(sizes: Sizes, folder: Path, threads: int) -> Rates:
    p = sizes.parameters
    key, state, server = RootKey(secrets.token_bytes(KEY_BYTES)), generate_state(), HintServer(p)
    engine, forgetful = (HintClient(p, key, _COLLECTION_ID, state) for _ in range(2))
    space, stored = Space.make(Metric.COSINE, p.dim, None), _Stored()
    remote = Remote(stored, 0.0, wire.context("plan", p.digest))
    store, other = (
        SegmentStore(remote, _COLLECTION_ID, key, one, space, PartCache(None), True) for one in (engine, forgetful)
    )
    blocks = min(sizes.blocks, sizes.segment_blocks, SEGMENT_ROWS // p.rows_per_block)
    vectors = np.random.default_rng().standard_normal((blocks * p.rows_per_block, p.dim), np.float32)

    def build(count: int) -> tuple[Segment, Contents]:
        rows = vectors[: count * p.rows_per_block]
        return store.build(list(range(len(rows))), space.rows(rows), None, nothing)

    def opened(segment: Segment) -> None:
        ids = store.open(segment.entry).table.ids
        _ = {ids[row]: (segment.id, row) for row in set(range(len(ids)))}  # as he_client.state does

    small, contents = build(1)  # warms up, too
    small_index = _index(folder / "small", contents, 1)
    built_s = time.perf_counter()
    segment, stored.contents = build(blocks)
    built_s = time.perf_counter() - built_s
    index = _index(folder / "segment", stored.contents, blocks)
    scan_blocks = min(sizes.blocks, SCAN_BYTES // sizes.query_bytes)
    scanned = IndexFile(folder / "residues", 0, scan_blocks * sizes.query_bytes, scan_blocks)
    unit_bytes = max(UNIT_BYTES[0], min(UNIT_BYTES[1], scanned.length_bytes // (4 * threads)))
    unit = max(1, unit_bytes // sizes.query_bytes)
    vector = space.rows(vectors[:1])[0]
    query = engine.query(vector)
    asked = [query.ciphertext]
    answers = {
        one.id: server.answer(file, 0, file.blocks, asked)[0] for one, file in ((small, small_index), (segment, index))
    }

    twin = other.open(segment.entry)
    forgetful.release(twin.engine)  # from now on it keeps no block secrets of it
    twin_query = forgetful.query(vector)
    twin_answer = server.answer(index, 0, blocks, [twin_query.ciphertext])[0]

    with ThreadPoolExecutor(threads) as pool:

        def scan() -> None:
            starts = range(0, scan_blocks, unit)
            list(pool.map(lambda f: server.answer(scanned, f, min(unit, scan_blocks - f), asked), starts))

        def recover(one: Segment) -> None:
            (scores,) = engine.recover(query, [one.engine], [answers[one.id]])
            best(scores, K)

        def fresh() -> None:
            (scores,) = forgetful.recover(twin_query, [twin.engine], [twin_answer])
            best(scores, K)

        seconds = _medians(
            {
                "scan": scan,
                "small": lambda: recover(small),
                "segment": lambda: recover(segment),
                "fresh": fresh,
                "query": lambda: engine.query(vector).close(),
                "open": lambda: opened(segment),
            }
        )
    server.close()
    for secret in (query, twin_query, engine, forgetful):
        secret.close()
    rows = blocks * p.rows_per_block
    segment_s, small_s = seconds["segment"], seconds["small"]
    row_s = max(0.0, segment_s - small_s) / (rows - p.rows_per_block) if blocks > 1 else segment_s / rows
    return Rates(
        server_bytes_per_s=scanned.length_bytes / seconds["scan"],
        client_threads=os.cpu_count() or 1,
        query_s=seconds["query"],
        recover_group_s=max(0.0, segment_s - rows * row_s),
        recover_row_s=row_s,
        derive_row_s=max(0.0, seconds["fresh"] - segment_s) / rows,
        build_row_s=built_s / rows,
        open_row_s=seconds["open"] / rows,
    )


def _index(path: Path, contents: Contents, blocks: int) -> IndexFile:
    index = contents[pb.PART_KIND_INDEX]
    path.write_bytes(index)
    return IndexFile(path, 0, len(index), blocks)


def _medians(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each: the median of ROUNDS turns, after one that warms up.

    A scan comes before each recovery: as in a search, hints and secrets are then no longer in the caches.
    """
    order = [name for recovery in ("small", "segment", "fresh") for name in ("scan", recovery)] + ["query", "open"]
    times: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(ROUNDS + 1):
        for name in order:
            start = time.perf_counter()
            actions[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}

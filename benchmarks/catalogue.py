"""A catalogue in PostgreSQL: the room that it takes, and what a server waits for it.

    python -m benchmarks.catalogue --segments 5000 --rounds 200 --json out.json

PostgreSQL is started on this machine, on a Unix socket. One sealed collection gets that many segments, as rows alone:
no file is written. *Look*: the question at the beginning of each call whether others changed anything. *Refresh*: the
same after another server added a segment. *Add*: the row of one uploaded segment. *Commit*: a manifest that names them
all. *Open*: another server reads all rows and opens their cells. The room is that of tables, indexes and TOAST after
VACUUM FULL, so without dead rows, which PostgreSQL keeps until it vacuums.

JSON keys (stable): `machine`, `arguments`, `bytes`, `bytes_per_segment`, `wal_bytes_per_add`; medians `look_s`,
`refresh_s`, `add_s`, `commit_s`, `open_s`; `memory_bytes_per_segment` of a server.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import secrets
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.machine import describe, print_json
from he_engine.keys import RootKey
from he_server.storage.catalogue_rows import COPY_BYTES, CollectionRecord, SegmentRecord
from he_server.storage.catalogue_shared import SharedCatalogue
from he_server.storage.kek import SecretKek

_MANIFEST = bytes(4096)
_ROOM = """
    SELECT sum(pg_total_relation_size(oid)) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'hesearch'::regnamespace
"""


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _segment(record: CollectionRecord) -> SegmentRecord:
    return SegmentRecord(
        record.collection_id, secrets.token_bytes(32), 64, 70 << 20, 64 << 20, 1, secrets.token_bytes(COPY_BYTES)
    )


def _asked(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as db:
        answer = db.execute(statement.encode())
        row = answer.fetchone() if answer.description else None
        return row[0] if row else None


def _written(url: str) -> int:
    """Bytes of the write-ahead log since PostgreSQL was made."""
    return int(_asked(url, "SELECT pg_current_wal_insert_lsn() - '0/0'"))


def measure(a: argparse.Namespace) -> dict[str, Any]:
    from tests.postgres_fixture import PostgresServer

    kek = SecretKek(RootKey(secrets.token_bytes(32)))
    record = CollectionRecord("notes", secrets.token_bytes(16), b"parameters", bytes(32), 1)
    times: dict[str, list[float]] = {name: [] for name in ("look", "refresh", "add", "commit", "open")}
    with PostgresServer() as postgres, contextlib.ExitStack() as opened:
        url = postgres.new_database()

        def server() -> SharedCatalogue:
            return opened.enter_context(contextlib.closing(SharedCatalogue(url, kek)))

        one, other = server(), server()
        one.create(record, _MANIFEST, 10, time.time())
        segments = [_segment(record) for _ in range(a.segments)]
        before = _written(url)
        for segment in segments:
            times["add"].append(_timed(functools.partial(one.add, segment, time.time())))
        added_bytes = _written(url) - before
        live = [segment.segment_id for segment in segments]
        for version in range(1, a.rounds // 20 + 2):
            times["commit"].append(
                _timed(functools.partial(one.commit, record.collection_id, version, _MANIFEST, live))
            )
        other.look()
        for _ in range(a.rounds):
            times["look"].append(_timed(other.look))
            one.add(_segment(record), time.time())
            times["refresh"].append(_timed(other.look))
        times["open"] = [_timed(server) for _ in range(5)]
        tracemalloc.start()
        kept = server()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        count = len(kept.segments())
        _asked(url, "VACUUM FULL")
        room = int(_asked(url, _ROOM))
    return {
        "machine": describe(),
        "arguments": {"segments": a.segments, "rounds": a.rounds},
        "bytes": room,
        "bytes_per_segment": room / count,
        "wal_bytes_per_add": added_bytes / a.segments,
        **{f"{name}_s": statistics.median(seconds) for name, seconds in times.items()},
        "memory_bytes_per_segment": held_bytes / count,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue", description="A catalogue in PostgreSQL.")
    parser.add_argument("--segments", type=int, default=5000, help="of one collection (default 5000)")
    parser.add_argument("--rounds", type=int, default=200, help="looks and refreshes (default 200)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A server that starts on an empty data folder, with its segments on object storage: what it waits for.

    python -m benchmarks.cold_start --megabytes 2048 --json out.json
    python -m benchmarks.cold_start --segments 's3://BUCKET/PREFIX?endpoint=http://127.0.0.1:4568' --json out.json

Without URLs, PostgreSQL and an S3 server (moto: Python, one process, everything in its memory) are started on this
machine, and the figures are about those. Segments of 64 MiB of random residues are stored through one server; others
start beside it, each on a folder of its own. *Cold*: the folder is empty, so every segment is fetched, checked (SHA-256
of each part), synced to disk and brought into memory. *Again*: the copies are there. *Shard*: what an actor of a
cluster does, which writes no files: every segment is fetched, checked and put into its memory. What bounds a cold start
is measured beside it, with the same objects: reading them alone, as many requests at a time, and writing and syncing
files of that size alone.

JSON keys (stable): `machine`, `arguments`, `storage` (`moto`, or where it is: `this machine`, `elsewhere`),
`file_bytes`; medians `cold_s`, `again_s`, `shard_s`, `read_s`, `write_s`; `cold_gb_per_s`, `shard_gb_per_s`,
`read_gb_per_s`, `write_gb_per_s`; `limit`: the slower of the last two.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.at_rest import PARAMETERS, SEGMENT_BYTES, Folder
from benchmarks.machine import describe, print_json
from he_server.cluster.shard import Shard, ShardSettings
from he_server.config import ServerConfig
from he_server.service import Service
from he_server.storage.catalogue_rows import SegmentRecord
from he_server.storage.catalogue_shared import SharedCatalogue
from he_server.storage.files import NewFile
from he_server.storage.objects import Objects
from he_server.storage.places import Place

_AT_ONCE = 4  #: segments, as a server fetches them


class RemoteFolder(Folder):
    """A data folder whose catalogue and segments are elsewhere."""

    def __init__(self, root: Path, threads: int, where: dict[str, str]) -> None:
        super().__init__(root, threads, None)
        self._where: dict[str, Any] = dict(where)

    def service(self, kek: Path | None = None, previous: Path | None = None) -> Service:
        assert kek is None and previous is None
        return Service(ServerConfig(data=self.root, threads=self.threads, **self._where))


@contextlib.contextmanager
def places(a: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Those that are named, or some of this machine's."""
    from tests.postgres_fixture import PostgresServer
    from tests.s3_fixture import ENVIRONMENT, S3Server

    catalogue, segments = a.catalogue, a.segments
    with contextlib.ExitStack() as stack:
        if not catalogue:
            catalogue = stack.enter_context(PostgresServer()).new_database()
        if not segments:
            os.environ.update(ENVIRONMENT)
            segments = stack.enter_context(S3Server()).new_bucket()
        yield {"catalogue": catalogue, "segments": segments}


def _storage(segments: str) -> str:
    """Whose figures these are."""
    if not segments:
        return "moto"
    return "this machine" if "127.0.0.1" in segments else "elsewhere"


def _shard_s(segments: str, records: list[SegmentRecord], threads: int) -> float:
    """Seconds; called in a process of its own, as an actor is. Raises AssertionError where it has not all of them."""
    began = time.perf_counter()
    shard = Shard(ShardSettings(segments, threads, "", 1 << 40))
    shard.load([Place(record, "", b"") for record in records], {})
    elapsed_s = time.perf_counter() - began
    if (held := shard.held_bytes) < (expected := sum(record.index_bytes for record in records)):
        raise AssertionError(f"the shard holds {held:,} bytes, expected {expected:,}")
    return elapsed_s


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _read(objects: Objects, records: list[SegmentRecord]) -> int:
    """Every object, kept nowhere; their bytes."""

    def one(record: SegmentRecord) -> int:
        return sum(memoryview(chunk).nbytes for chunk in objects.read(record, objects.size_bytes(record)))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return sum(pool.map(one, records))


def _write(folder: Path, files: int, file_bytes: int) -> None:
    """As many files, synced."""
    folder.mkdir()
    chunk = memoryview(np.random.default_rng(2).bytes(8 << 20))

    def one(_: int) -> None:
        with NewFile(folder) as file:
            for start in range(0, file_bytes, len(chunk)):
                file.append(chunk[: file_bytes - start])
            file.sync()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(one, range(files)))
    shutil.rmtree(folder)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    blocks = SEGMENT_BYTES // (4 * PARAMETERS.block_words)
    count = max(1, (a.megabytes << 20) // SEGMENT_BYTES)
    words = np.random.default_rng(1).integers(0, PARAMETERS.ring.primes[0], (blocks, PARAMETERS.block_words), np.uint32)
    times: dict[str, list[float]] = {"cold": [], "again": [], "shard": [], "read": [], "write": []}
    with places(a) as where, tempfile.TemporaryDirectory(prefix="hesearch-bench-", dir=a.folder) as name:
        root = Path(name)
        RemoteFolder(root / "first", a.threads, where).fill(count, words)
        catalogue, objects = SharedCatalogue(where["catalogue"]), Objects(where["segments"])
        records = catalogue.segments()
        all_bytes = sum(objects.size_bytes(record) for record in records)
        for _ in range(a.rounds):
            folder = RemoteFolder(root / "cold", a.threads, where)
            times["cold"].append(folder.cold_start())
            times["again"].append(folder.cold_start())
            shutil.rmtree(folder.root)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                times["shard"].append(process.submit(_shard_s, where["segments"], records, a.threads).result())
            times["read"].append(_timed(lambda: _read(objects, records)))
            times["write"].append(_timed(lambda: _write(root / "write", count, all_bytes // count)))
        objects.close()
        catalogue.close()
    medians = {what: statistics.median(seconds) for what, seconds in times.items()}
    rates = {f"{what}_gb_per_s": all_bytes / medians[what] / 1e9 for what in ("cold", "shard", "read", "write")}
    return {
        "machine": describe(),
        "arguments": {k: getattr(a, k) for k in ("megabytes", "segments", "threads", "rounds") if getattr(a, k)},
        "storage": _storage(a.segments),
        "file_bytes": all_bytes,
        **{f"{what}_s": seconds for what, seconds in medians.items()},
        **rates,
        "limit": "reading objects" if rates["read_gb_per_s"] < rates["write_gb_per_s"] else "writing files",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description="Cold starts.")
    parser.add_argument("--megabytes", type=int, default=2048, help="MiB of indexes (default 2048)")
    parser.add_argument("--threads", type=int, default=2, help="of the server (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="cold starts (default 3)")
    parser.add_argument("--catalogue", default="", help="an empty PostgreSQL database (default: one of this machine)")
    parser.add_argument("--segments", default="", help="empty object storage (default: moto on this machine)")
    parser.add_argument("--folder", type=Path, help="where data folders are made (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What sealing at rest costs a server: storing segments, starting, answering, turning keys; and the choice of a cipher.

    python -m benchmarks.at_rest --megabytes 2048 --json out.json

One folder sealed and one not, the same segments of 64 MiB of random residues in each, in this process without gRPC. To
store is all of WriteSegment: hashing, writing, syncing, checking. To start is to open the folder and to bring every
index into memory, once with the files in the page cache and once without (the system keeps `kept_share` of them). To
answer is one query against all. `ciphers`: rates of opening 1 GiB with one key, on one thread, in memory.

JSON keys (stable): `machine`, `arguments`, `payload_bytes`, `segment_bytes`; `store_s`, `start_s`, `start_cold_s`,
`answer_s`, each with `unsealed` and `sealed`, medians; `ratio_store`, `ratio_start`, `ratio_start_cold`, `ratio_answer`
(sealed / unsealed); `rotate_kek_s`, `rotate_data_key_s`; `kept_share`; `ciphers`: name → GB/s, by size of chunk in KiB.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from benchmarks.machine import describe, print_json
from benchmarks.servers import drop_page_cache
from benchmarks.timing import alternate
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import answer_requests, segment_requests
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.service import Service
from he_server.storage.kek import new_kek_file
from he_server.storage.rekey import rotate

PARAMETERS = Parameters.choose("compact", 512)
SEGMENT_BYTES = 64 << 20
CIPHER_BYTES = 1 << 30
CHUNKS_KIB = (64, 256, 1024, 4096, 65536)
NAME = "at-rest"


class Folder:
    """A data folder, sealed or not, and what is done to it."""

    def __init__(self, root: Path, threads: int, kek: Path | None) -> None:
        self.root, self.threads, self.kek = root, threads, kek
        self._id = bytes(wire.COLLECTION_ID_BYTES)
        self._context = wire.context(NAME, PARAMETERS.digest)

    def service(self, kek: Path | None = None, previous: Path | None = None) -> Service:
        kek = kek or self.kek
        settings: dict[str, Any] = {"kek": f"file:{kek}", "index_memory_bytes": 1 << 40} if kek else {}
        if previous:
            settings["previous_kek"] = f"file:{previous}"
        return Service(ServerConfig(data=self.root, threads=self.threads, **settings))

    def fill(self, segments: int, index: np.ndarray[Any, np.dtype[np.uint32]]) -> float:
        """Median seconds of storing one segment."""
        times, ids = [], []
        with self.service() as service:
            service.create_collection(
                pb.CreateCollectionRequest(
                    context=self._context,
                    collection_id=self._id,
                    parameters=wire.parameters_to_wire(PARAMETERS),
                    sealed_manifest=b"1",
                ),
                Caller(),
            )
            for number in range(segments):
                index[0, 0] = number
                contents = {pb.PART_KIND_INDEX: index.data}
                header = wire.segment_header(NAME, self._id, PARAMETERS.digest, len(index), contents)
                requests = list(segment_requests(header, contents.values()))
                began = time.perf_counter()
                service.write_segment(iter(requests), Caller())
                times.append(time.perf_counter() - began)
                ids.append(header.segment_id)
            commit = pb.CommitManifestRequest(
                context=self._context,
                collection_id=self._id,
                expected_version=1,
                sealed_manifest=b"2",
                live_segments=ids,
            )
            service.commit_manifest(commit, Caller())
        return statistics.median(times)

    def start(self) -> None:
        """Open it and bring everything into memory."""
        with self.service() as service:
            self.warm(service)

    def cold_start(self) -> float:
        """Seconds; after the page cache was asked to let go."""
        began = time.perf_counter()
        self.start()
        return time.perf_counter() - began

    @staticmethod
    def warm(service: Service) -> None:
        for engine, searched in service.live():
            service.answerer.warm(engine, searched, math.inf, threading.Event())

    def ask(self, service: Service, query: bytes) -> Callable[[], bytes]:
        """One query against all; the residues, in order."""
        header = pb.AnswerHeader(context=self._context, collection_id=self._id, version=2, queries=1)

        def run() -> bytes:
            pieces: Iterator[pb.AnswerResponse] = service.answer(iter(answer_requests(header, [query])), Caller())
            return b"".join(p.residues for p in sorted(pieces, key=lambda p: (p.segment_id, p.first_block)))

        return run


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ciphers() -> dict[str, dict[str, float]]:
    """GB/s of opening."""
    named: dict[str, Any] = {
        "AES-256-GCM (cryptography)": AESGCM(os.urandom(32)),
        "ChaCha20-Poly1305 (cryptography)": ChaCha20Poly1305(os.urandom(32)),
    }
    rates: dict[str, dict[str, float]] = {name: {} for name in named}
    for kib in CHUNKS_KIB:
        data, out = bytes(kib << 10), memoryview(bytearray(kib << 10))
        count = max(1, (CIPHER_BYTES // 4) // len(data))
        for name, cipher in named.items():
            rates[name][str(kib)] = (
                count * len(data) / min(_opening_s(cipher, data, out, count) for _ in range(3)) / 1e9
            )
    rates |= _tink()
    return rates


def _opening_s(cipher: Any, data: bytes, out: memoryview, count: int) -> float:
    sealed = cipher.encrypt(bytes(12), data, b"")
    began = time.perf_counter()
    for _ in range(count):
        cipher.decrypt_into(bytes(12), sealed, b"", out)
    return time.perf_counter() - began


def _tink() -> dict[str, dict[str, float]]:
    """Where it is installed."""
    try:
        import tink
        from tink import aead
    except ImportError:
        return {}
    aead.register()
    cipher = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)
    rates = {}
    for kib in CHUNKS_KIB:
        data = bytes(kib << 10)
        count = max(1, (CIPHER_BYTES // 16) // len(data))
        sealed = cipher.encrypt(data, b"")
        began = time.perf_counter()
        for _ in range(count):
            cipher.decrypt(sealed, b"")
        rates[str(kib)] = count * len(data) / (time.perf_counter() - began) / 1e9
    return {"AES-256-GCM (Tink)": rates}


def measure(a: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    blocks = SEGMENT_BYTES // (4 * PARAMETERS.block_words)
    segments = max(1, (a.megabytes << 20) // SEGMENT_BYTES)
    words = (blocks + 1, PARAMETERS.block_words)
    *index, query = rng.integers(0, PARAMETERS.ring.primes[0], words, np.uint32)
    with tempfile.TemporaryDirectory(prefix="hesearch-bench-", dir=a.folder) as name:
        root = Path(name)
        keks = [root / "kek", root / "kek 2"]
        for kek in keks:
            new_kek_file(kek)
        folders = {
            "unsealed": Folder(root / "unsealed", a.threads, None),
            "sealed": Folder(root / "sealed", a.threads, keks[0]),
        }
        store = {kind: folder.fill(segments, np.array(index)) for kind, folder in folders.items()}
        start = alternate({kind: folder.start for kind, folder in folders.items()}, a.rounds)
        cold: dict[str, list[float]] = {kind: [] for kind in folders}
        kept = []
        for _ in range(a.rounds):
            for kind, folder in folders.items():
                kept.append(drop_page_cache(folder.root))
                cold[kind].append(folder.cold_start())
        with folders["unsealed"].service() as plain, folders["sealed"].service() as sealed:
            asks = {
                kind: folders[kind].ask(service, query.tobytes())
                for kind, service in (("unsealed", plain), ("sealed", sealed))
            }
            for service in (plain, sealed):
                Folder.warm(service)
            if asks["unsealed"]() != asks["sealed"]():
                raise AssertionError("the sealed folder answers something else")
            answer = alternate(asks, 5 * a.rounds, threads=a.threads)
        rotate_kek = timed(lambda: folders["sealed"].service(keks[1], keks[0]).close())
        with folders["sealed"].service(keks[1]) as sealed:
            rotate_data_key = timed(lambda: rotate(sealed.store, 0.0))
    medians = {
        "store_s": store,
        "start_s": {kind: t.median_s for kind, t in start.items()},
        "start_cold_s": {kind: statistics.median(t) for kind, t in cold.items()},
        "answer_s": {kind: t.median_s for kind, t in answer.items()},
    }
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k not in ("json", "folder")},
        "payload_bytes": segments * blocks * 4 * PARAMETERS.block_words,
        "segment_bytes": blocks * 4 * PARAMETERS.block_words,
        **medians,
        **{f"ratio_{key[:-2]}": value["sealed"] / value["unsealed"] for key, value in medians.items()},
        "rotate_kek_s": rotate_kek,
        "rotate_data_key_s": rotate_data_key,
        "kept_share": max(kept),
        "ciphers": ciphers(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.at_rest", description="What sealing at rest costs.")
    parser.add_argument("--megabytes", type=int, default=2048, help="MiB of indexes (default 2048)")
    parser.add_argument("--threads", type=int, default=2, help="that answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

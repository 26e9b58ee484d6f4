"""The server processes that benchmarks ask, and what asks them: raw calls that drain answers and recover nothing."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.faiss_server import METHOD, K
from he_client import CollectionKey
from he_client.engines import make_engine
from he_client.manifest import open_manifest
from he_proto import wire
from he_proto.chunks import answer_requests
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc

F32 = NDArray[np.float32]
ANSWER = "/hesearch.v1.HeSearch/Answer"
#: A connection of one's own: channels of one process to one address share it otherwise.
CHANNEL_OPTIONS = (*wire.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))


# ---- processes -----------------------------------------------------------------------------------------------
@contextmanager
def process(*arguments: str, log: Path | None = None) -> Iterator[tuple[str, int]]:
    """(address, pid) of a server process that prints `listening on ADDRESS`; ended, by its pid, afterwards.

    log: a file for what it says on stderr; default: where this process's goes.
    """
    with (
        log.open("wb") if log else contextlib.nullcontext() as errors,
        subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as started,
    ):
        assert started.stdout is not None
        try:
            line = started.stdout.readline()
            if not line:
                raise RuntimeError(f"{arguments[0]}: the server ended before it listened")
            yield line.split()[-1], started.pid
        finally:
            started.terminate()


def serve(folder: Path, threads: int) -> tuple[str, ...]:
    """Arguments for `process`: our server of a data folder, which refuses nobody."""
    return ("he_server", "--insecure", *serve_flags(folder, threads))


def serve_flags(folder: Path, threads: int) -> tuple[str, ...]:
    """Of `hesearch serve` on a free port of loopback, all but who may call."""
    where = ("--data", str(folder), "--listen", "127.0.0.1:0", "--threads", str(threads))
    return (*where, "--max-scans", "1000", "--max-answers", "1000")


def rss_bytes(pid: int, kind: str) -> int:
    """RssAnon (the process's own memory) or RssFile (its mapped files) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    return 0


# ---- the page cache ------------------------------------------------------------------------------------------
def drop_page_cache(folder: Path) -> float:
    """Asks the system to forget the pages of the files under `folder`: the share of them that it keeps all the same."""
    kept = pages = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        resident = resident_pages(path)
        kept, pages = kept + int(resident.sum()), pages + len(resident)
    return kept / max(1, pages)


def resident_pages(path: Path) -> NDArray[np.bool_]:
    """One entry a page of a file that is not empty: is it in memory? (mincore(2))"""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    mapped = np.memmap(path, np.uint8, "r")
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    if libc.mincore(mapped.ctypes.data, len(mapped), flags.ctypes.data):
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
    return (flags & 1).astype(bool)


# ---- calls ---------------------------------------------------------------------------------------------------
class Plain:
    """The client of benchmarks.faiss_server."""

    def __init__(self, address: str) -> None:
        channel = grpc.insecure_channel(address)
        self._search: Any = channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

    def __call__(self, queries: F32) -> NDArray[np.int64]:
        answer = self._search(np.ascontiguousarray(queries, np.float32).tobytes())
        found = np.frombuffer(answer[4 * K * len(queries) :], "<i8")
        return found.reshape(len(queries), K)


class Asker:
    """Sends ready messages on a connection of its own and takes all that comes back, unparsed."""

    def __init__(self, address: str, method: str) -> None:
        self._channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
        kind = self._channel.stream_stream if method == ANSWER else self._channel.unary_unary
        self._call: Any = kind(method, request_serializer=None, response_deserializer=None)
        self._streams = method == ANSWER

    def __call__(self, messages: Sequence[bytes]) -> list[bytes]:
        """The responses. Raises grpc.RpcError."""
        if not self._streams:
            return [self._call(messages[0])]
        return list(self._call(iter(messages)))

    def close(self) -> None:
        self._channel.close()


class Encrypted:
    """Query ciphertexts for the current version of a collection, as the SDK makes and sends them."""

    def __init__(self, address: str, name: str, key: CollectionKey) -> None:
        with grpc.insecure_channel(address, wire.CHANNEL_OPTIONS) as channel:
            stub = hesearch_pb2_grpc.HeSearchStub(channel)  # type: ignore[no-untyped-call]
            found = stub.DescribeCollection(
                pb.DescribeCollectionRequest(format_version=wire.FORMAT_VERSION, collection=name)
            )
            manifest = open_manifest(key, name, stub.ReadManifest(pb.ReadManifestRequest(context=found.context)))
        self._context, self.blocks = found.context, found.blocks
        self._manifest = manifest
        state = manifest.message.engine_state
        self._engine = make_engine(manifest.parameters, key, manifest.collection_id, state, threads=1)

    def ciphertext(self, vector: NDArray[Any]) -> bytes:
        """Of a vector of any norm but 0."""
        unit = vector.astype(np.float64)
        query = self._engine.query(unit / np.linalg.norm(unit))
        content = bytes(query.ciphertext)
        query.close()
        return content

    def messages(self, ciphertexts: Sequence[bytes]) -> list[bytes]:
        """One Answer call, serialised."""
        header = pb.AnswerHeader(
            context=self._context,
            collection_id=self._manifest.collection_id,
            version=self._manifest.version,
            queries=len(ciphertexts),
        )
        return [message.SerializeToString() for message in answer_requests(header, ciphertexts)]

    def answers(self, responses: Sequence[bytes], queries: int) -> list[bytes]:
        """For each query its residues, segments in the order of their ids, blocks in theirs.

        Raises AssertionError unless every block of the collection is there once.
        """
        pieces = [pb.AnswerResponse.FromString(response) for response in responses]
        pieces.sort(key=lambda p: (p.query, p.segment_id, p.first_block))
        out = []
        for number in range(queries):
            mine = [p for p in pieces if p.query == number]
            blocks = {(p.segment_id, k) for p in mine for k in range(p.first_block, p.first_block + p.blocks)}
            if not len(blocks) == sum(p.blocks for p in mine) == self.blocks:
                raise AssertionError(f"query {number}: got {len(blocks)} blocks, expected {self.blocks}, each once")
            out.append(b"".join(p.residues for p in mine))
        return out

    def close(self) -> None:
        self._engine.close()

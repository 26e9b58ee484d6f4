"""The real client and the real server, and what the server's folder and its calls hold afterwards.

A server in this process on a port of loopback; the client speaks gRPC to it. Of each Answer call the server keeps the
ciphertexts that came and those that went. `without_mask` and the others break the client on purpose, in one place each:
everything else stays, so that an attacker who then succeeds would have succeeded against the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from he_client import Client, CollectionKey
from he_client.engines import choose_parameters
from he_engine.hint_rows import RowCipher
from he_engine.keys import RootKey
from he_engine.params import Parameters
from he_engine.tenseal_format import POLY_BYTES
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from he_server.storage.kek import new_kek_file
from he_server.storage.segment_file import open_source, read_description, read_part

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]

K = 10
BATCH = 4  #: queries in one call


class Watched(Service):
    """Keeps what Answer calls bring and take away: what anybody sees who runs this server."""

    def __init__(self, config: ServerConfig, keep: Callable[[bytes], Any]) -> None:
        """keep: what to make of a query's ciphertext, of which there may be gigabytes."""
        super().__init__(config)
        self._keep = keep
        self.queries: list[Any] = []
        self.answers: list[bytes] = []

    def answer(self, requests: Iterator[pb.AnswerRequest], caller: Caller) -> Iterator[pb.AnswerResponse]:
        received, counts, pieces = bytearray(), [], []

        def kept() -> Iterator[pb.AnswerRequest]:
            for request in requests:
                if request.HasField("header"):
                    counts.append(request.header.queries)
                received.extend(request.chunk)
                yield request

        for piece in super().answer(kept(), caller):
            pieces.append(piece)
            yield piece
        each = len(received) // counts[0]
        self.queries += [self._keep(bytes(received[start : start + each])) for start in range(0, len(received), each)]
        pieces.sort(key=lambda piece: (piece.query, piece.first_block))
        for number in range(counts[0]):
            self.answers.append(b"".join(piece.residues for piece in pieces if piece.query == number))


@dataclass(frozen=True, slots=True)
class Observed:
    """What one run left with the server, and what its client found."""

    index: bytes  #: the index part of the one segment
    hint: bytes
    file: bytes  #: the segment's file as it lies on the disk
    found: list[list[int]]  #: rows, best first, for each query
    queries: list[Any]  #: what `keep` made of the ciphertexts that came
    answers: list[bytes]


def run(
    folder: Path,
    rows: F32,
    queries: F32,
    *,
    engine: str = "hint",
    profile: str | None = None,
    sealed: bool = False,
    keep: Callable[[bytes], Any] = len,
    advance: Callable[[int], object] = int,
) -> Observed:
    """Insert rows, search queries, and look at the server. `sealed`: its folder is, and the key is elsewhere."""
    folder.mkdir(parents=True)
    data, kek = folder / "data", folder / "kek"
    settings: dict[str, Any] = {}
    if sealed:
        new_kek_file(kek)
        settings["kek"] = f"file:{kek}"
    config = ServerConfig(data=data, listen="127.0.0.1:0", insecure=True, threads=2, no_audit=True, **settings)
    service = Watched(config, keep)
    with service, _listening(service) as address, Client(address, insecure=True) as client:
        made = client.create_collection(
            "c", dim=rows.shape[1], key=CollectionKey.generate(), engine=engine, profile=profile
        )
        made.insert(range(len(rows)), rows, progress=False)
        found = []
        for first in range(0, len(queries), BATCH):
            part = queries[first : first + BATCH]
            found += [[int(hit.id) for hit in hits] for hits in made.search(part, k=K)]
            advance(len(part))
        (path,) = (data / "segments").glob("*/*")
        parts = {}
        if not sealed:
            source = open_source(path, None)
            parts = {e.kind: b"".join(read_part(source, e, 0, e.length_bytes)) for e in read_description(source).parts}
        return Observed(
            index=parts.get(pb.PART_KIND_INDEX, b""),
            hint=parts.get(pb.PART_KIND_HINT, b""),
            file=path.read_bytes(),
            found=found,
            queries=service.queries,
            answers=service.answers,
        )


@contextmanager
def _listening(service: Service) -> Iterator[str]:
    server = GrpcServer(service)
    try:
        yield server.address
    finally:
        server.stop(1.0)


def parameters(profile: str, dim: int) -> Parameters:
    chosen = choose_parameters("hint", profile, dim, None)
    assert isinstance(chosen, Parameters)
    return chosen


# ---- broken on purpose ---------------------------------------------------------------------------------------
@contextmanager
def without_mask() -> Iterator[None]:
    """Every block secret is 0: b = e + v."""
    honest = RowCipher.block_secrets

    def zero(self: RowCipher, seed: bytes, first: int, count: int) -> U32:
        return np.zeros_like(honest(self, seed, first, count))

    with patch.object(RowCipher, "block_secrets", zero):
        yield


@contextmanager
def one_block_secret() -> Iterator[None]:
    """All blocks have the first one's secret."""
    honest = RowCipher.block_secrets

    def first_again(self: RowCipher, seed: bytes, first: int, count: int) -> U32:  # noqa: ARG001
        return np.repeat(honest(self, seed, 0, 1), count, axis=0)

    with patch.object(RowCipher, "block_secrets", first_again):
        yield


@contextmanager
def one_query_secret() -> Iterator[None]:
    """A generator that always says the same, and no hedge: all queries have one secret and one noise."""
    honest = RootKey.hedged_seed

    def repeated(self: RootKey, label: str, *content: bytes | memoryview | int) -> bytes:
        return bytes(32) if label == "query" else honest(self, label, *content)

    with patch.object(RootKey, "hedged_seed", repeated):
        yield


@contextmanager
def zero_seal_key() -> Iterator[None]:
    """TenSEAL's secret key is 0."""
    with patch("he_engine.tenseal_client.generate_state", lambda: bytes(POLY_BYTES)):
        yield

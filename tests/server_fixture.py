"""A server to test against, embedded or over gRPC, and a client that knows no key: random canonical residues
stand in for ciphertexts, since a server cannot tell them apart."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from he_engine.errors import HesearchError
from he_engine.kernels.naive import NaiveKernel
from he_engine.params import TILE, Parameters
from he_proto import wire
from he_proto.chunks import answer_requests, segment_requests
from he_proto.status import error_from_rpc
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.rpc.grpc_server import GrpcServer
from he_server.search.engines import EngineMaker
from he_server.service import Service
from tests.cluster_settings import cluster

METHODS = pb.DESCRIPTOR.services_by_name["HeSearch"].methods
PARAMETERS = Parameters.choose("compact", 4, 2)  # N = 2048, P = 1, I = 2, B = 1024: 16 KiB a block, 4 KiB an answer
BLOCK_BYTES = 4 * PARAMETERS.block_words
ANSWER_BYTES = 4 * PARAMETERS.rows_per_block
U32 = NDArray[np.uint32]


class Endpoint:
    """Calls by their names in the .proto, raising HesearchErrors however the server is reached."""

    def __init__(self, service: Service, address: str = "") -> None:
        self.service, self.address = service, address
        self._channel = grpc.insecure_channel(address, wire.CHANNEL_OPTIONS) if address else None
        self.stub = hesearch_pb2_grpc.HeSearchStub(self._channel) if address else None

    def call(self, method: str, request: Any) -> Any:
        """The response; a list of them where the method streams."""
        streams = next(m.server_streaming for m in METHODS if m.name == method)
        request = iter(request) if isinstance(request, list) else request
        if self.stub is None:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
            response = getattr(self.service, name)(request, Caller())
            return list(response) if streams else response
        try:
            response = getattr(self.stub, method)(request, timeout=60)
            return list(response) if streams else response
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


@contextlib.contextmanager
def running(
    folder: Path, *, over_grpc: bool, make_engine: EngineMaker | None = None, **limits: Any
) -> Iterator[Endpoint]:
    """A server of `folder` with two computing threads, which stops with the block."""
    config = ServerConfig(data=folder, listen="127.0.0.1:0", insecure=True, **{"threads": 2, **cluster(), **limits})
    with Service(config, make_engine) as service:
        if not over_grpc:
            yield Endpoint(service)
            return
        server = GrpcServer(service)
        endpoint = Endpoint(service, server.address)
        try:
            yield endpoint
        finally:
            endpoint.close()
            server.stop(0)


def residues(rng: np.random.Generator, stacks: int) -> U32:
    """(stacks, P, N/16, I, 16), uniform and canonical, with 0 and q − 1 among them."""
    shape = (stacks, len(PARAMETERS.ring.primes), PARAMETERS.ring.degree // TILE, PARAMETERS.planes, TILE)
    words = rng.integers(0, PARAMETERS.ring.primes[0], shape, np.uint32)
    words[..., 0], words[..., 1] = 0, PARAMETERS.ring.primes[0] - 1
    return words


def naive_answers(blocks: U32, queries: U32) -> U32:
    """(Q, K, P, B), by the oracle."""
    ring = PARAMETERS.ring
    kernel = NaiveKernel(ring.log_n, ring.primes, ring.roots, PARAMETERS.stride, PARAMETERS.planes)
    out = np.zeros((len(queries), len(blocks), len(ring.primes), PARAMETERS.rows_per_block), np.uint32)
    kernel.answer(blocks, queries, out)
    return out


@dataclass(frozen=True)
class FakeSegment:
    header: pb.SegmentHeader
    contents: Mapping[pb.PartKind, bytes]
    blocks: U32

    @property
    def id(self) -> bytes:
        return self.header.segment_id

    def requests(self) -> list[pb.WriteSegmentRequest]:
        return list(segment_requests(self.header, self.contents.values()))


class FakeClient:
    """One collection on an endpoint."""

    def __init__(self, endpoint: Endpoint, name: str = "notes", seed: int = 1) -> None:
        self.endpoint = endpoint
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.collection_id = self.rng.bytes(16)
        self.context = wire.context(name, PARAMETERS.digest)

    def create_request(self, **changes: Any) -> pb.CreateCollectionRequest:
        fields: dict[str, Any] = {
            "context": self.context,
            "collection_id": self.collection_id,
            "parameters": wire.parameters_to_wire(PARAMETERS),
            "sealed_manifest": b"sealed 1",
        }
        return pb.CreateCollectionRequest(**fields | changes)

    def create(self) -> FakeClient:
        self.endpoint.call("CreateCollection", self.create_request())
        return self

    def segment(self, blocks: int = 1, *, index: U32 | None = None) -> FakeSegment:
        words = residues(self.rng, blocks) if index is None else index
        contents = {
            pb.PART_KIND_INDEX: words.tobytes(),
            pb.PART_KIND_HINT: self.rng.bytes(5000),
            pb.PART_KIND_ROWS: self.rng.bytes(4096),
            pb.PART_KIND_FINGERPRINT: b"",
            pb.PART_KIND_PAYLOADS: self.rng.bytes(1),
        }
        header = wire.segment_header(self.name, self.collection_id, PARAMETERS.digest, len(words), contents)
        return FakeSegment(header, contents, words)

    def write(self, segment: FakeSegment) -> pb.WriteSegmentResponse:
        return self.endpoint.call("WriteSegment", segment.requests())

    def commit(self, expected_version: int, live: Iterable[FakeSegment], **changes: Any) -> int:
        fields: dict[str, Any] = {
            "context": self.context,
            "collection_id": self.collection_id,
            "expected_version": expected_version,
            "sealed_manifest": b"sealed %d" % (expected_version + 1),
            "live_segments": [segment.id for segment in live],
        }
        return self.endpoint.call("CommitManifest", pb.CommitManifestRequest(**fields | changes)).version

    def read_part(self, segment: FakeSegment, kind: pb.PartKind, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"context": self.context, "segment_id": segment.id, "kind": kind}
        responses = self.endpoint.call("ReadSegmentPart", pb.ReadSegmentPartRequest(**fields | changes))
        assert [r.HasField("context") for r in responses] == [True] + [False] * (len(responses) - 1)
        return b"".join(response.chunk for response in responses)

    def manifest(self) -> pb.ReadManifestResponse:
        return self.endpoint.call("ReadManifest", pb.ReadManifestRequest(context=self.context))

    def describe(self) -> pb.Collection:
        request = pb.DescribeCollectionRequest(format_version=1, collection=self.name)
        return self.endpoint.call("DescribeCollection", request)

    def answer_requests(self, version: int, ciphertexts: U32, **changes: Any) -> list[pb.AnswerRequest]:
        fields: dict[str, Any] = {
            "context": self.context,
            "collection_id": self.collection_id,
            "version": version,
            "queries": len(ciphertexts),
        }
        header = pb.AnswerHeader(**fields | changes)
        return list(answer_requests(header, [ciphertext.tobytes() for ciphertext in ciphertexts]))

    def answer(self, version: int, queries: U32) -> dict[bytes, U32]:
        """For each segment (Q, K, P, B); every block exactly once."""
        pieces = self.endpoint.call("Answer", self.answer_requests(version, queries))
        placed: dict[bytes, dict[tuple[int, int], bytes]] = {}
        for piece in pieces:
            assert piece.context == self.context
            assert len(piece.residues) == piece.blocks * ANSWER_BYTES
            for k in range(piece.blocks):
                place = (piece.query, piece.first_block + k)
                assert place not in placed.setdefault(piece.segment_id, {})
                placed[piece.segment_id][place] = piece.residues[k * ANSWER_BYTES : (k + 1) * ANSWER_BYTES]
        return {
            segment_id: np.frombuffer(b"".join(places[at] for at in sorted(places)), "<u4").reshape(
                len(queries), -1, len(PARAMETERS.ring.primes), PARAMETERS.rows_per_block
            )
            for segment_id, places in placed.items()
        }


def all_errors(root: type[HesearchError] = HesearchError) -> list[type[HesearchError]]:
    """The whole tree."""
    return [root, *(error for child in root.__subclasses__() for error in all_errors(child))]

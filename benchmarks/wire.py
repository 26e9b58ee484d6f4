"""What the protocol leaves of the rate at which its gRPC library can stream bytes at all, over loopback.

    python -m benchmarks.wire --megabytes 64 --json out.json

A part of our download (ReadSegmentPart), an upload (WriteSegment) and the answers of a call (Answer), taken by a client
that parses every message and keeps none; beside them, in turn, the same number of messages of 1 MiB that a server of
the same library streams and takes without parsing. Our server does more for the same bytes, which is in its rates: it
hashes what it reads, hashes, checks, writes and syncs what it stores, and computes what it answers: `sha256_mb_s`,
`disk_mb_s` and `compute_mb_s` are the rates of these alone, in this process, on one thread. The collection has one
dimension, so that answers are as long as the index and computing them is a small part.

JSON keys (stable): `machine`, `arguments`, `payload_bytes` (of one stream); rates of the payload in MB/s, medians:
`plain_download_mb_s`, `plain_upload_mb_s`, `part_download_mb_s`, `part_upload_mb_s`, `answer_mb_s`, `sha256_mb_s`,
`disk_mb_s`, `compute_mb_s`; `ratio_download_vs_plain`, `ratio_upload_vs_plain`, `ratio_answer_vs_plain` (our rate / the
plain one of the same direction); `framing_share` of `download`, `upload` and `answer`: bytes that protobuf and gRPC's
message prefix add / payload.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import plain_server
from benchmarks.machine import describe, print_json
from benchmarks.servers import process, serve
from benchmarks.timing import alternate
from he_engine.engine import IndexFile
from he_engine.hint_server import HintServer
from he_engine.params import Parameters
from he_proto import wire
from he_proto.chunks import CHUNK_BYTES, answer_requests, flat, segment_requests
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc

PARAMETERS = Parameters.choose("compact", 1)
MESSAGE = bytes(CHUNK_BYTES)
PREFIX_BYTES = 5  #: gRPC's, before every message
SERVICE = "benchmarks.Stream"


# ---- the plain streams ---------------------------------------------------------------------------------------
def serve_plain() -> int:
    """Download streams as many messages as the request says, Upload takes all that come; nothing is parsed."""

    def download(request: bytes, _context: Any) -> Iterator[bytes]:
        return (MESSAGE for _ in range(int(request)))

    def upload(requests: Iterable[bytes], _context: Any) -> bytes:
        return str(sum(len(message) for message in requests)).encode()

    handlers = {
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    return plain_server.run(SERVICE, handlers, workers=2, options=wire.CHANNEL_OPTIONS)


class PlainStreams:
    def __init__(self, channel: grpc.Channel, messages: int) -> None:
        self._messages = messages
        self._download: Any = channel.unary_stream(f"/{SERVICE}/Download", None, None)
        self._upload: Any = channel.stream_unary(f"/{SERVICE}/Upload", None, None)

    def download(self) -> int:
        return sum(len(message) for message in self._download(str(self._messages).encode()))

    def upload(self) -> int:
        return int(self._upload(MESSAGE for _ in range(self._messages)))


# ---- ours ----------------------------------------------------------------------------------------------------
class Streams:
    """A collection of one segment of random residues: no key, and a server cannot tell."""

    def __init__(self, channel: grpc.Channel, blocks: int) -> None:
        rng = np.random.default_rng(1)
        self._stub: Any = hesearch_pb2_grpc.HeSearchStub(channel)  # type: ignore[no-untyped-call]
        self._context = wire.context("wire", PARAMETERS.digest)
        self._id = rng.bytes(wire.COLLECTION_ID_BYTES)
        words = (blocks + 1, PARAMETERS.block_words)
        *index, query = rng.integers(0, PARAMETERS.ring.primes[0], words, np.uint32)
        self.index = np.array(index)
        self.query = query.tobytes()
        self._sent = 0
        parameters = wire.parameters_to_wire(PARAMETERS)
        self._stub.CreateCollection(
            pb.CreateCollectionRequest(
                context=self._context, collection_id=self._id, parameters=parameters, sealed_manifest=b"1"
            )
        )
        self.upload(self._header(0))
        self._segment = self._header(0).segment_id
        self._version = self._stub.CommitManifest(
            pb.CommitManifestRequest(
                context=self._context,
                collection_id=self._id,
                expected_version=1,
                sealed_manifest=b"2",
                live_segments=[self._segment],
            )
        ).version

    def _header(self, number: int) -> pb.SegmentHeader:
        """Of the segment whose first word is `number`, which is now in `index`."""
        self.index[0, 0] = number
        contents = {pb.PART_KIND_INDEX: self.index.data}
        return wire.segment_header("wire", self._id, PARAMETERS.digest, len(self.index), contents)

    def new_headers(self, count: int) -> Iterator[pb.SegmentHeader]:
        """Of segments that the server does not have yet, to be uploaded in this order."""
        headers = [self._header(number) for number in range(1, count + 1)]
        return iter(headers)

    def requests(self, header: pb.SegmentHeader) -> Iterator[pb.WriteSegmentRequest]:
        return segment_requests(header, [self.index.data])

    def upload(self, header: pb.SegmentHeader) -> None:
        self.index[0, 0] = self._sent
        self._sent += 1
        if self._stub.WriteSegment(self.requests(header)).existed:
            raise AssertionError("the server had this segment: nothing was uploaded")

    def download(self) -> Iterator[pb.ReadSegmentPartResponse]:
        request = pb.ReadSegmentPartRequest(context=self._context, segment_id=self._segment, kind=pb.PART_KIND_INDEX)
        responses: Iterator[pb.ReadSegmentPartResponse] = self._stub.ReadSegmentPart(request)
        return responses

    def answer(self) -> Iterator[pb.AnswerResponse]:
        header = pb.AnswerHeader(context=self._context, collection_id=self._id, version=self._version, queries=1)
        responses: Iterator[pb.AnswerResponse] = self._stub.Answer(answer_requests(header, [self.query]))
        return responses


def framing_share(messages: Iterable[Any], payload: int) -> float:
    sent: int = sum(message.ByteSize() + PREFIX_BYTES for message in messages)
    return (sent - payload) / payload


def compute(server: HintServer, path: Path, query: bytes) -> None:
    """The answers to a query over the index that is in this file, a message at a time."""
    blocks = path.stat().st_size // server.index_bytes_per_block
    index = IndexFile(path, 0, path.stat().st_size, blocks)
    step = CHUNK_BYTES // server.answer_bytes_per_block
    for first in range(0, blocks, step):
        server.answer(index, first, min(step, blocks - first), [query])


def write_and_sync(content: memoryview, path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK_BYTES):
            file.write(content[start : start + CHUNK_BYTES])
        os.fsync(file.fileno())


def measure(a: argparse.Namespace) -> dict[str, Any]:
    payload = a.megabytes << 20
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-bench-") as name,
        process(*serve(Path(name) / "data", a.threads)) as (address, _),
        process("benchmarks.wire", "--serve-plain") as (plain_address, _),
        grpc.insecure_channel(address, wire.CHANNEL_OPTIONS) as channel,
        grpc.insecure_channel(plain_address, wire.CHANNEL_OPTIONS) as plain_channel,
    ):
        plain = PlainStreams(plain_channel, a.megabytes)
        ours = Streams(channel, payload // (4 * PARAMETERS.block_words))
        received = b"".join(message.chunk for message in ours.download())
        answers = sum(len(message.residues) for message in ours.answer())
        expected = ours.index.copy()
        expected[0, 0] = 0
        if received != expected.tobytes() or not answers == plain.download() == plain.upload() == payload:
            raise AssertionError(f"a stream is not what was sent, or not {payload} bytes long")
        headers, content = ours.new_headers(a.rounds + 1), flat(ours.index.data)
        written, engine = Path(name) / "written", HintServer(PARAMETERS)
        times = alternate(
            {
                "plain_download": plain.download,
                "part_download": lambda: sum(len(message.chunk) for message in ours.download()),
                "answer": lambda: sum(len(message.residues) for message in ours.answer()),
                "plain_upload": plain.upload,
                "part_upload": lambda: ours.upload(next(headers)),
                "sha256": lambda: hashlib.sha256(content).digest(),
                "disk": lambda: write_and_sync(content, written),
                "compute": lambda: compute(engine, written, ours.query),
            },
            a.rounds,
        )
        framing = {
            "download": framing_share(ours.download(), payload),
            "upload": framing_share(ours.requests(next(ours.new_headers(1))), payload),
            "answer": framing_share(ours.answer(), payload),
        }
    rates = {name: payload / time.median_s / 1e6 for name, time in times.items()}
    return {
        "machine": describe(),
        "arguments": {k: v for k, v in vars(a).items() if k not in ("json", "serve_plain")},
        "payload_bytes": payload,
        **{f"{name}_mb_s": rate for name, rate in rates.items()},
        "ratio_download_vs_plain": rates["part_download"] / rates["plain_download"],
        "ratio_upload_vs_plain": rates["part_upload"] / rates["plain_upload"],
        "ratio_answer_vs_plain": rates["answer"] / rates["plain_download"],
        "framing_share": framing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wire", description="Rates of our streams beside gRPC's own."
    )
    parser.add_argument("--megabytes", type=int, default=64, help="MiB in one stream (default 64: a segment)")
    parser.add_argument("--threads", type=int, default=2, help="of our server")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--serve-plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_plain:
        return serve_plain()
    print_json(measure(arguments), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

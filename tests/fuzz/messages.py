"""Messages from the network: requests at the server, responses at the client; both run the real code behind them.

An input is one byte that names the method, then the messages of the call, each after its length (4 bytes). What is no
protobuf at all is refused by gRPC before either side sees it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from he_client import Client
from he_client.cache import PartCache
from he_client.segments import SegmentStore
from he_engine.errors import HesearchError, InvalidInput
from he_proto import wire
from he_proto.chunks import answer_requests, segment_requests
from he_proto.status import error_from_status
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.service import Service
from tests.fuzz.formats import KEY, PARAMETERS
from tests.fuzz.mutate import mutate_bytes, mutate_protobuf
from tests.fuzz.target import Target, scratch

METHODS = sorted(pb.DESCRIPTOR.services_by_name["HeSearch"].methods, key=lambda method: method.name)
NUMBERS = {method.name: number for number, method in enumerate(METHODS)}
NAME, ID = "notes", b"collection id 16"
CONTEXT = wire.context(NAME, PARAMETERS.digest)


def pack(method: str, messages: Iterable[Any]) -> bytes:
    pieces = [message.SerializeToString() for message in messages]
    return bytes([NUMBERS[method]]) + b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)


def unpack(data: bytes) -> list[bytes]:
    """The messages, as far as there are whole ones."""
    pieces, at = [], 1
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        pieces.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return pieces


def _parsed(kind: Any, pieces: list[bytes]) -> list[Any]:
    try:
        return [GetMessageClass(kind).FromString(piece) for piece in pieces]
    except DecodeError:
        raise InvalidInput("not a message") from None


def _mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Messages changed, dropped, repeated or put in another order; now and then, another method's."""
    pieces = unpack(data)
    kind = rng.randrange(16)
    if kind == 0 and pieces:
        del pieces[rng.randrange(len(pieces))]
    elif kind == 1 and pieces:
        pieces *= rng.randrange(1, 4)
    elif kind == 2:
        rng.shuffle(pieces)
    elif kind == 3:
        data = bytes([rng.randrange(len(METHODS))]) + data[1:]
    elif kind == 4:
        return mutate_bytes(rng, data, others)
    elif pieces:
        at = rng.randrange(len(pieces)) if rng.random() < 0.3 else 0
        relatives = [piece for other in others if other[:1] == data[:1] for piece in unpack(other)[:2]]
        pieces[at] = mutate_protobuf(rng, pieces[at], relatives or [b""])
    return data[:1] + b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)


# ---- requests ------------------------------------------------------------------------------------------------
class Server:
    """One collection with one segment, as it was before each input."""

    def __init__(self, folder: Path, kek: str = "") -> None:
        self.service = Service(ServerConfig(data=folder, listen="127.0.0.1:0", insecure=True, threads=1, kek=kek))
        rng = np.random.default_rng(1)
        words = rng.integers(0, PARAMETERS.ring.primes[0], PARAMETERS.block_words, np.uint32)
        contents: Any = {pb.PART_KIND_INDEX: words.tobytes(), pb.PART_KIND_ROWS: b"rows", pb.PART_KIND_PAYLOADS: b""}
        self.header = wire.segment_header(NAME, ID, PARAMETERS.digest, 1, contents)
        parameters = wire.parameters_to_wire(PARAMETERS)
        named: dict[str, Any] = {"context": CONTEXT, "collection_id": ID}
        segment_id = self.header.segment_id
        self.setup: dict[str, list[Any]] = {
            "CreateCollection": [pb.CreateCollectionRequest(**named, parameters=parameters, sealed_manifest=b"one")],
            "WriteSegment": list(segment_requests(self.header, contents.values())),
            "CommitManifest": [
                pb.CommitManifestRequest(
                    **named, expected_version=1, sealed_manifest=b"two", live_segments=[segment_id]
                )
            ],
        }
        tenseal = pb.Parameters(engine=pb.ENGINE_TENSEAL, dim=9, stride=1)
        exact = pb.Parameters(engine=pb.ENGINE_HINT, profile="exact", dim=768, stride=64)
        query = pb.AnswerHeader(**named, version=2, queries=1)
        self.requests: list[tuple[str, list[Any]]] = [
            *self.setup.items(),
            ("DescribeCollection", [pb.DescribeCollectionRequest(format_version=1, collection=NAME)]),
            ("ListCollections", [pb.ListCollectionsRequest(format_version=1)]),
            ("DropCollection", [pb.DropCollectionRequest(**named)]),
            ("ReadManifest", [pb.ReadManifestRequest(context=CONTEXT)]),
            ("Answer", list(answer_requests(query, [words.tobytes()]))),
            ("ReadSegmentPart", [self._read(1, 0, 0)]),
            ("ReadSegmentPart", [self._read(3, 1, 2)]),
            ("CreateCollection", [_creation("other", tenseal, b"x")]),
            (
                "CreateCollection",
                [_creation("third", exact, b"x")],
            ),
            ("CommitManifest", [pb.CommitManifestRequest(**named, expected_version=2, sealed_manifest=b"three")]),
        ]
        if "DescribeSegment" in NUMBERS:
            self.requests.append(("DescribeSegment", [pb.DescribeSegmentRequest(**named, segment_id=segment_id)]))
            imported = _creation("imported", parameters, b"")
            imported.import_version = 7
            self.requests.append(("CreateCollection", [imported]))
        self.rebuild()

    def _read(self, kind: int, offset: int, length: int) -> pb.ReadSegmentPartRequest:
        return pb.ReadSegmentPartRequest(
            context=CONTEXT,
            segment_id=self.header.segment_id,
            kind=pb.PartKind.Name(kind),
            offset_bytes=offset,
            length_bytes=length,
        )

    def call(self, number: int, messages: list[Any]) -> list[Any]:
        method = METHODS[number]
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        request = iter(messages) if method.client_streaming else messages[0]
        response = getattr(self.service, name)(request, Caller())
        return list(response) if method.server_streaming else [response]

    def rebuild(self) -> None:
        found = self.call(NUMBERS["ListCollections"], [pb.ListCollectionsRequest(format_version=1)])[0]
        for one in found.collections:
            request = pb.DropCollectionRequest(context=one.context, collection_id=one.collection_id)
            self.call(NUMBERS["DropCollection"], [request])
        for method, messages in self.setup.items():
            self.call(NUMBERS[method], messages)

    def run(self, data: bytes) -> None:
        number = data[0] % len(METHODS) if data else 0
        messages = _parsed(METHODS[number].input_type, unpack(data))
        if not messages and not METHODS[number].client_streaming:
            raise InvalidInput("no message")
        responses = self.call(number, messages)
        assert all(len(response.SerializeToString()) < wire.MAX_MESSAGE_BYTES for response in responses)
        changed = METHODS[number].name in ("CreateCollection", "DropCollection", "CommitManifest")
        if changed or (METHODS[number].name == "WriteSegment" and not responses[0].existed):
            self.rebuild()


def _creation(name: str, parameters: pb.Parameters, manifest: bytes) -> pb.CreateCollectionRequest:
    return pb.CreateCollectionRequest(
        context=wire.context(name, wire.parameters_from_wire(parameters).digest),
        collection_id=name.encode().ljust(16, b"-"),
        parameters=parameters,
        sealed_manifest=manifest,
    )


def _repair_request(data: bytes) -> bytes:
    """The digests that follow from the other fields: of the parameters, and of a segment's description."""
    try:
        name = METHODS[data[0]].name
        if name == "CreateCollection":
            (created,) = _parsed(METHODS[data[0]].input_type, unpack(data))
            created.context.parameter_digest = wire.parameters_from_wire(created.parameters).digest
            return pack(name, [created])
        if name == "WriteSegment":
            first, *rest = _parsed(METHODS[data[0]].input_type, unpack(data))
            header = first.header
            header.segment_id = wire.segment_id(
                header.collection_id, header.context.parameter_digest, header.blocks, header.parts
            )
            return pack(name, [first, *rest])
    except (HesearchError, ValueError, IndexError, OverflowError):
        pass
    return data


def requests_target() -> Target:
    folder = scratch()
    server = Server(folder)

    def close() -> None:
        server.service.close()
        shutil.rmtree(folder)

    return Target(
        name="requests",
        run=server.run,
        samples=[pack(method, messages) for method, messages in server.requests],
        mutate=_mutate,
        repair=_repair_request,
        limit_bytes=wire.MAX_MESSAGE_BYTES,
        close=close,
    )


# ---- responses -----------------------------------------------------------------------------------------------
class _Scripted:
    """A transport (he_client.transport.Transport) to an honest server, but for the one call that is scripted."""

    attempts = 1

    def __init__(self, honest: Any) -> None:
        self.honest = honest
        self.scripted: tuple[str, list[bytes]] | None = None
        self.heard: list[tuple[str, list[Any]]] = []

    def _script(self, method: str) -> list[Any] | None:
        if self.scripted is None or self.scripted[0] != method:
            return None
        return _parsed(METHODS[NUMBERS[method]].output_type, self.scripted[1])

    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        if (messages := self._script(method)) is not None:
            if not messages:
                raise InvalidInput("no message")
            return messages[0]
        response = self.honest.call(method, request, timeout_s=timeout_s)
        self.heard.append((method, [response]))
        return response

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Iterator[Any]:
        if (messages := self._script(method)) is None:
            messages = list(self.honest.stream(method, request, timeout_s=timeout_s))
            self.heard.append((method, messages))
        yield from messages

    def close(self) -> None:
        self.honest.close()


class _Reader:
    """A client with one open collection of two segments."""

    def __init__(self) -> None:
        self.client = Client(":memory:", threads=1)
        self.transport = _Scripted(self.client._remote.transport)
        object.__setattr__(self.client._remote, "transport", self.transport)
        vectors = np.random.default_rng(1).normal(size=(20, 4))
        self.notes = self.client.create_collection("notes", dim=4, key=KEY, profile="compact", stride=128)
        self.notes.insert(range(12), vectors[:12], [f"payload {i}" for i in range(12)])
        self.notes.insert(range(12, 20), vectors[12:])
        self.transport.heard.clear()
        for method in ("DescribeCollection", "ListCollections", "ReadManifest", "ReadSegmentPart", "Answer"):
            self.ask(method)
        self.heard = self.transport.heard.copy()

    def ask(self, method: str) -> None:
        """Lets the client make such a call."""
        if method == "DescribeCollection":
            self.client.describe("notes")
        elif method == "ListCollections":
            self.client.list_collections()
        elif method == "ReadManifest":
            self.notes.count()
        elif method == "ReadSegmentPart":
            manifest, _ = self.notes._state.current
            store, entry = self.notes._store, manifest.message.segments[0]
            SegmentStore(store._remote, store._id, KEY, store._engine, store._space, PartCache(None), False).open(entry)
        elif method == "Answer":
            self.notes.search(np.ones(4), k=3)
        else:
            raise InvalidInput("its response is not looked at")

    def run(self, data: bytes) -> None:
        if data[:1] == b"\xff":
            return _status(data)
        method = METHODS[data[0] % len(METHODS) if data else 0].name
        self.transport.scripted = (method, unpack(data))
        self.ask(method)
        return None


def _status(data: bytes) -> None:
    """What a server sends instead of a response: a code, the name of an error and a text."""
    code = list(grpc.StatusCode)[data[1] % 17 if len(data) > 1 else 0]
    name, _, text = data[2:].decode("latin-1").partition("|")
    error = error_from_status(code, text, name)
    assert isinstance(error, HesearchError) and len(str(error)) < 1 << 16
    raise error


def responses_target() -> Target:
    reader = _Reader()

    def mutate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        return (mutate_bytes if data[:1] == b"\xff" else _mutate)(rng, data, others)

    return Target(
        name="responses",
        run=reader.run,
        samples=[*(pack(method, messages) for method, messages in reader.heard), b"\xff\x03InvalidInput|dim: got 0"],
        mutate=mutate,
        limit_bytes=wire.MAX_MESSAGE_BYTES,
        close=reader.client.close,
    )

"""A gRPC server that forwards each call to an honest one, and lies about the call that it was told to lie about.

It listens on loopback, on a port that the system gives it. What it returns are messages or, where a lie wants it, bytes
that are none. It keeps a record of what clients sent, call by call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from he_client.transport import Transport
from he_engine.errors import HesearchError, Unavailable
from he_proto import wire
from he_proto.status import ERROR_METADATA, status_of
from he_proto.v1 import hesearch_pb2 as pb
from tests.malicious.world import World, digest

METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["HeSearch"].methods}


class Refused(Exception):
    """A lie that is an error: any status, with or without the name of a class of ours."""

    def __init__(self, code: grpc.StatusCode, name: str = "", message: str = "no") -> None:
        super().__init__(message)
        self.code, self.name, self.message = code, name, message


@dataclass
class Call:
    """One call as the server sees it."""

    method: str
    requests: list[Any]  #: messages; one, unless the method takes a stream
    world: World
    rng: np.random.Generator
    alive: Callable[[], bool]  #: whether the client still waits

    @property
    def request(self) -> Any:
        return self.requests[0]

    def honest(self) -> list[Any]:
        """Copies of what the honest server responds."""
        return self.ask(self.world.main)

    def ask(self, server: Transport, requests: list[Any] | None = None) -> list[Any]:
        """Copies of what a server responds to these requests, or to those of the client."""
        method = METHODS[self.method]
        asked = self.requests if requests is None else requests
        request = iter(asked) if method.client_streaming else asked[0]
        if method.server_streaming:
            return [copy_of(r) for r in server.stream(self.method, request, timeout_s=60)]
        return [copy_of(server.call(self.method, request, timeout_s=60))]


Tell = Callable[[Call], Iterable[Any]]


@dataclass
class Script:
    """The lie to tell. `wanted`: whether a call is one of those that it is about."""

    tell: Tell
    wanted: Callable[[str, Any], bool]
    position: int  #: of the first such call that is lied about
    always: bool  #: whether all later ones are, too
    rng: np.random.Generator
    seen: int = 0
    told: int = 0

    def due(self, method: str, request: Any) -> bool:
        if not self.wanted(method, request):
            return False
        number, self.seen = self.seen, self.seen + 1
        if number < self.position or (number > self.position and not self.always):
            return False
        self.told += 1
        return True


@dataclass
class Recorded:
    """What one call showed: the requests, by which connection and with which metadata they came, how many responses
    were handed over, and whether the client then left."""

    method: str
    requests: list[Any]
    peer: str = ""
    metadata: list[str] = field(default_factory=list)  #: keys alone: ids of requests are new ones
    responses: int = 0
    left: bool = False


@dataclass
class LyingServer:
    """Serves when it has been made."""

    world: World
    script: Script | None = None
    record: list[Recorded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = ThreadPoolExecutor(16, "lie")
        options = [*wire.CHANNEL_OPTIONS[:1], ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(self._calls, options=options)
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hesearch.v1.HeSearch", handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._calls.shutdown()

    def _handler(self, name: str) -> Any:
        message = getattr(pb, METHODS[name].input_type.name)

        def serve(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            received = list(requests)
            keys = sorted(str(key) for key, _ in context.invocation_metadata())
            recorded = Recorded(name, received, context.peer(), keys)
            with self._lock:
                self.record.append(recorded)
                script = self.script
            ended = threading.Event()

            def gone() -> None:
                recorded.left = not ended.is_set()

            context.add_callback(gone)
            try:
                for response in self._responses(name, received, script, context.is_active):
                    yield response
                    recorded.responses += 1
                ended.set()
                return
            except Refused as error:
                code, text, known = error.code, error.message, error.name
            except HesearchError as error:
                status = status_of(error)
                code, text, known = status.code, status.message, status.name
            ended.set()
            if known:
                context.set_trailing_metadata(((ERROR_METADATA, known),))
            context.abort(code, text)

        # Every method is offered as a stream of responses: to a client that expects one it is the same on the wire.
        return grpc.stream_stream_rpc_method_handler(
            serve, request_deserializer=message.FromString, response_serializer=_bytes
        )

    def _responses(
        self, method: str, requests: list[Any], script: Script | None, alive: Callable[[], bool]
    ) -> Iterable[Any]:
        call = Call(method, requests, self.world, np.random.default_rng(0), alive)
        if method == "Answer":
            self._note(call)
        if script is not None:
            with self._lock:
                due = script.due(method, requests[0])
                call.rng = script.rng
            if due:
                return script.tell(call)
        return call.honest()

    def _note(self, call: Call) -> None:
        """What an honest server would have answered, for the watch."""
        raw = b"".join(r.chunk for r in call.requests[1:])
        size = len(raw) // call.request.header.queries
        found: dict[tuple[bytes, bytes], dict[int, bytes]] = {}
        try:
            pieces = call.honest()
        except HesearchError:
            return
        if self.script is None and call.request.header.queries == 1:
            self.world.earlier.append(pieces)
        for piece in pieces:
            at = digest(raw[piece.query * size : (piece.query + 1) * size]), piece.segment_id
            found.setdefault(at, {})[piece.first_block] = piece.residues
        self.world.watch.honest = {at: b"".join(p for _, p in sorted(parts.items())) for at, parts in found.items()}


def copy_of(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _bytes(response: Any) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def silent(call: Call) -> Iterator[Any]:
    """Nothing, for as long as the client waits."""
    while call.alive():
        threading.Event().wait(0.01)
    raise Unavailable("the client has left")
    yield

"""How calls reach a server: over gRPC, or into the same service in this process; which are repeated, and when.

Both transports offer the same two verbs, raise the same errors, and take and give the same messages.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import grpc

from he_engine.errors import HesearchError, Unavailable
from he_proto import wire
from he_proto.status import ERROR_METADATA, error_from_rpc
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_S = 0.1


class Transport(Protocol):
    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        """One response. `request` is a message, or an iterator of messages where the method takes a stream."""

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:
        """Responses as they come; closing the iterator cancels the call."""

    def close(self) -> None: ...


class GrpcTransport:
    """One channel. TLS with the system's roots unless `insecure`."""

    def __init__(self, address: str, *, insecure: bool) -> None:
        self._address, self._insecure = address, insecure
        options = list(wire.CHANNEL_OPTIONS)
        self._channel = (
            grpc.insecure_channel(address, options)
            if insecure
            else grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
        )
        self._stub = hesearch_pb2_grpc.HeSearchStub(self._channel)  # type: ignore[no-untyped-call]

    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._readable(error) from None
        except ValueError:
            raise Unavailable("this client is closed") from None

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:
        try:
            call = getattr(self._stub, method)(request, timeout=timeout_s)
        except ValueError:
            raise Unavailable("this client is closed") from None
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._readable(error) from None
        finally:
            call.cancel()

    def _readable(self, error: Any) -> HesearchError:
        """Our own errors as they are; a connection that gRPC could not make in words that help."""
        ours = any(key == ERROR_METADATA for key, _ in error.trailing_metadata() or ())
        if error.code() is not grpc.StatusCode.UNAVAILABLE or ours:
            return error_from_rpc(error)
        hint = "" if self._insecure else "; this version's servers speak no TLS: give insecure=True (--insecure)"
        return Unavailable(f"no answer from {self._address}; is `hesearch serve` running there?{hint}")

    def close(self) -> None:
        self._channel.close()


@dataclass(frozen=True, slots=True)
class Remote:
    """A server as callers see it: the way to it, the deadline of every call, and what goes into every request.

    `request`: a message; where the method takes several, a function that gives an iterator of them, since each
    attempt sends them from the first one.
    """

    transport: Transport
    timeout_s: float
    context: pb.Context = field(default_factory=pb.Context)  #: of the collection

    def of(self, context: pb.Context) -> Remote:
        """The same server, for this collection."""
        return replace(self, context=context)

    def once(self, method: str, request: Any) -> Any:
        """One response. For calls that must not be repeated blindly."""
        return self.transport.call(method, _message(request), timeout_s=self.timeout_s)

    def call(self, method: str, request: Any) -> Any:
        """One response; asked for again while the server is Unavailable."""
        return self._repeated(lambda: self.once(method, request))

    def stream(self, method: str, request: Any, receive: Callable[[Iterator[Any]], T]) -> T:
        """`receive(responses)`; again, with all responses from the first one, while the server is Unavailable.

        The call has ended when this returns or raises, whether or not all responses were taken.
        """

        def attempt() -> T:
            responses = self.transport.stream(method, _message(request), timeout_s=self.timeout_s)
            with contextlib.closing(responses):
                return receive(responses)

        return self._repeated(attempt)

    def _repeated(self, action: Callable[[], T]) -> T:
        """At most ATTEMPTS times, pauses doubling from 0.1 s with jitter, and never past `timeout_s` from now."""
        end = time.monotonic() + self.timeout_s
        for attempt in range(ATTEMPTS):
            try:
                return action()
            except Unavailable:
                pause = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
                if attempt == ATTEMPTS - 1 or time.monotonic() + pause > end:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")


def _message(request: Any) -> Any:
    return request() if callable(request) else request

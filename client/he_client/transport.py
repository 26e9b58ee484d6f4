"""How calls reach a server: over gRPC, or into the same service in this process; which are repeated, and when.

Both transports offer the same two verbs, raise the same errors, and take and give the same messages.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from he_client.advice import advised
from he_engine.errors import HesearchError, InvalidInput, LimitExceeded, Unavailable
from he_proto import wire
from he_proto.status import ERROR_METADATA, error_from_rpc
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc

T = TypeVar("T")

#: Attempts with about half a minute of pauses: longer than a server takes to start again.
ATTEMPTS = 34
FIRST_ATTEMPTS = 6  #: two and a half seconds, while nothing has come from the server yet: its address may be wrong
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 1.0
REQUEST_ID_METADATA = "x-request-id"  #: of one attempt; the server's log has it, too

#: Of our channels. gRPC's own pauses between attempts to connect grow to two minutes; and without pings it notices
#: only at a call's deadline that the way to the server is cut.
_OPTIONS = (
    *wire.CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the limit of one attempt to connect, handshake and all
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Transport(Protocol):
    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        """One response. `request` is a message, or an iterator of messages where the method takes a stream."""

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:
        """Responses as they come; closing the iterator cancels the call."""

    @property
    def attempts(self) -> int:
        """How often a call is made while the server is Unavailable."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a channel is secured, and who calls by it; the files' paths. Raises InvalidInput for what does not go
    together."""

    insecure: bool = False  #: no TLS
    ca: str = ""  #: authorities that may have signed the server's certificate; empty: the system's
    cert: str = ""  #: this client's certificate
    key: str = ""  #: and its private key, unencrypted
    token: str = ""  #: file with a bearer token, read for each call, so that another one may take its place

    def __post_init__(self) -> None:
        if self.insecure and (self.ca or self.cert or self.key or self.token):
            raise InvalidInput("insecure: got it with ca, cert, key or token, expected no TLS or TLS")
        if bool(self.cert) is not bool(self.key):
            raise InvalidInput("cert, key: got one of the two, expected both or none")

    def channel(self, address: str) -> grpc.Channel:
        if self.insecure:
            return grpc.insecure_channel(address, _OPTIONS)
        files = [_read(field, getattr(self, field)) for field in ("ca", "key", "cert")]
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), _OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of one call. Raises InvalidInput where the token cannot be read."""
        if not self.token:
            return ()
        token = (_read("token", self.token) or b"").decode("ascii", "replace").strip()
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{1,8192}", token):
            raise InvalidInput(f"token: {self.token} holds no bearer token")
        return (("authorization", f"Bearer {token}"),)


def _read(field: str, path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise InvalidInput(f"{field}: {path} cannot be read: {error.strerror}") from None


class GrpcTransport:
    """One channel. Raises InvalidInput (a file of `security` that cannot be read)."""

    def __init__(self, address: str, security: Security) -> None:
        self._address, self._insecure, self._security = address, security.insecure, security
        self._channel = security.channel(address)
        self._stub = hesearch_pb2_grpc.HeSearchStub(self._channel)  # type: ignore[no-untyped-call]
        self._reached = self._closed = False

    @property
    def attempts(self) -> int:
        return 1 if self._closed else ATTEMPTS if self._reached else FIRST_ATTEMPTS

    def call(self, method: str, request: Any, *, timeout_s: float) -> Any:
        try:
            response = getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata())
            self._reached = True
            return response
        except grpc.RpcError as error:
            raise advised(method, self._readable(error)) from None
        except ValueError:
            raise Unavailable("this client is closed") from None

    def stream(self, method: str, request: Any, *, timeout_s: float) -> Generator[Any, None, None]:
        try:
            call = getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata())
        except ValueError:
            raise Unavailable("this client is closed") from None
        try:
            for response in call:
                self._reached = True
                yield response
        except grpc.RpcError as error:
            raise advised(method, self._readable(error)) from None
        finally:
            call.cancel()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (REQUEST_ID_METADATA, uuid.uuid4().hex), *self._security.metadata()

    def _readable(self, error: Any) -> HesearchError:
        """Our own errors as they are; a connection that gRPC could not make in words that help."""
        code, details = error.code(), error.details() or ""
        ours = any(key == ERROR_METADATA for key, _ in error.trailing_metadata() or ())
        self._reached = self._reached or ours or code is grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC there says so
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not ours and "larger than max" in details:
            return LimitExceeded("a message is larger than the server, or this client, admits")
        if code is not grpc.StatusCode.UNAVAILABLE or ours:
            return error_from_rpc(error)
        hint = ""
        if "handshake" in details.lower():
            hint = " The TLS handshake failed: does the server speak TLS, and does ca (--ca) name its authority?"
            hint += " Or it serves plaintext: insecure=True, --insecure (loopback only)"
        elif not self._insecure:
            hint = " It may speak no TLS (insecure=True, --insecure), or ask for a certificate (cert, --cert)"
        else:
            hint = " It may speak TLS (ca, --ca, in place of insecure)"
        return Unavailable(f"no answer from {self._address}; is `hesearch serve` running there?{hint}")

    def close(self) -> None:
        self._closed = True
        self._channel.close()


class Repeats:
    """The pauses of one call: they double from 0.1 to 1 s, with jitter, `transport.attempts` − 1 of them at most, and
    none goes past the call's deadline."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._transport = transport
        self._end_s = time.monotonic() + timeout_s
        self._failures = 0

    @property
    def left_s(self) -> float:
        """Until the deadline."""
        return max(0.0, self._end_s - time.monotonic())

    def pause(self, error: Unavailable) -> None:
        """Waits for the next attempt. Raises `error` where none is left."""
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**self._failures) * random.uniform(0.5, 1.5)
        self._failures += 1
        if self._failures >= self._transport.attempts or pause_s > self.left_s:
            raise error
        time.sleep(pause_s)


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

    def repeats(self) -> Repeats:
        """For one call that begins now."""
        return Repeats(self.transport, self.timeout_s)

    def once(self, method: str, request: Any) -> Any:
        """One response. For calls that must not be repeated blindly."""
        return self.transport.call(method, _message(request), timeout_s=self.timeout_s)

    def call(self, method: str, request: Any) -> Any:
        """One response; asked for again while the server is Unavailable."""
        return self._repeated(lambda timeout_s: self.transport.call(method, _message(request), timeout_s=timeout_s))

    def stream(self, method: str, request: Any, receive: Callable[[Iterator[Any]], T]) -> T:
        """`receive(responses)`; again, with all responses from the first one, while the server is Unavailable.

        The call has ended when this returns or raises, whether or not all responses were taken.
        """

        def attempt(timeout_s: float) -> T:
            responses = self.transport.stream(method, _message(request), timeout_s=timeout_s)
            with contextlib.closing(responses):
                return receive(responses)

        return self._repeated(attempt)

    def _repeated(self, attempt: Callable[[float], T]) -> T:
        """`attempt(seconds left)`, again and again as Repeats says."""
        repeats = self.repeats()
        while True:
            try:
                return attempt(repeats.left_s)
            except Unavailable as error:
                repeats.pause(error)


def _message(request: Any) -> Any:
    return request() if callable(request) else request

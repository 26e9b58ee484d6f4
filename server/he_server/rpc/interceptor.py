"""Watches every call of hesearch.v1 as gRPC serves it, and tells observers when it comes and how it ended.

gRPC asks an interceptor for each call in a context of its own (contextvars), in which it then also runs the method and
iterates its responses: what is set here holds for all of the call, and for no other. What else of a call is done
elsewhere: requests are parsed in gRPC's own thread, and units computed in the workers' (for several calls at a time).

Calls that gRPC itself turns away (a connection beyond the limits, too many calls) have no method that runs, and do not
appear; neither do health checks and reflection.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from he_proto.status import ERROR_METADATA
from he_proto.v1 import hesearch_pb2 as pb
from he_server.rpc.calls import Call, Observer, current

REQUEST_ID_METADATA = "x-request-id"
_TRACE_METADATA = ("traceparent", "tracestate")
_SERVICE = f"/{pb.DESCRIPTOR.services_by_name['HeSearch'].full_name}/"
_CLOCKS_DIFFER_S = 0.05  #: a client cancels when its deadline passes, just before the server's own clock says so

_KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {  # (requests, responses) are streams
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}

Handler = Any  # grpc.RpcMethodHandler, whose stubs know only of one type of method


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Must be the first of a server's interceptors, so that it sees what the others do."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def intercept_service(self, continuation: Callable[[Any], Handler], details: Any) -> Handler:
        handler = continuation(details)
        if not details.method.startswith(_SERVICE):
            return handler
        call = _arrived(details, known=handler is not None)
        current.set(call)
        for observer in self._observers:
            observer.began(call)
        watched = _Watched(call, self._observers)
        if handler is None:
            watched.end("UNIMPLEMENTED")
            return None
        return watched.handler(handler)


def _arrived(details: Any, *, known: bool) -> Call:
    metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
    request_id = metadata.get(REQUEST_ID_METADATA, "")
    if not re.fullmatch("[0-9a-f]{32}", request_id):
        request_id = uuid.uuid4().hex
    trace = {key: metadata[key] for key in _TRACE_METADATA if key in metadata}
    return Call(details.method.removeprefix(_SERVICE) if known else "unknown", request_id, trace)


class _Watched:
    """One call's method, with its sizes counted and its end noticed."""

    def __init__(self, call: Call, observers: Sequence[Observer]) -> None:
        self._call, self._observers = call, observers
        self._receives = False  #: a stream of requests
        self._ended: _EndNoticed | None = None

    def end(self, code: str, reason: str = "") -> None:
        """The first one counts. Lets go of the requests: they hold their parser, and so this."""
        self._ended = None
        if self._call.code:
            return
        self._call.end(code, reason)
        for observer in self._observers:
            observer.ended(self._call)

    def handler(self, handler: Handler) -> Handler:
        self._receives = handler.request_streaming
        # Constants: Python's cache of attributes keeps up to 4,096 names, and each that is composed anew is another.
        kind, make = _KINDS[handler.request_streaming, handler.response_streaming]
        method = getattr(handler, kind)
        return make(
            self._streaming(method) if handler.response_streaming else self._unary(method),
            self._received(handler.request_deserializer),
            self._sent(handler.response_serializer, last=not handler.response_streaming),
        )

    # ---- sizes -------------------------------------------------------------------------------------------
    def _received(self, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def parsed(message: bytes) -> Any:
            self._call.received_bytes += len(message)
            try:
                return parse(message)
            except Exception:  # gRPC ends the call, in most cases without the method
                self.end("INTERNAL")
                raise

        return parsed

    def _sent(self, serialise: Callable[[Any], bytes], *, last: bool) -> Callable[[Any], bytes]:
        def serialised(message: Any) -> bytes:
            data = serialise(message)
            self._call.sent_bytes += len(data)
            if last:
                self.end("OK")
            return data

        return serialised

    # ---- the end -----------------------------------------------------------------------------------------
    def _unary(self, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            request = self._requests(request)
            try:
                response = method(request, context)
            except BaseException:
                self._failed(context)
                raise
            if not context.is_active():
                self._failed(context)
            return response  # its bytes are counted next, and then it has ended

        return call

    def _streaming(self, method: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            request = self._requests(request)
            try:
                yield from method(request, context)
            except BaseException:  # also GeneratorExit: gRPC drops the responses of a client that has gone
                self._failed(context)
                raise
            if not context.is_active():
                self._failed(context)
            self.end("OK")

        return call

    def _requests(self, request: Any) -> Any:
        if not self._receives:
            return request
        self._ended = _EndNoticed(request)
        return self._ended

    def _failed(self, context: Any) -> None:
        if self._ended:
            self._ended.settle()
        if not context.is_active():
            late = (context.time_remaining() or 0.0) < _CLOCKS_DIFFER_S
            self.end("DEADLINE_EXCEEDED" if late else "CANCELLED")
            return
        code = context.code()
        reasons = [value for key, value in context.trailing_metadata() or () if key == ERROR_METADATA]
        self.end("UNKNOWN" if code is None else code.name, reasons[0] if reasons else "")


class _EndNoticed:
    """A stream of requests, and whether its end has been seen.

    gRPC ends the stream of a call that its client cancels, and only then says that the call is cancelled; in between it
    looks as if the client had sent too little.
    """

    def __init__(self, requests: Iterator[Any]) -> None:
        self._requests = requests
        self._over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            self._over = True
            raise

    def settle(self) -> None:
        """If the stream has ended, gRPC is asked for more: it answers after it has said why there is none."""
        if self._over:
            try:
                next(self._requests, None)
            except Exception as error:
                error.__traceback__ = error.__context__ = None  # gRPC keeps it with the call, whose frames these are

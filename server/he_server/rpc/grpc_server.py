"""A Service on a port: gRPC with health checking and, if wanted, reflection. All that knows of gRPC on the server is
here, and in tls.

Without TLS it listens on loopback only, and only when told so.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from he_engine.errors import InvalidInput, MissingExtra
from he_proto import wire
from he_proto.status import ERROR_METADATA, WireError, status_of
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Caller
from he_server.config import ServerConfig
from he_server.rpc.admission import Admission, Gate
from he_server.rpc.calls import current
from he_server.rpc.idle import CallWatch
from he_server.rpc.listening import require_listenable, split_address, taken
from he_server.rpc.tls import Certificates
from he_server.service import Service

_Streaming = Callable[[Any, grpc.ServicerContext], Iterator[Any]]

_log = logging.getLogger(__name__)
_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["HeSearch"]
_SPARE_CALLS = 8  #: beyond those that are served or wait: to check health, and to say no
_FEW = 4  #: calls of a method whose calls may last, and is not ours
_HANDSHAKE_S = 20
_WITH_MANIFEST = frozenset({"CreateCollection", "CommitManifest", "ReadManifest"})  #: have messages of many MiB


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    def ms(seconds: float) -> int:
        return round(1000 * seconds)

    options = {
        # gRPC lets two servers share a port unless told otherwise, and each would then get some of the calls.
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_send_message_length": wire.MAX_MESSAGE_BYTES,
        "grpc.server_handshake_timeout_ms": ms(_HANDSHAKE_S),
        "grpc.keepalive_time_ms": ms(config.keepalive_s),
        "grpc.keepalive_timeout_ms": ms(config.keepalive_timeout_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_recv_ping_interval_without_data_ms": ms(config.min_ping_s),
    }
    if config.connection_age_s:  # a call that runs at that age has all the time that any call has
        options["grpc.max_connection_age_ms"] = ms(config.connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = ms(config.max_call_s)
    return list(options.items())


class GrpcServer:
    """Serves when it has been made. Does not own the Service.

    Raises InvalidInput (an address that may not be listened on, a certificate that cannot be served), Unavailable (an
    address that is taken), MissingExtra.
    """

    def __init__(self, service: Service, interceptors: Sequence[Any] = ()) -> None:
        config = service.config
        require_listenable(config)
        host, _ = split_address(config.listen)
        self.certificates = Certificates(config) if config.tls_cert else None
        calls = Admission.most_calls(config) + 2 * _FEW + _SPARE_CALLS
        self._calls = ThreadPoolExecutor(calls, thread_name_prefix="call")
        self._server = grpc.server(
            self._calls,
            interceptors=list(interceptors),
            options=_options(config),
            maximum_concurrent_rpcs=calls,
        )
        self._watch = CallWatch(config.idle_s, config.max_call_s)
        self._health = _add_health(self._server, self._watch)
        if config.reflection:
            _add_reflection(self._server, self._watch)
        handlers = Adapter(service, self._watch).handlers
        generic = grpc.method_handlers_generic_handler(_DESCRIPTOR.full_name, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        try:
            if self.certificates:
                self.port = self._server.add_secure_port(config.listen, self.certificates.credentials())
            else:
                self.port = self._server.add_insecure_port(config.listen)
        except RuntimeError:
            self._watch.close()
            raise taken(config.listen) from None
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuses new calls, gives running ones `grace_s`, cancels the rest; returns when none is left."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._calls.shutdown()  # a cancelled call ends in its own thread
        self._watch.close()


def _add_health(server: grpc.Server, watch: CallWatch) -> Any:
    """Health checking; the servicer. Raises MissingExtra."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    servicer: Any = health.HealthServicer(experimental_non_blocking=False)
    servicer.Watch = _few("Watch", servicer.Watch, watch)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set(_DESCRIPTOR.full_name, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def _add_reflection(server: grpc.Server, watch: CallWatch) -> None:
    """Raises MissingExtra."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    servicer: Any = reflection.ReflectionServicer((_DESCRIPTOR.full_name, reflection.SERVICE_NAME))
    name = "ServerReflectionInfo"
    servicer.ServerReflectionInfo = _few(name, servicer.ServerReflectionInfo, watch)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)


def _few(name: str, method: _Streaming, watch: CallWatch) -> _Streaming:
    """`method` for _FEW calls at a time, since its calls may last."""
    gate = Gate(f"{name} calls", _FEW, waiting=0, wait_s=0)

    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            with gate.taken(), watch.calling(context.cancel):
                yield from method(request, context)
            return
        except Exception as error:
            status = _noticed(name, error, context)
        _abort(status, context)

    return call


def _missing(error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra(f"{error.name} is not installed: pip install '.[server]'")


class Adapter:
    """`handlers` of all methods, each the Service's method of the same name: with a place, no longer than a call may
    take, errors mapped.

    Every method is offered as one that receives a stream, though most get one message by it: so gRPC leaves a message
    where it is until the call has its place.
    """

    def __init__(self, service: Service, watch: CallWatch) -> None:
        self._watch = watch
        self._access = service.access
        self._admission = service.admission
        self._message_bytes = service.config.max_message_bytes
        self.handlers = {method.name: self._handler(method, service) for method in _DESCRIPTOR.methods}

    def _handler(self, method: Any, service: Service) -> Any:
        serve = getattr(service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        types = {
            "request_deserializer": getattr(pb, method.input_type.name).FromString,
            "response_serializer": getattr(pb, method.output_type.name).SerializeToString,
        }
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method, serve), **types)
        return grpc.stream_unary_rpc_method_handler(self._unary(method, serve), **types)

    def _unary(
        self, method: Any, serve: Callable[[Any, Any], Any]
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            try:
                with self._admitted(method, requests, context) as (request, caller):
                    response = serve(request, caller)
                    caller.settle()
                    return response
            except Exception as error:
                status = _noticed(method.name, error, context)
            _abort(status, context)

        return call

    def _streaming(self, method: Any, serve: Callable[[Any, Any], Iterator[Any]]) -> _Streaming:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with self._admitted(method, requests, context) as (request, caller):
                    for response in serve(request, caller):
                        caller.settle()
                        with self._watch.waiting(context.cancel):
                            yield response
                    caller.settle()
                return
            except Exception as error:
                status = _noticed(method.name, error, context)
            _abort(status, context)

        return call

    @contextlib.contextmanager
    def _admitted(
        self, method: Any, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[tuple[Any, Caller]]:
        """A block that has a place; what it gets is the request, or all of them, and who makes it. Raises
        Unauthenticated, QuotaExceeded, Overloaded, InvalidInput."""
        principal = self._access.authentication.principal(context)
        self._access.count_call(principal)
        observed = current.get()
        request_id = observed.request_id if observed else uuid.uuid4().hex
        caller = Caller(principal, request_id, context.is_active, lambda: _remaining_s(context))
        with contextlib.ExitStack() as held:
            held.enter_context(self._admission.place(method.name).taken())
            held.enter_context(self._watch.calling(context.cancel))
            if method.name in _WITH_MANIFEST:
                held.enter_context(self._admission.inflight_bytes.taken(self._message_bytes))
            received = self._watch.received(requests, context.cancel)
            if method.client_streaming:
                yield received, caller
                return
            if (request := next(received, None)) is None:
                raise InvalidInput("request: got none, expected a message")
            yield request, caller


def _remaining_s(context: grpc.ServicerContext) -> float:
    left = context.time_remaining()
    return math.inf if left is None else float(left)


def _noticed(name: str, error: Exception, context: grpc.ServicerContext) -> WireError:
    """What the client may know of an error; the log gets the rest, unless the client has just gone.

    Whoever calls this keeps the status and not the error, whose frames have all of the call; and gRPC, which keeps its
    own errors with the call, none of the frames.
    """
    status = status_of(error)
    if not status.name and context.is_active():
        _log.error("%s failed", name, exc_info=error)
    error.__traceback__ = None
    return status


def _abort(status: WireError, context: grpc.ServicerContext) -> NoReturn:
    if status.name:
        context.set_trailing_metadata(((ERROR_METADATA, status.name),))
    context.abort(status.code, status.message)
    raise AssertionError("unreachable: abort raises")

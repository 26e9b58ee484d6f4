"""A Service on a port: gRPC with health checking and reflection. All that knows of gRPC on the server is here, and in
tls.

Without TLS it listens on loopback only, and only when told so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from he_engine.errors import MissingExtra, Unavailable
from he_proto import wire
from he_proto.status import ERROR_METADATA, status_of
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc
from he_server.config import ServerConfig
from he_server.rpc.admission import Admission
from he_server.rpc.idle import CallWatch
from he_server.rpc.listening import require_listenable, split_address
from he_server.rpc.tls import Certificates
from he_server.service import Service

_log = logging.getLogger(__name__)
_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["HeSearch"]
_SPARE_CALLS = 8  #: beyond those that are served or wait: to check health, and to say no
_HANDSHAKE_S = 20


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
        calls = Admission.most_calls(config) + _SPARE_CALLS
        self._calls = ThreadPoolExecutor(calls, thread_name_prefix="call")
        self._server = grpc.server(
            self._calls,
            interceptors=list(interceptors),
            options=_options(config),
            maximum_concurrent_rpcs=calls,
        )
        self._health = _add_extras(self._server)
        try:
            if self.certificates:
                self.port = self._server.add_secure_port(config.listen, self.certificates.credentials())
            else:
                self.port = self._server.add_insecure_port(config.listen)
        except RuntimeError:
            raise Unavailable(f"listen: {config.listen} is taken, or not an address of this machine") from None
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        register = hesearch_pb2_grpc.add_HeSearchServicer_to_server
        self._watch = CallWatch(config.idle_s, config.max_call_s)
        register(Adapter(service, self._watch), self._server)  # type: ignore[no-untyped-call]
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuses new calls, gives running ones `grace_s`, cancels the rest; returns when none is left."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._calls.shutdown()  # a cancelled call ends in its own thread
        self._watch.close()


def _add_extras(server: grpc.Server) -> Any:
    """Health checking and reflection; the health servicer. Raises MissingExtra."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed: pip install '.[server]'") from error
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set(_DESCRIPTOR.full_name, health_pb2.HealthCheckResponse.SERVING)
    names = (_DESCRIPTOR.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return servicer


class Adapter:
    """The generated servicer's methods, each the Service's method of the same name: with a place, no longer than a
    call may take, errors mapped."""

    def __init__(self, service: Service, watch: CallWatch) -> None:
        self._watch = watch
        self._admission = service.admission
        for method in _DESCRIPTOR.methods:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
            wrap = self._streaming if method.server_streaming else self._unary
            setattr(self, method.name, wrap(method.name, method.client_streaming, getattr(service, name)))

    def _unary(
        self, name: str, receives: bool, method: Callable[[Any, Any], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        place = self._admission.place(name)

        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                with place.taken(), self._watch.calling(context.cancel):
                    return method(self._watch.received(request, context.cancel) if receives else request, context)
            except Exception as error:
                caught = error
            _fail(name, caught, context)

        return call

    def _streaming(
        self, name: str, receives: bool, method: Callable[[Any, Any], Iterator[Any]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        place = self._admission.place(name)

        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with place.taken(), self._watch.calling(context.cancel):
                    requests = self._watch.received(request, context.cancel) if receives else request
                    for response in method(requests, context):
                        with self._watch.waiting(context.cancel):
                            yield response
                return
            except Exception as error:
                caught = error
            _fail(name, caught, context)

        return call


def _fail(name: str, error: Exception, context: grpc.ServicerContext) -> NoReturn:
    """Ends the call with what the client may know; the log gets the rest, unless the client has just gone."""
    status = status_of(error)
    if not status.name and context.is_active():
        _log.error("%s failed", name, exc_info=error)
    if status.name:
        context.set_trailing_metadata(((ERROR_METADATA, status.name),))
    context.abort(status.code, status.message)
    raise AssertionError("unreachable: abort raises")

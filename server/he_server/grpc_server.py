"""A Service on a port: gRPC with health checking and reflection. All that knows of gRPC on the server is here.

Without TLS it listens on loopback only, and only when told so.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from he_engine.errors import InvalidInput, MissingExtra, Unavailable
from he_proto import wire
from he_proto.status import ERROR_METADATA, status_of
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.v1 import hesearch_pb2_grpc
from he_server.idle import IdleWatch
from he_server.service import Service

_log = logging.getLogger(__name__)
_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["HeSearch"]
#: gRPC lets two servers share a port unless told otherwise, and each would then get some of the calls.
_OPTIONS = (*wire.CHANNEL_OPTIONS, ("grpc.so_reuseport", 0))
_SPARE_CALLS = 8  #: beyond those that are served or wait: to check health, and to say no


def split_address(listen: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises InvalidInput."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})", listen)
    if match is None or int(match[2]) > 65535:
        raise InvalidInput(f"listen: got {listen!r}, expected host:port, for example 127.0.0.1:50051")
    return match[1].strip("[]"), int(match[2])


def require_loopback(listen: str, *, insecure: bool) -> None:
    """Raises InvalidInput unless plaintext is wanted, and every address of the host is this machine's own."""
    host, port = split_address(listen)
    if not insecure:
        raise InvalidInput(
            "listen: this version has no TLS; give --insecure to serve plaintext on loopback, and reach it from "
            "elsewhere through a tunnel that encrypts"
        )
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        raise InvalidInput(f"listen: the host {host!r} has no address") from None
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found):
        raise InvalidInput(
            f"listen: got {host!r}, but plaintext (--insecure) is served on loopback only: 127.0.0.1 or ::1"
        )


class GrpcServer:
    """Serves when it has been made. Does not own the Service.

    Raises InvalidInput (an address that may not be listened on), Unavailable (one that is taken), MissingExtra.
    """

    def __init__(self, service: Service) -> None:
        config = service.config
        require_loopback(config.listen, insecure=config.insecure)
        host, _ = split_address(config.listen)
        calls = 2 * config.calls + _SPARE_CALLS
        self._calls = ThreadPoolExecutor(calls, thread_name_prefix="call")
        self._server = grpc.server(
            self._calls,
            options=_OPTIONS,
            maximum_concurrent_rpcs=calls,
        )
        self._health = _add_extras(self._server)
        try:
            self.port = self._server.add_insecure_port(config.listen)
        except RuntimeError:
            raise Unavailable(f"listen: {config.listen} is taken, or not an address of this machine") from None
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        register = hesearch_pb2_grpc.add_HeSearchServicer_to_server
        self._watch = IdleWatch(config.idle_s)
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
    """The generated servicer's nine methods, each the Service's method of the same name, errors mapped.

    At most `config.calls` at the same time, and as many that wait for up to `config.wait_s`; the next one is told
    Unavailable, so that clients try again.
    """

    def __init__(self, service: Service, watch: IdleWatch) -> None:
        self._watch = watch
        self._limit = service.config.calls
        self._wait_s = service.config.wait_s
        self._free = threading.BoundedSemaphore(self._limit)
        self._queue = threading.BoundedSemaphore(self._limit)
        for method in _DESCRIPTOR.methods:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
            wrap = self._streaming if method.server_streaming else self._unary
            setattr(self, method.name, wrap(method.name, method.client_streaming, getattr(service, name)))

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Raises Unavailable if all are taken and none becomes free in time."""
        if not (self._free.acquire(blocking=False) or self._waited()):
            raise Unavailable(f"calls: this server serves {self._limit} at the same time, and no more now; try again")
        try:
            yield
        finally:
            self._free.release()

    def _waited(self) -> bool:
        """Whether a place became free."""
        if not self._queue.acquire(blocking=False):
            return False
        try:
            return self._free.acquire(timeout=self._wait_s)
        finally:
            self._queue.release()

    def _unary(
        self, name: str, receives: bool, method: Callable[[Any, Any], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                with self._place():
                    return method(self._watch.received(request, context.cancel) if receives else request, context)
            except Exception as error:
                caught = error
            _fail(name, caught, context)

        return call

    def _streaming(
        self, name: str, receives: bool, method: Callable[[Any, Any], Iterator[Any]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                with self._place():
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

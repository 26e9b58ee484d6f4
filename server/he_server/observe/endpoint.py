"""Where Prometheus finds the metrics: plaintext on loopback; elsewhere TLS, and each request is one of a principal.

On loopback every process of the machine may read them. Elsewhere a scraper shows a certificate or a token, as callers
do, policies decide `ReadMetrics` of the server, and the audit log has a line of each request.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from he_engine.errors import (
    HesearchError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unavailable,
)
from he_server.access.access import Access, Caller
from he_server.access.resources import Server
from he_server.config import ServerConfig
from he_server.rpc.listening import is_loopback, split_address

_REQUEST_S = 5.0  #: for a scraper to say who it is and what it wants, and to take it
CONNECTIONS = 32  #: at a time, each with a thread; more are closed, as nobody has said yet who they are
_STATUS = {Unauthenticated: 401, PermissionDenied: 403, NotFound: 404, QuotaExceeded: 429}

_log = logging.getLogger(__name__)


class MetricsEndpoint:
    """GET /metrics on `config.metrics`, from when it is made. A context manager that ends it.

    Raises InvalidInput (no such address; one that others reach without a certificate to serve), Unavailable (it is
    taken).
    """

    def __init__(self, config: ServerConfig, registry: CollectorRegistry, access: Access) -> None:
        listen = config.metrics
        try:
            host, port = split_address(listen)
        except InvalidInput:
            raise InvalidInput(f"metrics: got {listen!r}, expected host:port, for example 127.0.0.1:9464") from None
        if is_private := not is_loopback(host, port):
            _tls(config)
        attributes = {"registry": registry, "access": access if is_private else None, "tenant": config.operating_tenant}
        try:
            self._server = _Server(host, port, type("Handler", (_Handler,), attributes), config if is_private else None)
        except OSError:
            raise Unavailable(f"metrics: {listen} is taken, or not an address of this machine") from None
        self.address = f"{listen.rpartition(':')[0]}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _tls(config: ServerConfig) -> ssl.SSLContext:
    """As calls have it: TLS 1.3, with clients' certificates where there is an authority. Raises InvalidInput."""
    if not config.tls_cert:
        raise InvalidInput(
            f"metrics: got {config.metrics!r}, which others can reach; without tls_cert expected 127.0.0.1 or ::1"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_client_ca:
            context.load_verify_locations(config.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError):
        raise InvalidInput("metrics: tls_cert, tls_key and tls_client_ca cannot be served") from None
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler], tls: ServerConfig | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls = tls
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._ends_s: dict[socket.socket, float] = {}  # by connection (a second descriptor: TLS takes the first)
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def service_actions(self) -> None:
        """Every half a second: a connection that is over its time ends, wherever it is: its thread meets the end."""
        for connection, end_s in list(self._ends_s.items()):
            if time.monotonic() > end_s:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the thread of the connection. The files of TLS are read for each, so a new certificate needs no signal."""
        # What fails: the connection, the handshake, or files that are just replaced.
        with contextlib.suppress(OSError, InvalidInput), request.dup() as connection:
            self._ends_s[connection] = time.monotonic() + _REQUEST_S
            try:
                if self._tls is None:
                    super().finish_request(request, client_address)
                    return
                with _tls(self._tls).wrap_socket(request, server_side=True) as private:
                    super().finish_request(private, client_address)
            finally:
                del self._ends_s[connection]

    def handle_error(self, *_: object) -> None:
        _log.exception("metrics: a request failed")


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    access: Access | None  #: None: on loopback, where nothing is asked
    tenant: str  #: that operates the server

    def do_GET(self) -> None:
        try:
            if self.access is not None:
                self._require(self.access)
        except HesearchError as error:
            self.send_error(_STATUS.get(type(error), 503))
            return
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        body = generate_latest(self.registry)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _require(self, access: Access) -> None:
        """Raises Unauthenticated, QuotaExceeded, PermissionDenied, ReadOnlyError, Unavailable; OSError where nobody is
        there any more."""
        try:
            shown = self.connection.getpeercert(binary_form=True)
        except ValueError:  # TLS has met an error, such as an end
            raise ConnectionAbortedError from None
        seen = {"transport_security_type": [b"ssl"]}
        if shown:
            seen["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(shown).encode()]
        principal = access.authentication.of(seen, self.headers.get_all("Authorization", []))
        access.count_call(principal)
        access.require(Caller(principal), "ReadMetrics", Server(self.tenant))

    def version_string(self) -> str:
        return "hesearch"

    def log_message(self, *_: object) -> None: ...

"""Traces for OpenTelemetry: a span for each call, with one below it for each step of its work.

They are made when a call has ended, from what was observed of it, and sent in the background to a collector (OTLP over
gRPC). A span has the method, code, sizes and request id of its call, and no more. The caller's `traceparent` is its
parent, where there is one, and decides whether the call is traced. Imported only where traces are on.
"""

from __future__ import annotations

import importlib.metadata
import logging
from urllib.parse import urlsplit

from he_engine.errors import InvalidInput, MissingExtra
from he_server.rpc.calls import Call

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise MissingExtra(f"traces: {error.name} is not installed: pip install '.[otel]'") from error

_EXPORT_S = 3.0  #: for a batch; what a collector does not take until then is lost
_SERVICE = "hesearch.v1.HeSearch"


class Tracing:
    """An observer. `endpoint`: http://HOST:PORT, or https:// for TLS. Raises InvalidInput. `close` sends the rest."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"traces: got {endpoint!r}, expected http://HOST:PORT or https://HOST:PORT")
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # it warns at every attempt
        exporter = OTLPSpanExporter(endpoint, insecure=parts.scheme == "http", timeout=_EXPORT_S)
        version = importlib.metadata.version("hesearch")
        resource = Resource({"service.name": "hesearch", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("he_server", version)
        self._propagator = TraceContextTextMapPropagator()

    def began(self, call: Call) -> None: ...

    def ended(self, call: Call) -> None:
        span = self._tracer.start_span(
            f"{_SERVICE}/{call.method}",
            self._propagator.extract(call.trace),
            trace.SpanKind.SERVER,
            {
                "rpc.system": "grpc",
                "rpc.service": _SERVICE,
                "rpc.method": call.method,
                "rpc.grpc.status_code": call.code,
                "hesearch.request_id": call.request_id,
                "hesearch.received_bytes": call.received_bytes,
                "hesearch.sent_bytes": call.sent_bytes,
            },
            start_time=call.began_ns,
        )
        if call.reason:
            span.set_attribute("error.type", call.reason)
        if call.code != "OK":
            span.set_status(trace.StatusCode.ERROR)
        below = trace.set_span_in_context(span)
        for step in call.steps:
            child = self._tracer.start_span(step.name, below, start_time=step.began_ns)
            child.end(step.began_ns + round(1e9 * step.seconds))
        span.end(call.began_ns + round(1e9 * call.seconds))

    def close(self) -> None:
        """Waits for what is still to be sent, _EXPORT_S at most."""
        self._provider.shutdown()

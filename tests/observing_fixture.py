"""A server on loopback with all that watches it, and what there is to look for in what it wrote."""

from __future__ import annotations

import contextlib
import json
import logging
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from he_server.config import ServerConfig
from he_server.observe import logs
from he_server.observe.observing import Observing
from he_server.rpc.grpc_server import GrpcServer
from he_server.service import Service
from tests.server_fixture import Endpoint


@dataclass
class Observed(Endpoint):
    """An Endpoint that knows where its metrics are."""

    service: Service
    address: str
    metrics_address: str

    def __post_init__(self) -> None:
        Endpoint.__init__(self, self.service, self.address)

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=60) as response:
            return str(response.read().decode())

    def value(self, sample: str) -> float:
        """Of one sample, named with its labels as Prometheus writes them; 0 where there is none."""
        lines = (line.rpartition(" ") for line in self.scrape().splitlines() if not line.startswith("#"))
        return next((float(value) for name, _, value in lines if name == sample), 0.0)


@contextlib.contextmanager
def observed(folder: Path, *, make_service: Callable[..., Service] = Service, **settings: Any) -> Iterator[Observed]:
    """With metrics on a free port, and a log of level info, unless `settings` say otherwise."""
    defaults: dict[str, Any] = {"metrics": "127.0.0.1:0", "log_level": "info", "threads": 2, "insecure": True}
    config = ServerConfig(data=folder, listen="127.0.0.1:0", **defaults | settings)
    before = logging.getLogger().handlers[:]
    logs.configure(config)
    try:
        with Observing(config) as observing, make_service(config, observing.engine_maker) as service:
            server = GrpcServer(service, observing.interceptors)
            endpoint = Observed(service, server.address, observing.serve_metrics(service))
            try:
                yield endpoint
            finally:
                endpoint.close()
                server.stop(5.0)
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("he_server").setLevel(logging.NOTSET)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What a log of JSON holds since the last look."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector on loopback, which keeps what it is sent. A context manager that ends it."""

    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: otlp.ExportTraceServiceRequest, _: object) -> otlp.ExportTraceServiceResponse:
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()

    def spans(self) -> list[Any]:
        return [
            s for r in self.requests for spans in r.resource_spans for scope in spans.scope_spans for s in scope.spans
        ]

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

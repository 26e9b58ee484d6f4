"""All that watches a server, as its configuration wants it: access log, metrics, traces.

with Observing(config) as observing, Service(config, observing.engine_maker) as service:
    server = GrpcServer(service, observing.interceptors)
    observing.serve_metrics(service)
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import grpc

from he_engine.errors import MissingExtra
from he_server.config import ServerConfig
from he_server.observe.logs import AccessLog
from he_server.rpc.calls import Observer
from he_server.rpc.interceptor import CallInterceptor
from he_server.search.engines import EngineMaker, engine_maker
from he_server.service import Service


class Observing:
    """A context manager that ends the endpoint of the metrics and sends what is left of the traces.

    Raises MissingExtra (prometheus_client or OpenTelemetry is wanted and not installed), InvalidInput (the OTLP
    endpoint is none).
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._opened = contextlib.ExitStack()
        self.engine_maker: EngineMaker = engine_maker(config)
        observers: list[Observer] = [AccessLog()]
        if config.metrics:
            try:
                from he_server.observe.metrics import Metrics
            except ModuleNotFoundError as error:
                raise MissingExtra(f"metrics: {error.name} is not installed: pip install '.[server]'") from error
            self._metrics = Metrics()
            self.engine_maker = self._metrics.measured(self.engine_maker)
            observers.append(self._metrics)
        if config.traces:
            from he_server.observe.tracing import Tracing

            tracing = Tracing(config.traces)
            self._opened.callback(tracing.close)
            observers.append(tracing)
        self.interceptors: list[grpc.ServerInterceptor[Any, Any]] = [CallInterceptor(observers)]

    def serve_metrics(self, service: Service) -> str:
        """The host:port of the metrics, those of this service's store included; empty where they are off.

        Raises InvalidInput (no such address, or one that may not be), Unavailable (it is taken). To be called before
        `service` is closed.
        """
        if not self._config.metrics:
            return ""
        from he_server.observe.endpoint import MetricsEndpoint

        self._metrics.watch(service)
        endpoint = MetricsEndpoint(self._config, self._metrics.registry, service.access)
        return self._opened.enter_context(endpoint).address

    def __enter__(self) -> Observing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

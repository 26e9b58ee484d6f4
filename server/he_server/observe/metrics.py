"""Metrics for Prometheus: of calls, of the work done for them, of the store and of the process.

Labels are the names of methods, of status codes and of error classes. What belongs to one caller, one collection or one
call (a name, an id) is no label: it would say who does what, and their number has no bound.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from he_engine.engine import Buffer, IndexFile, ServerEngine
from he_engine.errors import HesearchError
from he_proto.v1 import hesearch_pb2 as pb
from he_proto.wire import FORMAT_VERSION, PublicParameters
from he_server.rpc.calls import Call
from he_server.search.engines import EngineMaker
from he_server.service import Service
from he_server.storage.tally import COUNTS

_METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["HeSearch"].methods]
_CALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WORK_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)


_CLUSTER = {
    "cluster_actors": "Actors that are to hold shards; without a cluster, 0.",
    "cluster_actors_replying": "Those that replied when they were last asked, some seconds ago.",
    "cluster_index_bytes": "Indexes in their memory.",
    "cluster_object_failures": "Requests of theirs to object storage that failed, since each began.",
}


class Metrics:
    """All metrics of one server, in a registry of their own. An observer of calls."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)

        def counter(name: str, doc: str, *labels: str) -> Counter:
            return Counter(f"hesearch_{name}", doc, labels, registry=registry)

        def histogram(name: str, doc: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"hesearch_{name}", doc, labels, registry=registry, buckets=buckets)

        self._calls = counter("calls", "Calls that have ended.", "method", "code")
        self._refused = counter("calls_refused", "Calls that ended with an error, by its class or code.", "reason")
        self._seconds = histogram("call_seconds", "From a call's arrival to its end.", _CALL_S, "method")
        self._received = counter("received_bytes", "Messages received.", "method")
        self._sent = counter("sent_bytes", "Messages sent.", "method")
        self._in_flight = Gauge("hesearch_calls_in_flight", "Calls under way.", ["method"], registry=registry)
        for method in _METHODS:  # a rate needs a first value, and an alert something to look at
            self._calls.labels(method, "OK")
            for one in (self._seconds, self._received, self._sent, self._in_flight):
                one.labels(method)
        for reason in ("Overloaded", "ReadOnlyError", "TamperedDataError", "INTERNAL"):
            self._refused.labels(reason)
        self._units = histogram("unit_seconds", "Computing one unit of an index, on one thread.", _WORK_S)
        self._unit_queries = counter("unit_queries", "Queries that units were computed for.")
        self._unit_bytes = counter("unit_index_bytes", "Index bytes of units, read once for all their queries.")
        self._steps = {
            "sync": histogram("sync_seconds", "Bringing a file or folder to the disk (fsync).", _WORK_S),
            "commit": histogram("commit_seconds", "Committing a transaction of the catalogue.", _WORK_S),
            "scan": histogram("scan_seconds", "One Answer call, from its queries to its last answer.", _CALL_S),
        }
        info = Info("hesearch_build", "What is running.", registry=registry)
        version = importlib.metadata.version("hesearch")
        info.info({"version": version, "python": platform.python_version(), "format_version": str(FORMAT_VERSION)})
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def began(self, call: Call) -> None:
        self._in_flight.labels(call.method).inc()

    def ended(self, call: Call) -> None:
        self._in_flight.labels(call.method).dec()
        self._calls.labels(call.method, call.code).inc()
        self._seconds.labels(call.method).observe(call.seconds)
        self._received.labels(call.method).inc(call.received_bytes)
        self._sent.labels(call.method).inc(call.sent_bytes)
        if call.code != "OK":
            self._refused.labels(call.reason or call.code).inc()
        for step in call.steps:
            if histogram := self._steps.get(step.name):
                histogram.observe(step.seconds)

    def computed(self, seconds: float, queries: int, index_bytes: int) -> None:
        """One unit."""
        self._units.observe(seconds)
        self._unit_queries.inc(queries)
        self._unit_bytes.inc(index_bytes)

    def measured(self, make: EngineMaker) -> EngineMaker:
        """Engines as `make` makes them, whose units are counted here."""

        def made(parameters: PublicParameters) -> ServerEngine:
            return cast(ServerEngine, _MeasuredEngine(make(parameters), self))

        return made

    def watch(self, service: Service) -> None:
        """From now on each scrape looks at this service, until it is closed."""
        self.registry.register(_StoreCollector(service))


class _MeasuredEngine:
    """A ServerEngine that does what another does."""

    def __init__(self, engine: ServerEngine, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def answer(self, index: IndexFile, first_block: int, blocks: int, queries: Sequence[Buffer]) -> list[bytes]:
        began = time.perf_counter()
        answers = self._engine.answer(index, first_block, blocks, queries)
        index_bytes = blocks * self._engine.index_bytes_per_block
        self._metrics.computed(time.perf_counter() - began, len(queries), index_bytes)
        return answers


class _StoreCollector(Collector):
    """What the store and the gates hold at the moment of a scrape. Of a store that fails, what does not need it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # the store is not looked at for the names alone

    def collect(self) -> Iterator[Metric]:
        admission, config, store = self._service.admission, self._service.config, self._service.store

        def gauge(name: str, doc: str, value: float) -> Metric:
            return GaugeMetricFamily(f"hesearch_{name}", doc, value)

        yield gauge("answers_in_flight_bytes", "Queries and answers held.", admission.inflight_bytes.used)
        yield gauge("answers_in_flight_bytes_limit", "max_inflight_bytes.", config.max_inflight_bytes)
        yield gauge("scans_in_flight", "Answer calls that are computed.", admission.scans.used)
        yield gauge("scans_limit", "max_scans.", config.max_scans)
        yield gauge("read_only", "1: a sync to the disk failed, no writes are taken.", store.read_only)
        yield gauge("decrypted_index_bytes", "Indexes of a sealed folder held in memory.", store.indexes.held_bytes)
        yield gauge("cached_bytes", "Copies of segments that are on object storage.", store.cached_bytes)
        yield gauge("cached_bytes_limit", "cache_bytes.", config.cache_bytes if config.segments else 0)
        cluster = self._service.answerer.gauges()
        for name, doc in _CLUSTER.items():
            yield gauge(name, doc, cluster.get(name, 0))
        for name, value in store.tally.values().items():
            yield CounterMetricFamily(f"hesearch_{name}", COUNTS[name], value)
        with contextlib.suppress(HesearchError):
            totals = [store.totals(record) for record in store.collections()]
            yield gauge("collections", "Collections stored.", len(totals))
            yield gauge("segments", "Live segments.", sum(t.segments for t in totals))
            yield gauge("blocks", "Blocks of live segments.", sum(t.blocks for t in totals))
            yield gauge("stored_bytes", "Live segments, all parts.", sum(t.stored_bytes for t in totals))
            yield gauge("index_bytes", "Indexes of live segments.", sum(t.index_bytes for t in totals))

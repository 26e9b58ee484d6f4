"""The ten methods of hesearch.v1 as plain Python: protobuf messages in and out, errors raised, no network.

he_server.rpc.grpc_server offers a Service on a port; a client that embeds the server calls it directly. Every
message's format version, name, digest and lengths are checked before anything is read or computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from he_engine.engine import ServerEngine
from he_engine.errors import FormatVersionError, HesearchError, InvalidInput, NotFound, TamperedDataError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.config import ServerConfig
from he_server.rpc.admission import Admission
from he_server.rpc.calls import step
from he_server.rpc.checks import Checks, chunks_after, first_header
from he_server.search.engines import EngineMaker, Engines, engine_maker
from he_server.search.scan import Pace, Scans
from he_server.storage import files, segment_file
from he_server.storage.catalogue import CollectionRecord
from he_server.storage.kek import open_kek
from he_server.storage.segment_file import StoredSegment
from he_server.storage.store import Store


class CallContext(Protocol):
    """What a method may ask about its call; grpc.ServicerContext is one."""

    def is_active(self) -> bool:
        """False once the caller has gone or the deadline has passed."""


class LocalCall:
    """The context of a call within the process: never cancelled."""

    def is_active(self) -> bool:
        return True


class Service:
    """One open data folder, its engines and its threads. Thread-safe; `close` it, or use it as a context manager.

    Raises what Store raises when it opens a folder. All methods raise HesearchErrors only, unless something is
    broken.
    """

    def __init__(self, config: ServerConfig, make_engine: EngineMaker | None = None) -> None:
        self.config = config
        self.admission = Admission(config)
        self._checks = Checks(config)
        self._engines = Engines(make_engine or engine_maker(config))
        self._store = Store(
            config.data,
            kek=open_kek(config.kek) if config.kek else None,
            previous_kek=open_kek(config.previous_kek) if config.previous_kek else None,
            orphan_age_s=config.orphan_age_s,
            index_memory_bytes=config.index_memory_bytes,
            forget=self._engines.forget,
        )
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="answer")
        self._closing = False
        self._scans = Scans(self._pool, config.threads, self._store.reading)

    # ---- collections -----------------------------------------------------------------------------------
    def create_collection(self, request: pb.CreateCollectionRequest, _call: CallContext) -> pb.Collection:
        wire.check_context(request.context)
        parameters = wire.parameters_from_wire(request.parameters)
        wire.check_context(request.context, parameter_digest=parameters.digest)
        self._checks.new_collection(request, parameters)
        with contextlib.closing(self._engines.make(parameters)) as engine:  # takes no collection's place
            self._checks.engine(engine)
        record = CollectionRecord(
            name=request.context.collection,
            collection_id=request.collection_id,
            parameters=request.parameters.SerializeToString(deterministic=True),
            parameter_digest=parameters.digest,
            version=request.import_version - 1 if request.import_version else 1,
        )
        self._store.create(record, request.sealed_manifest, self.config.max_collections)
        return self._collection(record)

    def describe_collection(self, request: pb.DescribeCollectionRequest, _call: CallContext) -> pb.Collection:
        wire.check_format(request.format_version)
        return self._collection(self._store.find(wire.check_name(request.collection)))

    def list_collections(self, request: pb.ListCollectionsRequest, _call: CallContext) -> pb.ListCollectionsResponse:
        wire.check_format(request.format_version)
        return pb.ListCollectionsResponse(
            format_version=wire.FORMAT_VERSION,
            collections=[self._collection(record) for record in self._store.collections()],
        )

    def drop_collection(self, request: pb.DropCollectionRequest, _call: CallContext) -> pb.DropCollectionResponse:
        record = self._find(request.context, request.collection_id)
        self._store.drop(record)
        return pb.DropCollectionResponse(context=request.context)

    # ---- segments --------------------------------------------------------------------------------------
    def write_segment(self, requests: Iterator[pb.WriteSegmentRequest], _call: CallContext) -> pb.WriteSegmentResponse:
        header: pb.SegmentHeader = first_header(requests)
        record = self._find(header.context, header.collection_id)
        parameters = self._parameters(record)
        with self._engines.using(parameters) as engine:
            description = self._checks.segment(header, engine)
        response = pb.WriteSegmentResponse(context=header.context, segment_id=header.segment_id)
        if self._store.has((record.collection_id, header.segment_id)):
            response.existed = True
            return response
        with self._store.upload(description, self.config.max_collection_bytes) as upload:
            for chunk in chunks_after(requests):
                upload.write(chunk)
            upload.finish()
            with (
                self._engines.using(parameters) as engine,
                files.storage_errors("checking the index"),
                self._store.indexes.open(upload.segment) as index,
            ):
                try:
                    engine.check_index(index)
                finally:
                    engine.forget(index)
            upload.publish()
        return response

    def describe_segment(self, request: pb.DescribeSegmentRequest, _call: CallContext) -> pb.SegmentHeader:
        record = self._find(request.context, request.collection_id)
        wire.check_digest(request.segment_id, "segment_id")
        with self._store.segment(record, request.segment_id) as snapshot:
            (segment,) = snapshot.segments
        description = segment.description
        return pb.SegmentHeader(
            context=request.context,
            collection_id=record.collection_id,
            segment_id=request.segment_id,
            blocks=description.blocks,
            parts=[
                pb.Part(kind=pb.PartKind.Name(p.kind), length_bytes=p.length_bytes, sha256=p.sha256)
                for p in description.parts
            ],
        )

    def read_segment_part(
        self, request: pb.ReadSegmentPartRequest, _call: CallContext
    ) -> Iterator[pb.ReadSegmentPartResponse]:
        record = self._find(request.context)
        wire.check_digest(request.segment_id, "segment_id")
        with self._store.segment(record, request.segment_id) as snapshot:
            (segment,) = snapshot.segments
            part, length_bytes = self._checks.part_range(request, segment.description)
            context: pb.Context | None = request.context
            try:
                for chunk in segment_file.read_part(segment.source, part, request.offset_bytes, length_bytes):
                    yield pb.ReadSegmentPartResponse(context=context, chunk=chunk)
                    context = None
            except TamperedDataError:
                self._store.damaged(segment)
                raise
            if context:
                yield pb.ReadSegmentPartResponse(context=context)

    # ---- the manifest ----------------------------------------------------------------------------------
    def commit_manifest(self, request: pb.CommitManifestRequest, _call: CallContext) -> pb.CommitManifestResponse:
        record = self._find(request.context, request.collection_id)
        self._checks.manifest(request.sealed_manifest)
        self._checks.live_segments(request.live_segments)
        version = self._store.commit(
            record, request.expected_version, request.sealed_manifest, list(request.live_segments)
        )
        return pb.CommitManifestResponse(context=request.context, version=version)

    def read_manifest(self, request: pb.ReadManifestRequest, _call: CallContext) -> pb.ReadManifestResponse:
        wire.check_context(request.context)
        record, sealed, live = self._store.manifest(request.context.collection)
        wire.check_context(request.context, parameter_digest=record.parameter_digest)
        if not sealed:
            raise NotFound(f"collection: {record.name!r} is being imported, and has no manifest yet")
        return pb.ReadManifestResponse(
            context=request.context,
            collection_id=record.collection_id,
            version=record.version,
            sealed_manifest=sealed,
            live_segments=live,
        )

    # ---- answering -------------------------------------------------------------------------------------
    def answer(self, requests: Iterator[pb.AnswerRequest], call: CallContext) -> Iterator[pb.AnswerResponse]:
        header: pb.AnswerHeader = first_header(requests)
        record = self._find(header.context, header.collection_id)
        parameters = self._parameters(record)
        with self._engines.using(parameters) as engine:
            expected_bytes = self._checks.queries(header, engine)
        self._store.require_version(record, header.version)  # a stale one is refused before the queries come
        self.admission.scans.refuse_if_full()  # and so is one that could not be computed now
        with self.admission.inflight_bytes.taken(expected_bytes):
            queries = self._received(requests, header.queries, expected_bytes)
            pace = Pace()
            with (
                self._engines.using(parameters) as engine,
                self._store.snapshot(record, header.version) as snapshot,
                self._scans.of(engine, snapshot) as scan,
                self.admission.inflight_bytes.taken(scan.call_bytes(len(queries))),
                self.admission.scans.taken(spare=pace.slow) as computed,
                step("scan"),
            ):
                engine.check_queries(queries)
                active = lambda: call.is_active() and not self._closing  # noqa: E731
                for piece in scan.answer(queries, active, computed, pace):
                    yield pb.AnswerResponse(
                        context=header.context,
                        segment_id=piece.unit.segment.description.segment_id,
                        query=piece.query,
                        first_block=piece.unit.first_block,
                        blocks=piece.unit.blocks,
                        residues=piece.answers,
                    )

    @staticmethod
    def _received(requests: Iterator[pb.AnswerRequest], count: int, expected_bytes: int) -> list[bytes]:
        """The ciphertexts, as many bytes each; memory grows only as they come."""
        received = bytearray()
        queries: list[bytes] = []
        each = expected_bytes // count
        for chunk in chunks_after(requests):
            received += chunk
            if len(queries) * each + len(received) > expected_bytes:
                raise InvalidInput(f"queries: got more than {expected_bytes} bytes, which is what was announced")
            while len(received) >= each:
                queries.append(bytes(memoryview(received)[:each]))
                del received[:each]
        if len(queries) < count:
            got = len(queries) * each + len(received)
            raise InvalidInput(f"queries: got {got} bytes, expected {expected_bytes}")
        return queries

    # ---- common ----------------------------------------------------------------------------------------
    @property
    def store(self) -> Store:
        """For those who look after it: warming, rotation of data keys, metrics."""
        return self._store

    def live_segments(self) -> Iterator[tuple[ServerEngine, StoredSegment]]:
        """Every live segment with its engine, both in use until the next is asked for; without collections that
        cannot be searched now."""
        for record in self._store.collections():
            with (
                contextlib.suppress(HesearchError),
                self._engines.using(self._parameters(record)) as engine,
                self._store.snapshot(record, record.version) as snapshot,
            ):
                for segment in snapshot.segments:
                    yield engine, segment

    def _find(self, context: pb.Context, collection_id: bytes | None = None) -> CollectionRecord:
        """The collection that a message means. Raises InvalidInput, NotFound or FormatVersionError."""
        wire.check_context(context)
        if collection_id is not None:
            wire.check_collection_id(collection_id)
        record = self._store.find(context.collection, collection_id)
        wire.check_context(context, parameter_digest=record.parameter_digest)
        return record

    @staticmethod
    def _parameters(record: CollectionRecord) -> wire.PublicParameters:
        parameters = wire.parameters_from_wire(pb.Parameters.FromString(record.parameters))
        if parameters.digest != record.parameter_digest:
            raise FormatVersionError(
                f"parameters: those of collection {record.name!r} were derived by another version of the engine"
            )
        return parameters

    def _collection(self, record: CollectionRecord) -> pb.Collection:
        totals = self._store.totals(record)
        return pb.Collection(
            context=wire.context(record.name, record.parameter_digest),
            collection_id=record.collection_id,
            parameters=pb.Parameters.FromString(record.parameters),
            version=record.version,
            segments=totals.segments,
            blocks=totals.blocks,
            stored_bytes=totals.stored_bytes,
            index_bytes=totals.index_bytes,
        )

    def close(self) -> None:
        """Waits for the units that are running. Calls still under way then fail. Again: nothing happens."""
        self._closing = True
        self._pool.shutdown(cancel_futures=True)
        self._engines.close()
        self._store.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""The ten methods of hesearch.v1 as plain Python: protobuf messages in and out, errors raised, no network.

he_server.rpc.grpc_server offers a Service on a port; a client that embeds the server calls it directly. Every
message's format version, name, digest and lengths are checked before anything is read or computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from he_engine.engine import ServerEngine
from he_engine.errors import FormatVersionError, HesearchError, InvalidInput, NotFound, TamperedDataError
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb
from he_server.access.access import Access, Caller
from he_server.access.resources import Collection, Tenant
from he_server.config import ServerConfig
from he_server.rpc.admission import Admission
from he_server.rpc.calls import step
from he_server.rpc.checks import Checks, chunks_after, first_header
from he_server.search.answering import Answerer, Pace, Searched
from he_server.search.engines import EngineMaker, Engines, engine_maker
from he_server.search.scan import LocalAnswerer
from he_server.storage import files, segment_file
from he_server.storage.catalogue_rows import CollectionRecord
from he_server.storage.kek import open_kek
from he_server.storage.store import Store


class Service:
    """One open data folder, its engines and its threads. Thread-safe; `close` it, or use it as a context manager.

    `access` opens what decides on calls, once the folder is open. Raises what Store and `access` raise. All methods
    raise HesearchErrors only, unless something is broken.
    """

    def __init__(
        self,
        config: ServerConfig,
        make_engine: EngineMaker | None = None,
        access: Callable[[ServerConfig], Access] = lambda _: Access(),
    ) -> None:
        self.config = config
        self.admission = Admission(config)
        self._checks = Checks(config)
        self._engines = Engines(make_engine or engine_maker(config))
        self._store = Store(
            config.data,
            catalogue=config.catalogue,
            segments=config.segments,
            cache_bytes=config.cache_bytes,
            kek=open_kek(config.kek) if config.kek else None,
            previous_kek=open_kek(config.previous_kek) if config.previous_kek else None,
            orphan_age_s=config.orphan_age_s,
            index_memory_bytes=config.index_memory_bytes,
            forget=self._engines.forget,
        )
        try:
            self.access = access(config)
        except BaseException:
            self._store.close()
            raise
        try:
            self.answerer = _make_answerer(config, self._store)
        except BaseException:
            self.access.close()
            self._store.close()
            raise
        self._closing = False

    # ---- collections -----------------------------------------------------------------------------------
    def create_collection(self, request: pb.CreateCollectionRequest, caller: Caller) -> pb.Collection:
        wire.check_context(request.context)
        parameters = wire.parameters_from_wire(request.parameters)
        wire.check_context(request.context, parameter_digest=parameters.digest)
        self._checks.new_collection(request, parameters)
        me, tags = caller.principal, tuple(sorted(request.tags.items()))
        wanted = Collection(me.tenant, request.context.collection, me.name, frozenset(tags))
        self.access.require(caller, "CreateCollection", wanted, request_bytes=request.ByteSize())
        with contextlib.closing(self._engines.make(parameters)) as engine:  # takes no collection's place
            self._checks.engine(engine)
        record = CollectionRecord(
            name=request.context.collection,
            collection_id=request.collection_id,
            parameters=request.parameters.SerializeToString(deterministic=True),
            parameter_digest=parameters.digest,
            version=request.import_version - 1 if request.import_version else 1,
            tenant=me.tenant,
            owner=me.name,
            tags=tags,
        )
        if not self._store.is_there(record):
            self.access.count_collection(caller, *self._store.counts(me.tenant, me.name))
        self._store.create(record, request.sealed_manifest, self.config.max_collections)
        return self._collection(record)

    def describe_collection(self, request: pb.DescribeCollectionRequest, caller: Caller) -> pb.Collection:
        wire.check_format(request.format_version)
        return self._collection(self._found(caller, "DescribeCollection", wire.check_name(request.collection)))

    def list_collections(self, request: pb.ListCollectionsRequest, caller: Caller) -> pb.ListCollectionsResponse:
        """Those of the caller's tenant that the caller may describe."""
        wire.check_format(request.format_version)
        tenant = caller.principal.tenant
        self.access.require(caller, "ListCollections", Tenant(tenant))
        records = [record for record in self._store.collections() if record.tenant == tenant]
        shown = [one for one in records if self.access.allows(caller, "DescribeCollection", _resource(one))]
        return pb.ListCollectionsResponse(
            format_version=wire.FORMAT_VERSION, collections=[self._collection(record) for record in shown]
        )

    def drop_collection(self, request: pb.DropCollectionRequest, caller: Caller) -> pb.DropCollectionResponse:
        record = self._find(caller, "DropCollection", request.context, request.collection_id)
        self._store.drop(record)
        return pb.DropCollectionResponse(context=request.context)

    # ---- segments --------------------------------------------------------------------------------------
    def write_segment(self, requests: Iterator[pb.WriteSegmentRequest], caller: Caller) -> pb.WriteSegmentResponse:
        header: pb.SegmentHeader = first_header(requests)
        coming_bytes = sum(part.length_bytes for part in header.parts)
        record = self._find(caller, "WriteSegment", header.context, header.collection_id, request_bytes=coming_bytes)
        parameters = self._parameters(record)
        with self._engines.using(parameters) as engine:
            description = self._checks.segment(header, engine)
        response = pb.WriteSegmentResponse(context=header.context, segment_id=header.segment_id)
        if self._store.has((record.collection_id, header.segment_id)):
            response.existed = True
            return response
        self.access.count_bytes(caller, coming_bytes)
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

    def describe_segment(self, request: pb.DescribeSegmentRequest, caller: Caller) -> pb.SegmentHeader:
        record = self._find(caller, "DescribeSegment", request.context, request.collection_id)
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
        self, request: pb.ReadSegmentPartRequest, caller: Caller
    ) -> Iterator[pb.ReadSegmentPartResponse]:
        wire.check_context(request.context)
        part = self._checks.part_kind(request.kind)
        record = self._find(caller, "ReadSegment", request.context, part=part)
        wire.check_digest(request.segment_id, "segment_id")
        with self._store.segment(record, request.segment_id) as snapshot:
            (segment,) = snapshot.segments
            entry, length_bytes = self._checks.part_range(request, segment.description)
            self.access.count_bytes(caller, length_bytes)
            context: pb.Context | None = request.context
            try:
                for chunk in segment_file.read_part(segment.source, entry, request.offset_bytes, length_bytes):
                    yield pb.ReadSegmentPartResponse(context=context, chunk=chunk)
                    context = None
            except TamperedDataError:
                self._store.damaged(segment)
                raise
            if context:
                yield pb.ReadSegmentPartResponse(context=context)

    # ---- the manifest ----------------------------------------------------------------------------------
    def commit_manifest(self, request: pb.CommitManifestRequest, caller: Caller) -> pb.CommitManifestResponse:
        record = self._find(
            caller, "CommitManifest", request.context, request.collection_id, request_bytes=request.ByteSize()
        )
        self._checks.manifest(request.sealed_manifest)
        self._checks.live_segments(request.live_segments)
        version = self._store.commit(
            record, request.expected_version, request.sealed_manifest, list(request.live_segments)
        )
        return pb.CommitManifestResponse(context=request.context, version=version)

    def read_manifest(self, request: pb.ReadManifestRequest, caller: Caller) -> pb.ReadManifestResponse:
        record, sealed, live = self._store.manifest(self._find(caller, "ReadManifest", request.context))
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
    def answer(self, requests: Iterator[pb.AnswerRequest], caller: Caller) -> Iterator[pb.AnswerResponse]:
        header: pb.AnswerHeader = first_header(requests)
        record = self._find(caller, "Search", header.context, header.collection_id, queries=header.queries)
        parameters = self._parameters(record)
        with self._engines.using(parameters) as engine:
            expected_bytes = self._checks.queries(header, engine)
        record.require_version(header.version)  # a stale one is refused before the queries come
        self.admission.scans.refuse_if_full()  # and so is one that could not be computed now
        with self.admission.inflight_bytes.taken(expected_bytes):
            queries = self._received(requests, header.queries, expected_bytes)
            pace = Pace()
            with (
                self._engines.using(parameters) as engine,
                self.answerer.searched(record, header.version, parameters) as searched,
                self.admission.inflight_bytes.taken(
                    self.answerer.call_bytes(answer_bytes := searched.answer_bytes(engine, len(queries)))
                ),
                self.admission.scans.taken(spare=pace.slow) as computed,
                step("scan"),
            ):
                engine.check_queries(queries)
                self.access.count_bytes(caller, expected_bytes + answer_bytes)
                self.access.count_queries(caller, record.collection_id, len(queries))
                active = lambda: caller.is_active() and not self._closing  # noqa: E731
                pieces = self.answerer.answer(engine, searched, queries, active, computed, pace, caller.remaining_s)
                for piece in pieces:
                    yield pb.AnswerResponse(
                        context=header.context,
                        segment_id=piece.unit.segment.key[1],
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

    def live(self) -> Iterator[tuple[ServerEngine, Searched]]:
        """The live segments of every collection and its engine, in use until the next is asked for; without those that
        cannot be searched now."""
        for record in self._store.collections():
            with (
                contextlib.suppress(HesearchError),
                self._engines.using(parameters := self._parameters(record)) as engine,
                self.answerer.searched(record, record.version, parameters) as searched,
            ):
                yield engine, searched

    def _find(
        self, caller: Caller, action: str, context: pb.Context, collection_id: bytes | None = None, **more: Any
    ) -> CollectionRecord:
        """The collection that a message means, if the caller may do this with it. Raises InvalidInput, NotFound,
        PermissionDenied, FormatVersionError. `more`: as Access.require."""
        wire.check_context(context)
        if collection_id is not None:
            wire.check_collection_id(collection_id)
        record = self._found(caller, action, context.collection, collection_id, **more)
        wire.check_context(context, parameter_digest=record.parameter_digest)
        return record

    def _found(
        self, caller: Caller, action: str, name: str, collection_id: bytes | None = None, **more: Any
    ) -> CollectionRecord:
        """Of the caller's tenant: there are no others for it."""
        try:
            record = self._store.find(name, tenant=caller.principal.tenant)
        except NotFound:
            self.access.missing(caller, action, name)
            raise
        self.access.require(caller, action, _resource(record), **more)
        return self._store.find(name, collection_id, caller.principal.tenant)

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
            owner=record.owner,
            tags=dict(record.tags),
        )

    def close(self) -> None:
        """Waits for the units that are running. Calls still under way then fail. Again: nothing happens."""
        self._closing = True
        self.answerer.close()
        self._engines.close()
        self.access.close()
        self._store.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_answerer(config: ServerConfig, store: Store) -> Answerer:
    if not config.cluster:
        return LocalAnswerer(config.threads, store)
    from he_server.cluster.answerer import RayAnswerer

    return RayAnswerer(config, store)


def _resource(record: CollectionRecord) -> Collection:
    return Collection(record.tenant, record.name, record.owner, frozenset(record.tags))

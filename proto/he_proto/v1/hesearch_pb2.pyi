from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Engine(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_UNSPECIFIED: _ClassVar[Engine]
    ENGINE_HINT: _ClassVar[Engine]
    ENGINE_TENSEAL: _ClassVar[Engine]

class PartKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PART_KIND_UNSPECIFIED: _ClassVar[PartKind]
    PART_KIND_INDEX: _ClassVar[PartKind]
    PART_KIND_HINT: _ClassVar[PartKind]
    PART_KIND_ROWS: _ClassVar[PartKind]
    PART_KIND_FINGERPRINT: _ClassVar[PartKind]
    PART_KIND_PAYLOADS: _ClassVar[PartKind]
ENGINE_UNSPECIFIED: Engine
ENGINE_HINT: Engine
ENGINE_TENSEAL: Engine
PART_KIND_UNSPECIFIED: PartKind
PART_KIND_INDEX: PartKind
PART_KIND_HINT: PartKind
PART_KIND_ROWS: PartKind
PART_KIND_FINGERPRINT: PartKind
PART_KIND_PAYLOADS: PartKind

class Context(_message.Message):
    __slots__ = ("format_version", "collection", "parameter_digest")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    collection: str
    parameter_digest: bytes
    def __init__(self, format_version: _Optional[int] = ..., collection: _Optional[str] = ..., parameter_digest: _Optional[bytes] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("engine", "profile", "dim", "stride")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    engine: Engine
    profile: str
    dim: int
    stride: int
    def __init__(self, engine: _Optional[_Union[Engine, str]] = ..., profile: _Optional[str] = ..., dim: _Optional[int] = ..., stride: _Optional[int] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("context", "collection_id", "parameters", "version", "segments", "blocks", "stored_bytes", "index_bytes", "owner", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    parameters: Parameters
    version: int
    segments: int
    blocks: int
    stored_bytes: int
    index_bytes: int
    owner: str
    tags: _containers.ScalarMap[str, str]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., version: _Optional[int] = ..., segments: _Optional[int] = ..., blocks: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., index_bytes: _Optional[int] = ..., owner: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CreateCollectionRequest(_message.Message):
    __slots__ = ("context", "collection_id", "parameters", "sealed_manifest", "import_version", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEALED_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    IMPORT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    parameters: Parameters
    sealed_manifest: bytes
    import_version: int
    tags: _containers.ScalarMap[str, str]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., sealed_manifest: _Optional[bytes] = ..., import_version: _Optional[int] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DescribeCollectionRequest(_message.Message):
    __slots__ = ("format_version", "collection")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    collection: str
    def __init__(self, format_version: _Optional[int] = ..., collection: _Optional[str] = ...) -> None: ...

class ListCollectionsRequest(_message.Message):
    __slots__ = ("format_version",)
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    def __init__(self, format_version: _Optional[int] = ...) -> None: ...

class ListCollectionsResponse(_message.Message):
    __slots__ = ("format_version", "collections")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    def __init__(self, format_version: _Optional[int] = ..., collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("context", "collection_id")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: Context
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("kind", "length_bytes", "sha256")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    kind: PartKind
    length_bytes: int
    sha256: bytes
    def __init__(self, kind: _Optional[_Union[PartKind, str]] = ..., length_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class SegmentHeader(_message.Message):
    __slots__ = ("context", "collection_id", "segment_id", "blocks", "parts")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    segment_id: bytes
    blocks: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., segment_id: _Optional[bytes] = ..., blocks: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class WriteSegmentRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SegmentHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[SegmentHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class WriteSegmentResponse(_message.Message):
    __slots__ = ("context", "segment_id", "existed")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    context: Context
    segment_id: bytes
    existed: bool
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., segment_id: _Optional[bytes] = ..., existed: _Optional[bool] = ...) -> None: ...

class DescribeSegmentRequest(_message.Message):
    __slots__ = ("context", "collection_id", "segment_id")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    segment_id: bytes
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., segment_id: _Optional[bytes] = ...) -> None: ...

class ReadSegmentPartRequest(_message.Message):
    __slots__ = ("context", "segment_id", "kind", "offset_bytes", "length_bytes")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    context: Context
    segment_id: bytes
    kind: PartKind
    offset_bytes: int
    length_bytes: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., segment_id: _Optional[bytes] = ..., kind: _Optional[_Union[PartKind, str]] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class ReadSegmentPartResponse(_message.Message):
    __slots__ = ("context", "chunk")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    context: Context
    chunk: bytes
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class CommitManifestRequest(_message.Message):
    __slots__ = ("context", "collection_id", "expected_version", "sealed_manifest", "live_segments")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEALED_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LIVE_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    expected_version: int
    sealed_manifest: bytes
    live_segments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., expected_version: _Optional[int] = ..., sealed_manifest: _Optional[bytes] = ..., live_segments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CommitManifestResponse(_message.Message):
    __slots__ = ("context", "version")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    context: Context
    version: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class ReadManifestRequest(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: Context
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class ReadManifestResponse(_message.Message):
    __slots__ = ("context", "collection_id", "version", "sealed_manifest", "live_segments")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEALED_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    LIVE_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    version: int
    sealed_manifest: bytes
    live_segments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., version: _Optional[int] = ..., sealed_manifest: _Optional[bytes] = ..., live_segments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AnswerHeader(_message.Message):
    __slots__ = ("context", "collection_id", "version", "queries")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    context: Context
    collection_id: bytes
    version: int
    queries: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., collection_id: _Optional[bytes] = ..., version: _Optional[int] = ..., queries: _Optional[int] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: AnswerHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[AnswerHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("context", "segment_id", "query", "first_block", "blocks", "residues")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RESIDUES_FIELD_NUMBER: _ClassVar[int]
    context: Context
    segment_id: bytes
    query: int
    first_block: int
    blocks: int
    residues: bytes
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., segment_id: _Optional[bytes] = ..., query: _Optional[int] = ..., first_block: _Optional[int] = ..., blocks: _Optional[int] = ..., residues: _Optional[bytes] = ...) -> None: ...

class SignedManifest(_message.Message):
    __slots__ = ("format_version", "manifest", "signature")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    manifest: bytes
    signature: bytes
    def __init__(self, format_version: _Optional[int] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Writers(_message.Message):
    __slots__ = ("owner", "serial", "writers", "signature")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    owner: bytes
    serial: int
    writers: _containers.RepeatedCompositeFieldContainer[Writer]
    signature: bytes
    def __init__(self, owner: _Optional[bytes] = ..., serial: _Optional[int] = ..., writers: _Optional[_Iterable[_Union[Writer, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Writer(_message.Message):
    __slots__ = ("public_key", "name")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    name: str
    def __init__(self, public_key: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("format_version", "collection_id", "version", "ancestors_sha256", "parameters", "parameter_digest", "metric", "norm_bound", "engine_state", "segments", "writer", "writers")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ANCESTORS_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    NORM_BOUND_FIELD_NUMBER: _ClassVar[int]
    ENGINE_STATE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    collection_id: bytes
    version: int
    ancestors_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    parameters: Parameters
    parameter_digest: bytes
    metric: str
    norm_bound: float
    engine_state: bytes
    segments: _containers.RepeatedCompositeFieldContainer[SegmentEntry]
    writer: bytes
    writers: Writers
    def __init__(self, format_version: _Optional[int] = ..., collection_id: _Optional[bytes] = ..., version: _Optional[int] = ..., ancestors_sha256: _Optional[_Iterable[bytes]] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., parameter_digest: _Optional[bytes] = ..., metric: _Optional[str] = ..., norm_bound: _Optional[float] = ..., engine_state: _Optional[bytes] = ..., segments: _Optional[_Iterable[_Union[SegmentEntry, _Mapping]]] = ..., writer: _Optional[bytes] = ..., writers: _Optional[_Union[Writers, _Mapping]] = ...) -> None: ...

class SegmentEntry(_message.Message):
    __slots__ = ("segment_id", "blocks", "rows", "parts", "deleted_rows")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DELETED_ROWS_FIELD_NUMBER: _ClassVar[int]
    segment_id: bytes
    blocks: int
    rows: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    deleted_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segment_id: _Optional[bytes] = ..., blocks: _Optional[int] = ..., rows: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., deleted_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class RowTable(_message.Message):
    __slots__ = ("rows", "is_text", "numbers", "texts", "squares", "seed", "payload_salt", "payload_lengths")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    IS_TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    SQUARES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SALT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    is_text: bytes
    numbers: _containers.RepeatedScalarFieldContainer[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    squares: bytes
    seed: bytes
    payload_salt: bytes
    payload_lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rows: _Optional[int] = ..., is_text: _Optional[bytes] = ..., numbers: _Optional[_Iterable[int]] = ..., texts: _Optional[_Iterable[str]] = ..., squares: _Optional[bytes] = ..., seed: _Optional[bytes] = ..., payload_salt: _Optional[bytes] = ..., payload_lengths: _Optional[_Iterable[int]] = ...) -> None: ...

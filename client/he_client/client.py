"""Client: the way to a server, over the network or in this process."""

from __future__ import annotations

import contextlib
import os
import secrets
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from he_client.cache import PartCache
from he_client.collection import Collection, PayloadMode, check_payload_mode
from he_client.described import describe_collection, described_parameters, list_collections
from he_client.engines import choose_parameters, generate_state
from he_client.manifest import Manifest, open_manifest, seal_manifest
from he_client.metrics import Space
from he_client.pins import Pins
from he_client.rejections import Rejections
from he_client.released import Released
from he_client.results import ArchiveReport, CollectionInfo, RepairReport, ResealReport
from he_client.signing import Writer, sign_writers
from he_client.transport import GrpcTransport, Remote, Security, Transport
from he_client.upkeep import archive
from he_client.upkeep.repair import Repairer
from he_client.upkeep.reseal import finished
from he_engine.errors import InvalidInput, NotFound, WrongKeyError
from he_engine.keys import RootKey
from he_proto import wire
from he_proto.v1 import hesearch_pb2 as pb

TIMEOUT_S = 120.0


class Client:
    """A connection. Use it as a context manager.

    `Client("host:port")` speaks gRPC with TLS, `insecure=True` without; `Client("folder/")` serves a folder in
    this process, with no port; `Client(":memory:")` a temporary one that goes with the client.
    ca: PEM file of the authorities that may have signed the server's certificate (default: the system's). cert, key:
    PEM files of this client's own certificate and its private key, for a server that asks for one. token: file with a
    bearer token, for a server that takes them; it is read for each call.
    cache: a folder for downloaded hints and row tables; it may be deleted at any time. state: a folder for what must
    outlast this client: the newest version seen of each collection, so that a server that goes back is caught by the
    next client, too (he_client.pins), and the numbers of rejected answers (he_client.rejections) and of released ones
    (he_client.released). Without it, they last as long as the client. writer: who signs what is committed
    (he_client.signing; default: all holders of the collection's key, as one). timeout_s: the deadline of every call.
    threads: of encryption, and of the recovery of answers (default: all cores).
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        insecure: bool = False,
        ca: str | os.PathLike[str] = "",
        cert: str | os.PathLike[str] = "",
        key: str | os.PathLike[str] = "",
        token: str | os.PathLike[str] = "",
        cache: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        threads: int | None = None,
        writer: Writer | None = None,
    ) -> None:
        paths = {"ca": ca, "cert": cert, "key": key, "token": token}
        security = Security(insecure=insecure, **{field: os.fspath(path) for field, path in paths.items()})
        self._remote = Remote(_connect(target, security), timeout_s)
        self._cache = PartCache(Path(cache) if cache is not None else None)
        kept = Path(state) if state is not None else None
        self._pins = Pins(_server_name(target), kept)
        self._rejections = Rejections(kept)
        self._released = Released(kept)
        self._writer = writer
        self._threads = threads
        self._collections: weakref.WeakSet[Collection] = weakref.WeakSet()

    def create_collection(
        self,
        name: str,
        *,
        dim: int,
        key: RootKey,
        metric: str = "cosine",
        profile: str | None = None,
        engine: str = "hint",
        stride: int | None = None,
        norm_bound: float | None = None,
        payloads: PayloadMode = "cache",
        tags: Mapping[str, str] | None = None,
    ) -> Collection:
        """A new, empty collection; durable when it returns.

        dim: vector dimension, 1 to 16384. metric: "cosine", "ip" or "l2"; the last two need norm_bound, the
        largest norm of any row. profile: "exact" (default), "compact" or "precise". engine: "hint" or
        "tenseal". stride: a power of two; default by dim. payloads: "cache" fetches whole payload columns,
        "direct" single records, which tells the server what was found. tags: what the server's policies may ask for,
        in the clear, for ever.
        Raises ParameterError, AlreadyExists, Unavailable.
        """
        wire.check_name(name)
        _require_key(key)
        check_payload_mode(payloads)
        parameters = choose_parameters(engine, profile, dim, stride)
        space = Space.make(metric, dim, norm_bound)
        message = pb.Manifest(
            format_version=wire.FORMAT_VERSION,
            collection_id=secrets.token_bytes(wire.COLLECTION_ID_BYTES),
            version=1,
            parameters=wire.parameters_to_wire(parameters),
            parameter_digest=parameters.digest,
            metric=space.metric.value,
            norm_bound=space.norm_bound,
            engine_state=generate_state(parameters),
        )
        if self._writer is not None:
            sign_writers(self._writer, message, {})
        sealed, manifest = seal_manifest(key, name, message, self._writer)
        request = pb.CreateCollectionRequest(
            context=wire.context(name, parameters.digest),
            collection_id=message.collection_id,
            parameters=message.parameters,
            sealed_manifest=sealed,
            tags=tags,
        )
        self._remote.call("CreateCollection", request)
        self._pins.forget(name)
        return self._open(name, key, manifest, payloads)

    def open_collection(self, name: str, *, key: RootKey, payloads: PayloadMode = "cache") -> Collection:
        """An existing collection; fetches its hints and row tables unless they are cached.

        Raises NotFound, WrongKeyError, FormatVersionError, TamperedDataError, Unavailable.
        """
        _require_key(key)
        check_payload_mode(payloads)
        context = wire.context(name, self._describe(name).context.parameter_digest)
        response = self._remote.call("ReadManifest", pb.ReadManifestRequest(context=context))
        return self._open(name, key, open_manifest(key, name, response), payloads)

    def _open(self, name: str, key: RootKey, manifest: Manifest, payloads: PayloadMode) -> Collection:
        collection = Collection(
            name,
            self._remote,
            key,
            manifest,
            self._cache,
            payloads=payloads,
            threads=self._threads,
            pins=self._pins,
            rejections=self._rejections,
            released=self._released,
            writer=self._writer,
        )
        self._collections.add(collection)
        return collection

    def _describe(self, name: str) -> pb.Collection:
        return describe_collection(self._remote, name)

    def describe(self, name: str) -> CollectionInfo:
        """What the server knows of a collection. Raises NotFound, TamperedDataError, Unavailable."""
        return _info(self._describe(name))

    def list_collections(self) -> list[CollectionInfo]:
        """Sorted by name."""
        return [_info(c) for c in list_collections(self._remote)]

    def drop_collection(self, name: str) -> None:
        """Delete a collection and all its rows. Raises NotFound, Unavailable."""
        found = self._describe(name)
        request = pb.DropCollectionRequest(context=found.context, collection_id=found.collection_id)
        with contextlib.suppress(NotFound):  # it was there: an attempt whose reply was lost has dropped it
            self._remote.call("DropCollection", request)
        self._pins.forget(name)

    def trust(self, name: str) -> None:
        """Believe what the server shows of a collection from now on, also where it is older or another one than this
        client has seen: after a backup was restored, say. Collections that are open still compare."""
        wire.check_name(name)
        self._pins.forget(name)

    # ---- archives and repairs ----------------------------------------------------------------------------
    def export_collection(
        self, name: str, path: str | os.PathLike[str], *, progress: bool | None = None
    ) -> ArchiveReport:
        """See he_client.upkeep.archive.export_collection. No key is needed."""
        return archive.export_collection(self._remote, name, path, progress=progress)

    def import_collection(self, path: str | os.PathLike[str], *, progress: bool | None = None) -> ArchiveReport:
        """See he_client.upkeep.archive.import_collection. No key is needed."""
        return archive.import_collection(self._remote, path, progress=progress)

    def reseal_collection(
        self,
        name: str,
        *,
        key: RootKey,
        new_key: RootKey,
        journal: str | os.PathLike[str],
        progress: bool | None = None,
    ) -> ResealReport:
        """See Collection.reseal; also where an earlier call was interrupted after the switch."""
        _require_key(new_key)
        try:
            collection = self.open_collection(name, key=key, payloads="direct")
        except WrongKeyError:
            remote = self._remote.of(self._describe(name).context)
            return finished(remote, name, key, new_key, Path(journal))
        return collection.reseal(new_key, journal=journal, progress=progress)

    def repair_collection(
        self, name: str, *, key: RootKey, confirm: bool = False, progress: bool | None = None
    ) -> RepairReport:
        """Read all of a collection, say what of it is damaged, and with `confirm` commit what is left of it.

        See he_client.upkeep.repair. That a server calls rows damaged does not prove that they are: before you
        confirm, ask whether it, or a backup, can bring them back.

        Raises NotFound, WrongKeyError, Conflict, Unavailable.
        """
        _require_key(key)
        remote = self._remote.of(self._describe(name).context)
        return Repairer(remote, key, self._cache, self._threads, writer=self._writer).run(
            confirm=confirm, progress=progress
        )

    def close(self) -> None:
        """Closes its collections too. More than once is once."""
        for collection in list(self._collections):
            collection.close()
        self._remote.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_key(key: object) -> None:
    if not isinstance(key, RootKey):
        raise InvalidInput(f"key: got {type(key).__name__}, expected a CollectionKey (CollectionKey.load reads a file)")


def _server_name(target: str | os.PathLike[str]) -> str:
    """What tells this server from others: an address, or the whole path of a folder."""
    text = os.fspath(target)
    return text if ":" in text else os.path.realpath(text)


def _connect(target: str | os.PathLike[str], security: Security) -> Transport:
    """Addresses have a port; a folder is a path object, has a slash, or exists."""
    if not isinstance(target, str | os.PathLike):
        raise InvalidInput(f"target: got {type(target).__name__}, expected 'host:port', a folder or ':memory:'")
    text = os.fspath(target)
    host, colon, port = text.rpartition(":")
    if "://" in text or (colon and host and port.isdigit() and int(port) > 65535):
        raise InvalidInput(f"target: got {text!r}, expected 'host:port' with a port up to 65535")
    if colon and host and port.isdigit():
        return GrpcTransport(text, security)
    if security != Security():
        raise InvalidInput(f"target: got {text!r}, but insecure, ca, cert, key and token go with 'host:port'")
    is_folder = not isinstance(target, str) or os.sep in text or Path(text or "?").is_dir()
    if text != ":memory:" and not is_folder:
        raise InvalidInput(f"target: got {text!r}, expected 'host:port', a folder ('data/') or ':memory:'")
    from he_client.embedded import EmbeddedTransport

    return EmbeddedTransport(None if text == ":memory:" else Path(text))


def _info(found: pb.Collection) -> CollectionInfo:
    parameters = described_parameters(found)
    return CollectionInfo(
        name=found.context.collection,
        engine=wire.engine_kind(parameters).value,
        profile=found.parameters.profile,
        dim=parameters.dim,
        stride=parameters.stride,
        version=found.version,
        segments=found.segments,
        blocks=found.blocks,
        stored_bytes=found.stored_bytes,
        index_bytes=found.index_bytes,
    )

"""Where a stored segment is, for a process that has no catalogue: a shard of a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from he_engine.errors import TamperedDataError
from he_engine.keys import RootKey
from he_server.storage.catalogue_rows import FileId, Key, SegmentRecord, State
from he_server.storage.files import PAGE_BYTES, storage_errors
from he_server.storage.sealed_file import CHUNK_BYTES, TAG_BYTES, SealedFile
from he_server.storage.segment_file import MAX_PARTS, Description, FileSource, open_source, read_description, verify

if TYPE_CHECKING:
    from he_server.storage.objects import Objects


@dataclass(frozen=True, slots=True)
class Place:
    """A segment's row, where its file is, and the data key that opens it."""

    record: SegmentRecord
    path: str  #: of its file; empty: it is an object
    secret: bytes = field(repr=False)  #: the data key; empty: the file is not sealed, or the key goes another way

    @property
    def key(self) -> Key:
        return self.record.key

    @property
    def file_id(self) -> FileId:
        return self.record.file_id

    @property
    def blocks(self) -> int:
        return self.record.blocks

    @property
    def index_bytes(self) -> int:
        return self.record.index_bytes

    def with_key(self, keys: Mapping[int, bytes]) -> Place:
        """keys: of its collection, by generation."""
        return replace(self, secret=keys.get(self.record.generation, b""))

    @classmethod
    def of(cls, record: SegmentRecord, state: State, path: str) -> Place:
        """Raises TamperedDataError where the collection's row has not the data key that the segment's names."""
        return cls(record, path, state.secret(record.generation))

    @property
    def most_bytes(self) -> int:
        """That its file may have: its row does not say how its parts are padded."""
        plain = self.record.stored_bytes + (MAX_PARTS + 1) * PAGE_BYTES
        return plain + PAGE_BYTES + (plain // CHUNK_BYTES + 1) * TAG_BYTES if self.record.generation else plain

    @contextlib.contextmanager
    def opened(self, objects: Objects | None) -> Iterator[tuple[Description, FileSource]]:
        """Its header and its bytes; what is not sealed has been read once and checked. Raises TamperedDataError where
        it is damaged, missing or another segment's; Unavailable."""
        sealed = bool(self.record.generation)
        with contextlib.ExitStack() as stack:
            path = Path(self.path) if self.path else stack.enter_context(self._fetched(objects))
            if sealed and not self.secret:
                raise TamperedDataError("segment file: it is sealed, and its data key is not there")
            source = open_source(path, RootKey(self.secret) if sealed else None)
            description = read_description(source) if sealed else verify(source)
            found = (description.collection_id, description.segment_id)
            if found != self.key or (isinstance(source, SealedFile) and source.envelope.file_id != self.file_id):
                raise TamperedDataError("segment file: it is another segment's")
            yield description, source

    def verified(self, objects: Objects | None) -> Description:
        """Every byte of it read, once. Raises as `opened`, FormatVersionError."""
        with self.opened(objects) as (description, source):
            return verify(source) if self.record.generation else description

    @contextlib.contextmanager
    def _fetched(self, objects: Objects | None) -> Iterator[Path]:
        """Its object, in memory."""
        if objects is None:
            raise TamperedDataError("segment file: it is on object storage, and this process was not told where it is")
        with storage_errors("fetching a segment"):
            if (size_bytes := objects.size_bytes(self.record)) > self.most_bytes:
                raise TamperedDataError(f"segment file: got {size_bytes} bytes, expected {self.most_bytes} at most")
            descriptor = os.memfd_create("hesearch-fetched", os.MFD_CLOEXEC)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for chunk in objects.read(self.record, size_bytes):
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
                yield Path(f"/proc/self/fd/{descriptor}")

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
from he_server.storage.catalogue_rows import FileId, Key, SegmentRecord
from he_server.storage.files import storage_errors
from he_server.storage.sealed_file import SealedFile
from he_server.storage.segment_file import Description, FileSource, open_source, read_description, verify

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

    @contextlib.contextmanager
    def opened(self, objects: Objects | None) -> Iterator[tuple[Description, FileSource]]:
        """Its header and its bytes; what is not sealed has been read once and checked. Raises TamperedDataError where
        it is damaged, missing or another segment's; Unavailable."""
        sealed = bool(self.record.generation)
        with contextlib.ExitStack() as stack:
            path = Path(self.path) if self.path else stack.enter_context(_fetched(objects, self.record))
            if sealed and not self.secret:
                raise TamperedDataError("segment file: it is sealed, and its data key is not there")
            source = open_source(path, RootKey(self.secret) if sealed else None)
            description = read_description(source) if sealed else verify(source)
            found = (description.collection_id, description.segment_id)
            if found != self.key or (isinstance(source, SealedFile) and source.envelope.file_id != self.file_id):
                raise TamperedDataError("segment file: it is another segment's")
            yield description, source


@contextlib.contextmanager
def _fetched(objects: Objects | None, record: SegmentRecord) -> Iterator[Path]:
    """A segment's object, in memory."""
    if objects is None:
        raise TamperedDataError("segment file: it is on object storage, and this process was not told where that is")
    with storage_errors("fetching a segment"):
        descriptor = os.memfd_create("hesearch-fetched", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for chunk in objects.read(record, objects.size_bytes(record)):
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
            yield Path(f"/proc/self/fd/{descriptor}")

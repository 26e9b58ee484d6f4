"""Segments on their way in: uploaded first, named by a manifest later; only a committed manifest makes one live."""

from __future__ import annotations

import threading
from types import TracebackType

from he_engine.engine import Buffer
from he_engine.errors import LimitExceeded
from he_server.storage.catalogue import Catalogue
from he_server.storage.catalogue_rows import State
from he_server.storage.indexes import Indexes
from he_server.storage.segment_file import Description, SegmentWriter
from he_server.storage.segments import Segments
from he_server.storage.writes import Writes


class Uploads:
    """All that are under way. Thread-safe."""

    def __init__(self, catalogue: Catalogue, segments: Segments, writes: Writes, indexes: Indexes) -> None:
        self._catalogue = catalogue
        self.segments = segments
        self.writes = writes
        self.indexes = indexes
        self._lock = threading.Lock()
        self._coming: dict[object, tuple[Description, int]] = {}  # and the generation of the data key

    def begin(self, description: Description, most_bytes: int) -> Upload:
        """Raises NotFound, and LimitExceeded if all that the collection has and is being sent would take more than
        `most_bytes`."""
        with self.writes.writing():
            with self._lock:  # its data key stays from now on
                state = self._catalogue.state(description.collection_id)
                self._require_room(description, most_bytes)
                generation = state.newest_key.generation if state.newest_key else 0
                upload_id = object()
                self._coming[upload_id] = description, generation
            try:
                return Upload(self, description, state, upload_id)
            except BaseException:
                self.ended(upload_id)
                raise

    def _require_room(self, new: Description, most_bytes: int) -> None:
        coming = (d.stored_bytes for d, _ in self._coming.values() if d.collection_id == new.collection_id)
        stored_bytes = self._catalogue.kept_bytes(new.collection_id) + sum(coming) + new.stored_bytes
        if stored_bytes > most_bytes:
            raise LimitExceeded(f"collection: bytes: got {stored_bytes}, and this server admits at most {most_bytes}")

    def ended(self, upload_id: object) -> None:
        """Stored or given up."""
        with self._lock:
            del self._coming[upload_id]

    def generations(self, collection_id: bytes) -> list[int]:
        """Of the data keys under which segments of this collection are on their way."""
        with self._lock:
            return [generation for d, generation in self._coming.values() if d.collection_id == collection_id]

    def __len__(self) -> int:
        return len(self._coming)


class Upload:
    """One segment. A context manager; nothing of it remains unless `publish` was called."""

    def __init__(self, uploads: Uploads, description: Description, state: State, upload_id: object) -> None:
        self._uploads = uploads
        self._id = upload_id
        self._published = False
        self._file, self.segment = uploads.segments.new_file(description, state)
        try:
            self._writer = SegmentWriter(description, self._file)
        except BaseException:
            self._file.__exit__()
            raise

    def write(self, chunk: Buffer) -> None:
        """See SegmentWriter.write."""
        self._writer.write(chunk)

    def finish(self) -> None:
        """All bytes came, are those described, and are on the disk; `segment` may now be looked at."""
        with self._uploads.writes.writing():
            self._writer.finish()

    def publish(self) -> None:
        """Stores the segment, durably; call `finish` before. Raises NotFound if the collection is gone."""
        self._uploads.segments.publish(self.segment, self._file)
        self._published = True

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)
        self._uploads.ended(self._id)
        if not self._published:
            self._uploads.indexes.forget(self.segment)

"""The rows of a catalogue, taken one by one: what the sound ones say together, and what is wrong with the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from he_engine.errors import HesearchError, InvalidInput, TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_server.storage.catalogue_file import FOLDER_KEY_CONTEXT
from he_server.storage.catalogue_rows import FileId, Key, SegmentRecord, State, segment_from_bytes
from he_server.storage.cells import open_cell
from he_server.storage.kek import KeyProvider
from he_server.storage.segment_file import Description


def folder_key(wrapped: bytes, kek: KeyProvider | None) -> RootKey:
    """What opens the rows of a sealed catalogue. Raises InvalidInput (no kek), WrongKeyError, Unavailable."""
    if kek is None:
        raise InvalidInput("kek: this data folder is sealed; give the key-encryption key that opens it (--kek)")
    return RootKey(kek.unwrap(wrapped, FOLDER_KEY_CONTEXT))


def open_segment(key: RootKey | None, ids: Key, cell: bytes) -> tuple[SegmentRecord, float]:
    """What a segment's row says. Raises TamperedDataError."""
    return segment_from_bytes(ids, open_cell(key, "segment", length_prefixed(*ids), cell))


def open_state(key: RootKey | None, collection_id: bytes, cell: bytes) -> State:
    """What a collection's row says. Raises TamperedDataError."""
    return State.parse(collection_id, open_cell(key, "collection", collection_id, cell))


def require_described(found: Description, record: SegmentRecord, state: State) -> None:
    """Raises TamperedDataError where a segment's header is not what its row and its collection's say."""
    if (found.collection_id, found.segment_id) != record.key:
        raise TamperedDataError("segment file: it is another segment's")
    said = record.blocks, record.stored_bytes, record.index_bytes, state.record.parameter_digest
    if (found.blocks, found.stored_bytes, found.index_bytes, found.parameter_digest) != said:
        raise TamperedDataError("segment file: its row says something else of it")


@dataclass(slots=True)
class Rows:
    """All that is sound, and what is not."""

    named: bool = True  #: messages have the names of collections, which are in their rows
    wrapped_key: bytes = b""
    key: RootKey | None = None
    collections: dict[bytes, State] = field(default_factory=dict)
    cells: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)  #: states and manifests, where they are kept
    segments: dict[Key, tuple[SegmentRecord, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  #: those of them that no rebuilding mends
    rowless: list[Key] = field(default_factory=list)  #: live segments without a sound row
    _homeless: int = 0

    def label(self, collection_id: bytes) -> str:
        """For messages."""
        state = self.collections.get(collection_id) if self.named else None
        return f"collection {state.record.name!r}" if state else f"collection {collection_id.hex()}"

    def label_of(self, key: Key) -> str:
        return f"{self.label(key[0])}, segment {key[1].hex()}"

    @property
    def live(self) -> set[Key]:
        return {(c, segment_id) for c, state in self.collections.items() for segment_id in state.live}

    @property
    def file_ids(self) -> list[FileId]:
        return [record.file_id for record, _ in self.segments.values()]

    def take_collection(self, collection_id: bytes, cell: bytes, manifest: bytes) -> bool:
        """Whether both cells are sound."""
        try:
            state = open_state(self.key, collection_id, cell)
            open_cell(self.key, "manifest", length_prefixed(collection_id, state.record.version), manifest)
        except HesearchError as error:
            self.lost.append(
                f"collection {collection_id.hex()}: its row is damaged, and nothing else holds what it said ({error}); "
                "restore a backup"
            )
            return False
        self.collections[collection_id] = state
        return True

    def take_segment(self, collection_id: bytes, segment_id: bytes, cell: bytes) -> None:
        """After all collections."""
        key = collection_id, segment_id
        try:
            row = open_segment(self.key, key, cell)
        except HesearchError as error:
            self.problems.append(f"{self.label_of(key)}: its row is damaged ({error})")
            return
        if collection_id in self.collections:
            self.segments[key] = row
        else:
            self._homeless += 1

    def finish(self) -> None:
        """All rows were taken: what does not fit together is a problem."""
        if self._homeless:
            self.lost.append(
                f"catalogue: {self._homeless} segments belong to collections whose rows are damaged or gone"
            )
        self.problems += self.lost
        self.rowless = sorted(self.live - self.segments.keys())
        self.problems += [f"{self.label_of(key)}: it is live and has no row" for key in self.rowless]


@dataclass(slots=True)
class Findings:
    """Of one look at a folder."""

    rows: Rows
    problems: list[str]
    strays: list[Path]  #: files that no row names
    unfinished: list[Path]
    damaged: list[SegmentRecord] = field(default_factory=list)  #: their files are, or are missing
    checked_bytes: int = 0

"""Repair: a collection whose server has lost bytes of some segments, brought back to what can still be read.

Every part of every live segment is read and checked against its digest in the manifest. Rows need the index and the
row table only: where both are sound, they are decrypted and encrypted again into a new segment, without payloads if
that part is damaged. Where one of the two is not, the live rows of the segment are lost. Nothing is changed unless
that is confirmed; then one commit replaces all damaged segments.

A backup or an archive that has the segments still loses nothing at all.

Others may write meanwhile. A segment that has left the manifest by the time it is found damaged is not: its rows are
elsewhere (another's compaction), and the manifest is read again. A commit of others before the repair's is a Conflict.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np

from he_client.cache import PartCache
from he_client.engines import make_engine
from he_client.manifest import Entries, Manifest, open_manifest, seal_manifest
from he_client.parts import PartReader, part_of
from he_client.pins import Pin
from he_client.progress import progress_bar
from he_client.results import RepairReport, RowId
from he_client.segments import Segment, SegmentStore
from he_client.signing import Writer
from he_client.transport import Remote
from he_engine.engine import Advance, Buffer, EncryptedRows, nothing
from he_engine.errors import Conflict, NotFound, TamperedDataError
from he_engine.keys import RootKey
from he_proto.v1 import hesearch_pb2 as pb

#: What rows need first: the part that turns out to be damaged may be the last one that the server gives.
_ORDER = (
    pb.PART_KIND_ROWS,
    pb.PART_KIND_INDEX,
    pb.PART_KIND_PAYLOADS,
    pb.PART_KIND_HINT,
    pb.PART_KIND_FINGERPRINT,
)
MAX_ROUNDS = 64  #: manifests that are examined; in each but the last a segment was gone


class _Gone(Exception):
    """A segment has left the manifest."""


@dataclass(slots=True)
class _Damage:
    """What is left of one damaged segment."""

    lost_rows: int = 0
    lost_ids: list[RowId] = field(default_factory=list)
    lost_payloads: int = 0
    replacement: pb.SegmentEntry | None = None


class Repairer:
    """One repair of one collection, which need not be one that can be opened. `remote`: with its context."""

    def __init__(
        self,
        remote: Remote,
        key: RootKey,
        cache: PartCache,
        threads: int | None,
        seen: Manifest | None = None,
        writer: Writer | None = None,
    ) -> None:
        """`seen`: a manifest that the current one must extend. Raises RollbackError, WrongKeyError, NotFound."""
        self._remote = remote
        self._key = key
        self._writer = writer
        self._name = remote.context.collection
        self._parts = PartReader(remote, PartCache(None))  # what the server has, not what is cached here
        self._manifest = manifest = self._read(seen)
        self._cache = cache
        state = manifest.message.engine_state
        self._engine = make_engine(manifest.parameters, key, manifest.collection_id, state, threads=threads)
        self._store = SegmentStore(remote, manifest.collection_id, key, self._engine, manifest.space, cache, True)

    def run(self, *, confirm: bool, progress: bool | None) -> RepairReport:
        """Raises Conflict if others commit meanwhile, Unavailable."""
        try:
            damaged = self._examine_all(confirm, progress)
            version = self._commit(damaged) if damaged and confirm else self._manifest.version
        finally:
            self._engine.close()
        return RepairReport(
            version=version,
            segments=len(self._manifest.message.segments),
            damaged=len(damaged),
            lost_rows=sum(d.lost_rows for d in damaged.values()),
            lost_ids=[i for d in damaged.values() for i in d.lost_ids],
            lost_payloads=sum(d.lost_payloads for d in damaged.values()),
            repaired=bool(damaged) and confirm,
        )

    def _read(self, seen: Manifest | None) -> Manifest:
        response = self._remote.call("ReadManifest", pb.ReadManifestRequest(context=self._remote.context))
        manifest = open_manifest(self._key, self._name, response)
        if seen is not None:
            Pin.of(seen).require_successor(manifest)
        return manifest

    def _examine_all(self, rebuild: bool, progress: bool | None) -> dict[bytes, _Damage]:
        """What of the manifest is damaged. Raises Conflict where segments go faster than they can be examined."""
        known: dict[bytes, tuple[pb.SegmentEntry, _Damage | None]] = {}
        for _ in range(MAX_ROUNDS):
            entries = self._manifest.message.segments
            left = [e for e in entries if known.get(e.segment_id, (None,))[0] != e]
            total = sum(part.length_bytes for entry in left for part in entry.parts)
            with contextlib.suppress(_Gone), progress_bar(progress, total, "read", "B") as advance:
                for entry in left:
                    known[entry.segment_id] = entry, self._examine(entry, rebuild, advance)
                found = {entry.segment_id: known[entry.segment_id][1] for entry in entries}
                return {segment_id: damage for segment_id, damage in found.items() if damage is not None}
        raise Conflict(f"collection {self._name!r}: changes faster than it can be examined; try again")

    def _require_live(self, entry: pb.SegmentEntry) -> None:
        """Raises _Gone where it has left the manifest, which is adopted then."""
        newest = self._read(self._manifest)
        if all(other.segment_id != entry.segment_id for other in newest.message.segments):
            self._manifest = newest
            raise _Gone

    def _examine(self, entry: pb.SegmentEntry, rebuild: bool, advance: Advance) -> _Damage | None:
        """None: sound. Raises _Gone."""
        sound: dict[pb.PartKind, Buffer] = {}
        for kind in _ORDER:
            if (part := part_of(entry, kind)) is None:
                continue
            try:
                content = self._parts.download(entry, kind)
                sound[kind] = content if kind in _ORDER[:3] else b""
            except (TamperedDataError, NotFound):
                pass
            advance(part.length_bytes)
        if len(sound) == len(entry.parts):
            return None
        self._require_live(entry)
        return self._salvage(entry, sound, rebuild)

    def _salvage(self, entry: pb.SegmentEntry, sound: dict[pb.PartKind, Buffer], rebuild: bool) -> _Damage:
        kept = np.setdiff1d(np.arange(entry.rows), entry.deleted_rows)
        rows = part_of(entry, pb.PART_KIND_ROWS)
        if rows is not None and pb.PART_KIND_ROWS in sound:
            self._cache.put(rows.sha256, bytes(sound[pb.PART_KIND_ROWS]), keep=True)  # the server may not give it again
        try:
            table = self._store.table(entry)
        except (TamperedDataError, NotFound):
            return _Damage(lost_rows=len(kept))
        if pb.PART_KIND_INDEX not in sound:
            return _Damage(lost_rows=len(kept), lost_ids=[table.ids[row] for row in kept])
        damage = _Damage()
        readable = pb.SegmentEntry()
        readable.CopyFrom(entry)
        if pb.PART_KIND_PAYLOADS not in sound and part_of(entry, pb.PART_KIND_PAYLOADS) is not None:
            damage.lost_payloads = int(np.count_nonzero(table.payload_lengths[kept]))
            del readable.parts[:]
            readable.parts.extend(part for part in entry.parts if part.kind != pb.PART_KIND_PAYLOADS)
        if rebuild:
            secrets = EncryptedRows(
                rows=entry.rows, blocks=entry.blocks, index=b"", hint=b"", seed=table.seed, fingerprint=b""
            )
            segment = Segment(readable, table, secrets)
            index, column = sound[pb.PART_KIND_INDEX], sound.get(pb.PART_KIND_PAYLOADS, b"")
            made, contents = self._store.build_again(self._store.rows_of(segment, kept, index, column), nothing)
            self._store.upload(made, contents)
            damage.replacement = made.entry
        return damage

    def _commit(self, damaged: dict[bytes, _Damage]) -> int:
        """The new version."""
        base = self._manifest
        entries: Entries = []
        for entry in base.message.segments:
            damage = damaged.get(entry.segment_id)
            kept = entry if damage is None else damage.replacement
            entries += [] if kept is None else [kept]
        sealed, manifest = seal_manifest(self._key, self._name, base.successor(entries), self._writer)
        request = pb.CommitManifestRequest(
            context=self._remote.context,
            collection_id=base.collection_id,
            expected_version=base.version,
            sealed_manifest=sealed,
            live_segments=[entry.segment_id for entry in entries],
        )
        self._remote.call("CommitManifest", request)
        return manifest.version

"""The catalogue of schema version 1, before data could be sealed at rest: read once, when such a folder is opened.

collections  collection_id · name · parameters · parameter_digest · version · sealed_manifest
segments     collection_id · segment_id · blocks · stored_bytes · index_bytes · touched_s · position (NULL: not live)
"""

from __future__ import annotations

import sqlite3

from he_server.storage.catalogue_rows import CollectionRecord, SegmentRecord, State

SCHEMA_VERSION = 1

Collection = tuple[State, bytes, list[tuple[SegmentRecord, float]]]  #: and its manifest, and when each segment was sent


def take(db: sqlite3.Connection) -> list[Collection]:
    """All that there is; its tables are gone then. Within a transaction."""
    found: list[Collection] = []
    rows = db.execute(
        "SELECT collection_id, name, parameters, parameter_digest, version, sealed_manifest FROM collections"
    ).fetchall()
    for collection_id, name, parameters, digest, version, manifest in rows:
        segments = db.execute(
            "SELECT segment_id, blocks, stored_bytes, index_bytes, touched_s, position FROM segments "
            "WHERE collection_id = ? ORDER BY position",
            (collection_id,),
        ).fetchall()
        live = tuple(segment_id for segment_id, *_, position in segments if position is not None)
        state = State(CollectionRecord(name, collection_id, parameters, digest, version), True, (), live)
        stored = [
            (SegmentRecord(collection_id, segment_id, blocks, stored_bytes, index_bytes), touched_s)
            for segment_id, blocks, stored_bytes, index_bytes, touched_s, _ in segments
        ]
        found.append((state, manifest, stored))
    for table in ("segments", "collections"):
        db.execute(f"DROP TABLE {table}")
    return found

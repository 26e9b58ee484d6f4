"""What searches and descriptions return: plain immutable objects."""

from __future__ import annotations

from dataclasses import dataclass

RowId = int | str
Payload = str | bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """One found row, best first.

    `score` is the cosine similarity or inner product (larger is closer), or under `l2` the Euclidean distance
    (smaller is closer).

    Who may see it depends on the profile (docs/score-release.md). `exact`: anyone; it is a function of the vectors,
    rounded to integers, and of no secret. `compact`, `precise`, and the engine `tenseal`: **key material**, for holders
    of the collection's key alone. Whoever has the index (the server, say) and enough such scores of known queries
    decrypts the rows, whether they were found or not; rounding the scores does not help. Do not log, store, send or
    plot them.
    """

    id: RowId
    score: float
    payload: Payload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What the last `search` of a collection cost. Times in seconds, sizes in bytes, over all its queries."""

    queries: int
    rows: int  #: rows scanned, deleted ones included
    encrypt_s: float  #: client: queries encrypted
    server_s: float  #: from the first byte sent to the last received: the server's work and the network
    recover_s: float  #: client, after the last byte: what is left of verifying, decrypting and ranking
    recover_work_s: float  #: client: processor time of all of it, most of which passes while answers arrive
    query_bytes: int  #: sent
    answer_bytes: int  #: received
    query_head: bytes  #: the first 16 bytes that the server saw
    answer_head: bytes  #: the first 16 bytes that it sent
    released_answers: int  #: of the block that has most, of those with a hit; 0: not counted (he_client.released)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did."""

    segments_before: int
    segments_after: int  #: with those that others added meanwhile
    rewritten: int  #: segments that were taken up into new ones
    rows: int  #: encrypted anew
    dropped_rows: int  #: deleted ones whose ciphertexts are gone
    freed_bytes: int  #: stored parts of the old segments less those of the new ones; can be negative by a little
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintReport:
    """What `reseal_fingerprints` did."""

    version: int  #: of the manifest
    segments: int
    rebuilt: int  #: segments that verify with a new fingerprint
    uploaded_bytes: int  #: of them, as they were stored again


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveReport:
    """What was exported or imported."""

    name: str
    version: int  #: of the manifest
    segments: int
    archive_bytes: int
    existed: int = 0  #: segments that the server had before the import


@dataclass(frozen=True, slots=True, kw_only=True)
class ResealReport:
    """A collection under its new key."""

    version: int  #: of the manifest that switched to it
    segments: int
    rows: int
    made: int  #: segments encrypted by this call, those included that others have replaced since
    reused: int  #: segments that an earlier, interrupted call had stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What is damaged in a collection, and whether it was repaired."""

    version: int  #: of the manifest: the examined one, or the one that the repair committed
    segments: int  #: examined
    damaged: int  #: segments of which the server lacks some bytes, or has wrong ones
    lost_rows: int  #: live rows that nobody can read any more
    lost_ids: list[RowId]  #: of those, where they are known
    lost_payloads: int  #: of rows that are not lost
    repaired: bool  #: committed: damaged segments were replaced by what could be read of them


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionInfo:
    """What the server can say of a collection: it knows no ids, rows, metric or key."""

    name: str
    engine: str
    profile: str
    dim: int
    stride: int
    version: int  #: of the manifest: 1 when new
    segments: int
    blocks: int
    stored_bytes: int  #: all parts of live segments
    index_bytes: int  #: the encrypted index alone

"""What searches and descriptions return: plain immutable objects."""

from __future__ import annotations

from dataclasses import dataclass

RowId = int | str
Payload = str | bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """One found row, best first.

    `score` is the cosine similarity or inner product (larger is closer), or under `l2` the Euclidean distance
    (smaller is closer). Scores of the profiles `compact` and `precise` are key material: show them only to
    holders of the collection key (docs/scheme.md). Scores of `exact` may be shown to anyone.
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

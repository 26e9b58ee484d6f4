"""What a demo run measured, and the keys of `--json`.

The JSON object has exactly the fields below, by these names; `--json` of a later version may add fields but
keeps these while `format` is 1. Times are in s, sizes in bytes, `_hex` in lower-case hexadecimal; shares and
recalls are in [0, 1]. "Plaintext" is FAISS IndexFlatIP in the client's process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECALL_K = 10  #: the 10 of recall_at_10 and hit_at_10, whatever -k says


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRecord:
    """One row that was found."""

    code: str  #: ICD-10-CM code
    title: str  #: as decrypted from the row's payload
    score: float  #: cosine similarity from the encrypted search
    plaintext_score: float  #: of the same row, from float vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRecord:
    """One question, asked alone."""

    text: str
    hits: list[HitRecord]  #: best first, -k of them
    recall_at_10: float
    encrypt_s: float  #: client: encrypt the query; this and the next three are medians of 5
    server_s: float  #: from the first byte sent to the last received
    recover_s: float  #: client: verify, decrypt, rank
    plaintext_s: float  #: the plaintext search of it, on one thread or on `threads`, whichever is faster
    query_bytes: int  #: sent
    answer_bytes: int  #: received
    query_head_hex: str  #: the first bytes that the server received
    answer_head_hex: str  #: the first bytes that it sent


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """A seeded sample of inclusion terms, whose right answer is the code that each belongs to."""

    queries: int
    seed: int
    recall_at_10: float
    hit_at_1: float
    hit_at_10: float
    plaintext_recall_at_10: float  #: of FAISS, against the same reference: 1, or its rounding
    plaintext_hit_at_1: float
    plaintext_hit_at_10: float
    encrypted_s: float  #: all of them, client and server, in batches
    plaintext_s: float  #: all of them, in one batch


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertRecord:
    """The whole catalogue, encrypted and stored."""

    insert_s: float  #: encrypt, upload, commit
    rows_per_s: float
    index_bytes: int  #: the encrypted index alone
    stored_bytes: int  #: with hints, row tables, fingerprints and payloads
    plaintext_index_bytes: int  #: the float32 vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecord:
    """One run of the demo."""

    format: int = 1
    rows: int
    dim: int
    encoder: str
    profile: str
    stride: int  #: chosen by profile and dim
    threads: int  #: of the server, of the client's encryption, and of FAISS where it gains by them
    catalogue_s: float
    embed_s: float
    server_start_s: float
    first_search_s: float  #: the first search of all, which is not in `queries`: both sides warm up
    total_s: float
    insert: InsertRecord
    queries: list[QueryRecord] = field(default_factory=list)
    sample: SampleRecord | None  #: null where the chosen rows have no inclusion terms

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

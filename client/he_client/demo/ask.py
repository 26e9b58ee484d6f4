"""Asking: one question at a time for the reader, a sample in batches for the statistics; encrypted and plain."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_client.collection import Collection
from he_client.demo import report
from he_client.demo.catalogue import Catalogue
from he_client.demo.encoders import Encoder
from he_client.demo.plaintext import PlaintextSearch
from he_client.demo.recall import hit_share, inner_products, recall
from he_client.demo.record import RECALL_K, HitRecord, QueryRecord, SampleRecord
from he_client.progress import progress_bar
from he_client.results import Hit, SearchReport

F32 = NDArray[np.float32]

REPEATS = 5  #: of a question, for the median of its times
SAMPLE = 1000  #: inclusion terms
SAMPLE_SEED = 1
BATCH = 20  #: queries in one call, for the sample


@dataclass(frozen=True, slots=True)
class Data:
    """What the owner has, in the clear."""

    catalogue: Catalogue
    encoder: Encoder
    vectors: F32  #: (n, d)
    questions: F32  #: (number of questions, d)
    catalogue_s: float
    embed_s: float


def first_search(collection: Collection, data: Data) -> float:
    """Fetch and derive what later searches find in memory. Asks for a title, not for one of the questions."""
    start = time.perf_counter()
    collection.search(data.vectors[0], k=1)
    return time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Asked:
    """One question's encrypted searches."""

    found: list[Hit]  #: best first
    costs: list[SearchReport]  #: of REPEATS searches


def ask(collection: Collection, vector: F32, k: int) -> Asked:
    """One question (d,), alone, REPEATS times: each time is a fresh encryption."""
    found: list[Hit] = []
    costs = []
    for _ in range(REPEATS):
        found = collection.search(vector, k=max(k, RECALL_K))
        assert collection.last_search is not None
        costs.append(collection.last_search)
    return Asked(found, costs)


def compare(asked: Asked, data: Data, plaintext: PlaintextSearch, text: str, vector: F32, shown: int) -> QueryRecord:
    """Beside the plaintext search. Call it when no encrypted search is to be timed soon after.

    NumPy's and FAISS's threads spin for a while when their work is done, which takes up to 10 ms from a server
    on the same two cores.
    """
    found, costs = asked.found, asked.costs
    rows = [int(hit.id) for hit in found]
    hits = []
    for hit, score in zip(found[:shown], inner_products(data.vectors, vector, rows), strict=False):
        code, _, title = str(hit.payload).partition(" ")
        hits.append(HitRecord(code=code, title=title, score=hit.score, plaintext_score=float(score)))
    return QueryRecord(
        text=text,
        hits=hits,
        recall_at_10=recall(data.vectors, vector[None], [rows], RECALL_K)[0],
        encrypt_s=statistics.median(cost.encrypt_s for cost in costs),
        server_s=statistics.median(cost.server_s for cost in costs),
        recover_s=statistics.median(cost.recover_work_s for cost in costs),
        plaintext_s=plaintext.seconds(vector, RECALL_K, REPEATS),
        query_bytes=costs[0].query_bytes,
        answer_bytes=costs[0].answer_bytes,
        query_head_hex=costs[0].query_head.hex(),
        answer_head_hex=costs[0].answer_head.hex(),
    )


def ask_sample(collection: Collection, data: Data, plaintext: PlaintextSearch) -> SampleRecord | None:
    """Inclusion terms: other names of diagnoses, so the right answer is known."""
    terms = data.catalogue.sample_terms(SAMPLE, SAMPLE_SEED)
    if not terms:
        return None
    print()
    report.say(
        f"How good are the answers? {len(terms)} other names of diagnoses, drawn at random from the catalogue's "
        f'inclusion terms ("{terms[0].text}" should find {terms[0].code}), are asked in batches of {BATCH}.'
    )
    vectors = data.encoder.embed([term.text for term in terms])
    start = time.perf_counter()
    found: list[list[int]] = []
    with progress_bar(None, len(terms), "ask", "questions") as advance:
        for first in range(0, len(terms), BATCH):
            batch = collection.search(vectors[first : first + BATCH], k=RECALL_K)
            found += [[hit.id for hit in hits] for hits in batch]
            advance(len(batch))
    encrypted_s = time.perf_counter() - start
    start = time.perf_counter()
    plain = plaintext.search(vectors, RECALL_K)
    plaintext_s = time.perf_counter() - start

    def codes(rows: list[list[int]]) -> list[list[str]]:
        return [[data.catalogue.codes[row] for row in one] for one in rows]

    right = [term.code for term in terms]
    return SampleRecord(
        queries=len(terms),
        seed=SAMPLE_SEED,
        recall_at_10=float(np.mean(recall(data.vectors, vectors, found, RECALL_K))),
        hit_at_1=hit_share(codes(found), right, 1),
        hit_at_10=hit_share(codes(found), right, RECALL_K),
        plaintext_recall_at_10=float(np.mean(recall(data.vectors, vectors, plain, RECALL_K))),
        plaintext_hit_at_1=hit_share(codes(plain), right, 1),
        plaintext_hit_at_10=hit_share(codes(plain), right, RECALL_K),
        encrypted_s=encrypted_s,
        plaintext_s=plaintext_s,
    )

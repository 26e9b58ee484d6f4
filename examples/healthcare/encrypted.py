"""k-nearest-neighbour prediction on a server that reads neither the records nor the question nor the answer.

Rows are the training patients' vectors, under pseudonyms of their record numbers, with the chapter as payload; all is
encrypted here. The server is a process of its own, reached over gRPC.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from examples.healthcare.figures import Against, Row
from examples.healthcare.neighbours import F32, Cohort, K, vote
from he_client import Client, CollectionKey, ScoreReleaseWarning
from he_client.progress import progress_bar

BATCH = 20  #: queries in one call, for the accuracy
ALONE = 50  #: queries that are asked one at a time, for their cost
LEARNS = "the server: sizes and times; holders of the key: chapters and scores of the neighbours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """Predictions, and what they cost. Times in s, sizes in bytes."""

    profile: str
    predicted: list[str]
    insert_s: float  #: encrypt, upload, commit
    stored_bytes: int
    query_s: float  #: one query, client and server, median
    query_bytes: int  #: sent for one query
    answer_bytes: int  #: received for it

    def row(self, test: Cohort) -> Row:
        return Row.of(
            f"k-NN, encrypted, `{self.profile}`", "encrypted", self.predicted, test.chapters, LEARNS,
            prepare_s=self.insert_s, prepare_bytes=self.stored_bytes, predict_s=self.query_s,
            predict_bytes=self.query_bytes,
        )  # fmt: skip

    def against(self, plaintext: Sequence[str], test: Cohort) -> Against:
        """plaintext: what k-NN in the clear predicts."""
        return Against.of(self.profile, self.predicted, plaintext, test.chapters, answer_bytes=self.answer_bytes)


def predict(client: Client, profile: str, ids: Sequence[str], train: Cohort, queries: F32) -> Encrypted:
    """queries: (n, d)."""
    name, key = f"patients-{profile}", CollectionKey.generate()
    patients = client.create_collection(name, dim=train.vectors.shape[1], key=key, profile=profile)
    start = time.perf_counter()
    patients.insert(ids, train.vectors, payloads=train.chapters)
    insert_s = time.perf_counter() - start
    predicted, seconds = [], []
    with warnings.catch_warnings(), progress_bar(None, len(queries), f"ask ({profile})", "patients") as advance:
        # Scores of `compact` are key material: here nobody sees them but the holder of the key.
        warnings.simplefilter("ignore", ScoreReleaseWarning)
        patients.search(queries[0], k=K)  # fetches and derives what later ones find in memory
        for query in queries[:ALONE]:
            start = time.perf_counter()
            patients.search(query, k=K)
            seconds.append(time.perf_counter() - start)
        cost = patients.last_search
        assert cost is not None
        for first in range(0, len(queries), BATCH):
            found = patients.search(queries[first : first + BATCH], k=K)
            predicted += [vote([(str(hit.payload), hit.score) for hit in hits]) for hits in found]
            advance(len(found))
    return Encrypted(
        profile=profile,
        predicted=predicted,
        insert_s=insert_s,
        stored_bytes=client.describe(name).stored_bytes,
        query_s=statistics.median(seconds),
        query_bytes=cost.query_bytes,
        answer_bytes=cost.answer_bytes,
    )

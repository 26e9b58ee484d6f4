"""What recall@k and hit@k mean here.

The reference is the exact search: inner products in float64 of the float32 vectors. Let t be the k-th best of
one query's. A returned row counts when its own inner product is ≥ t − 2^-23, so that ties count whichever of the
tied rows is returned: 1,463 rows of the catalogue share their title with another row, and titles with the same
words in another order have the same vector but for rounding. 2^-23 is the last place of a float32 score near 1:
what the plaintext search itself cannot tell apart (without it, FAISS misses 1 of 20,000 hits). It forgives
nothing else: the noise of `compact` is 4,000 times larger. recall@k is the mean of (returned rows that count)/k.

hit@k: the share of queries whose right answer's code is among the first k returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

TIE = 2.0**-23
CHUNK = 8192  #: rows that are held as float64 at a time


def kth_best(rows: F32, queries: F32, k: int) -> F64:
    """(n, d), (B, d) → (B,): the k-th largest inner product of each query. Needs 1 ≤ k ≤ n."""
    wide = queries.astype(np.float64)
    best = np.full((len(queries), k), -np.inf)
    for start in range(0, len(rows), CHUNK):
        scores = wide @ rows[start : start + CHUNK].astype(np.float64).T
        best = -np.partition(-np.hstack([best, scores]), k - 1, axis=1)[:, :k]
    return np.asarray(best.min(axis=1), np.float64)


def inner_products(rows: F32, query: F32, found: Sequence[int]) -> F64:
    """(n, d), (d,), k row numbers → (k,) in float64."""
    picked = rows[np.asarray(found, np.int64)].astype(np.float64)
    return np.asarray(picked @ query.astype(np.float64), np.float64)


def recall(rows: F32, queries: F32, found: Sequence[Sequence[int]], k: int) -> list[float]:
    """recall@k of each query; found[b]: the row numbers returned for query b, best first.

    Where there are fewer than k rows, all of them are wanted. A row that is returned twice counts once.
    """
    wanted = min(k, len(rows))
    worst = kth_best(rows, queries, wanted)
    return [
        float(np.sum(inner_products(rows, query, sorted(set(got[:wanted]))) >= least - TIE)) / wanted
        for query, got, least in zip(queries, found, worst, strict=True)
    ]


def hit_share(found_codes: Sequence[Sequence[str]], right: Sequence[str], k: int) -> float:
    """hit@k over queries; found_codes[b]: codes returned for query b, best first."""
    hits = [code in codes[:k] for codes, code in zip(found_codes, right, strict=True)]
    return sum(hits) / len(hits)

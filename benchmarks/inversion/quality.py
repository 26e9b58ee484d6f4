"""How well a search still finds what was asked for, beside what it gives away (he_client.demo.recall has the terms)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.texts import Drawn
from he_client.demo.recall import hit_share, recall

K = 10


def best(scores: NDArray[Any]) -> list[list[int]]:
    """The rows of the ten largest of each line, ties in the order of rows."""
    return [[int(row) for row in np.argsort(-line, kind="stable")[:K]] for line in scores]


def quality(drawn: Drawn, scores: NDArray[Any]) -> dict[str, float]:
    """Of a search that ranks by these scores, (queries, rows)."""
    return found_quality(drawn, best(scores))


def found_quality(drawn: Drawn, found: Sequence[Sequence[int]]) -> dict[str, float]:
    """Of rows found for the first queries, best first. Recall is against the plaintext search of the same rows; hits
    are of queries whose right answer is among the rows."""
    asked = drawn.queries[: len(found)]
    stored = set(drawn.row_codes)
    answerable = [number for number in range(len(found)) if drawn.query_codes[number] in stored]
    right = [drawn.query_codes[number] for number in answerable]

    def hits(rows: Sequence[Sequence[int]]) -> float:
        return hit_share([[drawn.row_codes[row] for row in rows[number]] for number in answerable], right, K)

    return {
        "queries": len(found),
        "recall_at_10": float(np.mean(recall(drawn.rows, asked, found, K))),
        "answerable": len(answerable),
        "hit_at_10": hits(found),
        "plaintext_hit_at_10": hits(best(asked @ drawn.rows.T)),
    }

"""Is what a search returned right? Decided on plaintext, for collections that others change meanwhile.

Every owner's rows change by its own operations alone, one after the other. So a search, whichever version it ran on,
saw of each owner one of the states between its last operation acknowledged before and its last one begun by the end.
Then, up to the noise of a score:

* a hit is a row of one of those states, with the payload and the score that its vector has;
* ids are there once, scores descend;
* a row that is in all states, and nearer than the last hit, is a hit;
* if there are fewer hits than asked for, they are all rows: of each owner exactly one state, no mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from he_client import Hit
from tests.torture.rows import Rows, owner_of, payload, vector

TOLERANCE = 6e-3  #: of a score of the profile `compact`: ten standard deviations and the rounding of rows

Items = set[tuple[int, int]]


@dataclass(slots=True)
class Findings:
    """What is wrong with one result, and what was found of each owner."""

    lost: int = 0
    phantom: int = 0
    problems: list[str] = field(default_factory=list)
    found: dict[int, Rows] = field(default_factory=dict)


def examine(hits: Sequence[Hit], k: int, query: NDArray[np.float64], states: Mapping[int, Sequence[Rows]]) -> Findings:
    """`states`: of each owner those that the search may have seen. `query`: (DIM,), of norm 1."""
    out = Findings(found={owner: {} for owner in states})
    possible: Items = set().union(*(rows.items() for each in states.values() for rows in each))
    certain: Items = set().union(*(set.intersection(*(set(rows.items()) for rows in each)) for each in states.values()))
    seen: Items = set()
    for hit in hits:
        row, revision = int(hit.id), _revision(hit)
        owned = out.found.setdefault(owner_of(row), {})
        if row in owned:
            out.problems.append(f"row {row} is there twice")
        owned[row] = revision
        seen.add((row, revision))
        if (row, revision) not in possible:
            out.phantom += 1
            out.problems.append(f"row {row} of revision {revision} is there, and cannot be")
        elif abs(hit.score - float(vector(row, revision) @ query)) > TOLERANCE:
            out.problems.append(f"row {row} of revision {revision}: a wrong score")
    if any(first.score < second.score for first, second in pairwise(hits)):
        out.problems.append("the scores do not descend")
    last = hits[-1].score + TOLERANCE if len(hits) == k else -np.inf
    for row, revision in certain - seen:
        if float(vector(row, revision) @ query) > last:
            out.lost += 1
            out.problems.append(f"row {row} of revision {revision} is missing")
    if len(hits) < k:
        for owner, each in states.items():
            if out.found[owner] not in each:
                out.problems.append(f"owner {owner}: its rows are those of none of {len(each)} states")
    elif len(hits) > k:
        out.problems.append(f"{len(hits)} hits, {k} asked for")
    return out


def _revision(hit: Hit) -> int:
    """As the payload says; −1 where that is another row's, or no row's."""
    _, _, revision = str(hit.payload).partition(" ")
    return int(revision) if revision.isdigit() and hit.payload == payload(int(hit.id), int(revision)) else -1

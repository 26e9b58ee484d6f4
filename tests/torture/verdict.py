"""The state of a collection, as a client finds it that knows nothing yet, against what its owners may have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from he_client import Client, CollectionKey
from he_engine.errors import HesearchError
from tests.torture.oracle import examine
from tests.torture.rows import DIM, Owner
from tests.torture.tally import Tally

ALL = 1_000_000  #: more than there are
FEW = 7


def queries(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count, DIM), of norm 1."""
    drawn = rng.standard_normal((count, DIM))
    unit: NDArray[np.float64] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def settle(
    address: str,
    name: str,
    key: CollectionKey,
    owners: Sequence[Owner],
    rng: np.random.Generator,
    tally: Tally,
    where: str,
) -> None:
    """Checks every row and its scores, and two more searches. Operations that were pending have then happened, and are
    counted as `… kept`, or not, `… undone`. Nobody else may be writing."""
    states = {owner.number: owner.states() for owner in owners}
    asked = list(zip(queries(rng, 3), (ALL, ALL, FEW), strict=True))
    try:
        with Client(address, insecure=True, threads=1) as client:
            collection = client.open_collection(name, key=key)
            count = collection.count()
            results = [examine(collection.search(query, k=k), k, query, states) for query, k in asked]
    except HesearchError as error:
        return tally.fail(where, error)
    for findings in results:
        tally.add(where, findings)
    found = results[0].found
    if count != sum(map(len, found.values())):
        tally.fail(where, f"{count} rows counted, {sum(map(len, found.values()))} found")
    for owner in owners:
        if owner.pending is not None and owner.pending.kind != "compact":  # of which nothing shows
            kept = found[owner.number] == owner.states()[-1]
            tally.counts[f"{owner.pending.kind} {'kept' if kept else 'undone'}"] += 1
        if owner.pending is not None:
            owner.settle(found[owner.number])
        owner.rows = found[owner.number]
    return None

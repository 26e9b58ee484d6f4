"""Records of hospitals, or what stands in for them: names of diagnoses, embedded, each with the chapter it belongs to.

The 12,538 different inclusion terms of ICD-10-CM ("Classical cholera" → chapter 1, infectious diseases) are public, so
the example runs anywhere; real records would be longer, noisier and private. A fifth is set aside to test on; the rest
is dealt to hospitals unevenly, as to specialised ones: of each chapter, shares drawn from a Dirichlet distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_client.demo.catalogue import load_catalogue
from he_client.demo.encoders import load_encoder

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    vectors: F32  #: (n, d), unit vectors
    labels: I64  #: (n,), 0 to classes − 1

    def __post_init__(self) -> None:
        """Raises ValueError: one such record would end the training, and tell that it is there."""
        if not np.isfinite(self.vectors).all():
            raise ValueError("records: a vector has numbers that are not finite")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: I64) -> Records:
        return Records(self.vectors[rows], self.labels[rows])


def load_records(limit: int | None = None) -> tuple[Records, int]:
    """(records, number of chapters). limit: so many of them, drawn evenly."""
    import simple_icd_10_cm as icd

    terms = list({term.text: term for term in load_catalogue().terms}.values())
    names = sorted({icd.get_ancestors(term.code)[-1] for term in terms}, key=int)
    if limit is not None:
        terms = [terms[i * len(terms) // limit] for i in range(limit)]
    chapters = [icd.get_ancestors(term.code)[-1] for term in terms]
    labels = np.array([names.index(chapter) for chapter in chapters])
    return Records(load_encoder("wordllama").embed([term.text for term in terms]), labels), len(names)


def split(records: Records, hospitals: int, alpha: float, seed: int) -> tuple[list[Records], Records]:
    """(a share for each hospital, what is tested on). alpha: of the Dirichlet distribution; small is uneven."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(records))
    tested, rest = order[: len(order) // 5], order[len(order) // 5 :]
    shares: list[list[I64]] = [[] for _ in range(hospitals)]
    for chapter in np.unique(records.labels[rest]):
        rows = rest[records.labels[rest] == chapter]
        cuts = np.cumsum(rng.dirichlet(np.full(hospitals, alpha)))[:-1] * len(rows)
        for share, part in zip(shares, np.split(rows, cuts.astype(int)), strict=True):
            share.append(part)
    return [records[np.sort(np.concatenate(share))] for share in shares], records[tested]

"""Who knows which texts: what the owner stores and asks, what the attacker knows, what is to be found.

All are ICD-10-CM titles and inclusion terms, no two of one draw with the same words: wordllama averages the words of a
text, so that such two would have one vector, and nobody could tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_client.demo.catalogue import Catalogue
from he_client.demo.encoders import Encoder

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    known: int  #: rows whose text the attacker knows
    targets: int  #: rows whose text is to be found
    candidates: int  #: texts of the public corpus, those of the targets among them
    queries_known: int
    queries_targets: int
    tenseal_known: int  #: queries of that engine: each is 8 MB
    tenseal_targets: int
    score_targets: int  #: rows whose scores leak
    dp_targets: int  #: rows that are really released: exact noise is slow
    least: int  #: known texts that a word must be in for a decoder to learn it


FULL = Sizes(
    known=4096, targets=4096, candidates=10_000, queries_known=1000, queries_targets=1000, tenseal_known=100,
    tenseal_targets=200, score_targets=1000, dp_targets=500, least=8,
)  # fmt: skip
SMALL = Sizes(
    known=384, targets=384, candidates=1000, queries_known=48, queries_targets=48, tenseal_known=8, tenseal_targets=16,
    score_targets=96, dp_targets=32, least=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """K texts that the attacker knows, then n that it looks for; C public candidates, one of them right for each."""

    embedded: list[str]  #: (K + n): the texts behind what is seen
    learned: F32  #: (K, d): the vectors that belong to the known ones
    candidates: F32  #: (C, d): vectors of the public corpus
    places: I64  #: (n,): the right candidate

    @property
    def known(self) -> int:
        return len(self.learned)

    def first(self, known: int, targets: int) -> Game:
        """The same with fewer of both."""
        kept = [*range(known), *range(self.known, self.known + targets)]
        return Game(
            embedded=[self.embedded[i] for i in kept],
            learned=self.learned[:known],
            candidates=self.candidates,
            places=self.places[:targets],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One draw of texts and their vectors."""

    rows: F32  #: (K + n, d): what the owner stores, known rows first
    row_codes: list[str]
    queries: F32  #: what the owner asks, known ones first
    query_codes: list[str]  #: the code that a query means; not all are among the rows
    same: Game  #: the rows; the corpus has their very texts
    altered: Game  #: one word of each row's text is missing, known and sought; the corpus has the whole text
    altered_vectors: F32
    described: Game  #: vectors of inclusion terms; the corpus has the titles that they belong to
    described_vectors: F32
    asked: Game  #: the queries; the corpus has their very texts


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def draw(catalogue: Catalogue, encoder: Encoder, sizes: Sizes, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    titles = _different(catalogue.titles, rng)[: sizes.known + sizes.candidates]
    known, candidates = titles[: sizes.known], titles[sizes.known :]
    texts = [catalogue.titles[i] for i in titles]
    vectors = encoder.embed(texts)
    stored = sizes.known + sizes.targets
    code_at = {catalogue.codes[i]: at for at, i in reversed(list(enumerate(titles)))}
    corpus, where = _shuffled(vectors[sizes.known :], rng)
    same = Game(
        embedded=texts[:stored], learned=vectors[: sizes.known], candidates=corpus, places=where[: sizes.targets]
    )
    shorter = [_without_a_word(text, rng) for text in texts[:stored]]

    terms = [catalogue.terms[i] for i in _different([t.text for t in catalogue.terms], rng)]
    behind = [[t for t in terms if t.code in {catalogue.codes[i] for i in part}] for part in (known, candidates)]
    described_by = [t.text for part in behind for t in part]
    titled = [vectors[[code_at[t.code] for t in part]] for part in behind]
    described = Game(
        embedded=described_by,
        learned=titled[0],
        candidates=corpus,
        places=where[[code_at[t.code] - sizes.known for t in behind[1]]],
    )

    asked_count = sizes.queries_known + sizes.queries_targets
    answerable = {catalogue.codes[i] for i in titles[:stored]}
    ordered = sorted(terms, key=lambda t: t.code not in answerable)  # those with an answer among the rows first
    asked = [ordered[i] for i in rng.permutation(asked_count)]
    others = ordered[asked_count:][: sizes.candidates - sizes.queries_targets]
    asked_vectors = encoder.embed([t.text for t in asked])
    public = np.concatenate([asked_vectors[sizes.queries_known :], encoder.embed([t.text for t in others])])
    query_corpus, query_where = _shuffled(public, rng)
    return Drawn(
        rows=vectors[:stored],
        row_codes=[catalogue.codes[i] for i in titles[:stored]],
        queries=asked_vectors,
        query_codes=[t.code for t in asked],
        same=same,
        altered=Game(embedded=shorter, learned=same.learned, candidates=corpus, places=same.places),
        altered_vectors=encoder.embed(shorter),
        described=described,
        described_vectors=encoder.embed(described_by),
        asked=Game(
            embedded=[t.text for t in asked],
            learned=asked_vectors[: sizes.queries_known],
            candidates=query_corpus,
            places=query_where[: sizes.queries_targets],
        ),
    )


def _different(texts: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Numbers of texts, no two with the same words, in a random order."""
    first: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        first.setdefault(tuple(sorted(words_of(text))), number)
    numbers = list(first.values())
    return [numbers[i] for i in rng.permutation(len(numbers))]


def _shuffled(vectors: F32, rng: np.random.Generator) -> tuple[F32, I64]:
    """The corpus in another order, and where each of it is now: no place may give an answer away."""
    order = rng.permutation(len(vectors))
    return vectors[order], np.argsort(order)


def _without_a_word(text: str, rng: np.random.Generator) -> str:
    words = text.split()
    if len(words) < 2:
        return text
    gone = int(rng.integers(len(words)))
    return " ".join(words[:gone] + words[gone + 1 :])

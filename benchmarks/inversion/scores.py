"""The attacker who sees scores alone: a leaked log of one row's scores for queries that the attacker knows.

Scores are what profile `exact` gives, to the last bit or rounded. Each is one linear equation for the d coordinates of
a row, so d of them determine it; fewer are enough for who knows what rows look like, and a few for who has the text in
a corpus. What approximate scores reveal beyond that, the key, is docs/score-release.md.

    least squares   argmin ‖Q·x − s‖, of least norm while there are fewer than d
    with the corpus the mean of x given s, where x has the mean and covariance of the public corpus
    matching        the text of the corpus whose own scores for the same queries are nearest
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inversion.chance import share
from benchmarks.inversion.quality import quality
from benchmarks.inversion.texts import Drawn, Sizes
from benchmarks.inversion.words import Decoder, Vocabulary, judge
from benchmarks.subjects import integer_scores
from he_engine.params import Parameters

F64 = NDArray[np.float64]

COUNTS = (2, 4, 8, 16, 64, 128, 192, 256, 320, 512)  #: scores of a row that leaked
DECIMALS = (None, 4, 3, 2)  #: None: every digit


def measure(drawn: Drawn, sizes: Sizes, p: Parameters, rng: np.random.Generator, confidence: float) -> dict[str, Any]:
    game = drawn.same.first(sizes.known, sizes.score_targets)
    rows = drawn.rows[sizes.known :][: sizes.score_targets].astype(np.float64)
    asked = game.learned[rng.permutation(game.known)[: max(COUNTS)]].astype(np.float64)  # texts that are known
    true = integer_scores(rows, asked, p.quantiser)
    public = game.candidates.astype(np.float64)
    vocabulary = Vocabulary(game, sizes.least)
    decoder = Decoder("linear", game.learned.astype(np.float64), vocabulary, rng)
    points = []
    for decimals in DECIMALS:
        leaked = true if decimals is None else np.round(true, decimals)
        rounding = 0.0 if decimals is None else 10.0**-decimals
        error = rounding**2 / 12 + p.score_error_std**2
        for count in COUNTS:
            q, s = asked[:count], leaked[:count]
            solved = np.asarray(np.linalg.lstsq(q, s, rcond=None)[0].T, np.float64)
            likely = _given(public, q, s, error)
            own = public @ q.T
            far = (own**2).sum(1) - 2 * s.T @ own.T  # and the same for all candidates of a row
            hits = int(np.sum(far.argmin(1) == game.places))
            points.append(
                {
                    "scores": count,
                    "decimals": decimals,
                    "cosine_least_squares": _median_cosine(solved, rows),
                    "cosine_with_corpus": _median_cosine(likely, rows),
                    "match": share(hits, len(rows), confidence),
                    "words": judge(decoder(likely), vocabulary, rng, confidence),
                }
            )
    every = integer_scores(drawn.rows.astype(np.float64), drawn.queries.astype(np.float64), p.quantiser)
    return {
        "points": points,
        "quality": {
            str(decimals): quality(drawn, every if decimals is None else np.round(every, decimals))
            for decimals in DECIMALS
        },
    }


def _given(public: F64, q: F64, s: F64, error: float) -> F64:
    """E[x | Q·x + noise = s] for each column of s, (n, d)."""
    mean = public.mean(0)
    covariance = np.cov(public, rowvar=False)
    cross = covariance @ q.T
    gain = np.linalg.solve(q @ cross + error * np.eye(len(q)), cross.T).T
    likely: F64 = mean + (s.T - mean @ q.T) @ gain.T
    return likely


def _median_cosine(found: F64, rows: F64) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(rows, axis=1)
    return float(np.median(np.sum(found * rows, axis=1) / np.where(norms > 0, norms, 1)))  # of 0, where it is nothing

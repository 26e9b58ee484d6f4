"""How right encrypted answers are, on real data: all 98,505 ICD-10-CM titles, inclusion terms as queries.

    python -m benchmarks.icd --profile exact --queries 1000 --json out.json

Every score of every query is compared with the plaintext's: bit for bit with the integer search (`exact`), in standard
deviation with the float64 search. Times are `benchmarks.overhead`'s business.

JSON keys (stable): `profile`, `rows`, `dim`, `queries`, `scores_compared`, `integer_identical` (`exact`; else null),
`recall_at_10` (ties count: he_client.demo.recall), `score_error_std`, `score_error_max`, `expected_score_error_std`,
`hit_at_10` and `plaintext_hit_at_10` (the right code among the first ten).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import print_json
from benchmarks.subjects import Subject
from he_client.demo.catalogue import load_catalogue
from he_client.demo.encoders import load_encoder
from he_client.demo.recall import hit_share, recall
from he_client.progress import progress_bar
from he_engine.params import Parameters

K = 10
SEED = 1


def measure(profile: str, queries: int, threads: int) -> dict[str, Any]:
    catalogue, encoder = load_catalogue(), load_encoder("wordllama")
    vectors = encoder.embed(catalogue.titles)
    terms = catalogue.sample_terms(queries, SEED)
    asked = encoder.embed([term.text for term in terms])
    rows = vectors.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found, plain, square, largest, identical = [], [], 0.0, 0.0, True
    with (
        tempfile.TemporaryDirectory(prefix="hesearch-bench-") as folder,
        progress_bar(None, len(terms), "ask", "questions") as advance,
    ):
        subject = Subject(Path(folder), rows, "hint", profile, None, threads)
        parameters = subject.parameters
        assert isinstance(parameters, Parameters)
        s = parameters.quantiser  # 0 unless `exact`
        integers = np.rint(rows * s)
        for vector in asked.astype(np.float64):
            vector /= np.linalg.norm(vector)
            query = subject.client.query(vector)
            scores, truth = subject.scores(query, subject.answer(query)), rows @ vector
            if s:
                identical = identical and np.array_equal(scores, integers @ np.rint(vector * s) / float(s * s))
            square += float(np.square(scores - truth).sum())
            largest = max(largest, float(np.abs(scores - truth).max()))
            found.append(np.argsort(-scores, kind="stable")[:K].tolist())
            plain.append(np.argsort(-truth, kind="stable")[:K].tolist())
            advance(1)
        subject.close()
    right = [term.code for term in terms]
    compared = len(rows) * len(terms)
    return {
        "profile": profile,
        "rows": len(rows),
        "dim": encoder.dim,
        "queries": len(terms),
        "scores_compared": compared,
        "integer_identical": bool(identical) if s else None,
        "recall_at_10": float(np.mean(recall(vectors, asked, found, K))),
        "score_error_std": (square / compared) ** 0.5,
        "score_error_max": largest,
        "expected_score_error_std": parameters.score_error_std,
        "hit_at_10": hit_share([[catalogue.codes[r] for r in one] for one in found], right, K),
        "plaintext_hit_at_10": hit_share([[catalogue.codes[r] for r in one] for one in plain], right, K),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.icd", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), default="exact")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(arguments.profile, arguments.queries, arguments.threads)
    print_json(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

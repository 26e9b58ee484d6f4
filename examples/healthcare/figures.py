"""What a run measures: the keys of its JSON, which stay while `format` is 1. Times in s, sizes in bytes, shares 0 to 1.

"Accuracy" is the share of test patients whose chapter is predicted; `low` and `high` bound it with 95 % confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.healthcare.evaluation import accuracy, difference, is_right


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method."""

    method: str
    kind: str  #: "clear", "encrypted" or "dp"
    accuracy: float
    low: float
    high: float
    epsilon: float | None  #: null: no guarantee of this sort
    learns: str  #: who learns what
    prepare_s: float | None  #: indexing or training
    prepare_bytes: int | None  #: that leave who has the records
    predict_s: float | None  #: one patient alone, median
    predict_bytes: int | None  #: sent for it

    @classmethod
    def of(
        cls,
        method: str,
        kind: str,
        predicted: Sequence[str],
        truth: Sequence[str],
        learns: str,
        *,
        epsilon: float | None = None,
        prepare_s: float | None = None,
        prepare_bytes: int | None = None,
        predict_s: float | None = None,
        predict_bytes: int | None = None,
    ) -> Row:
        share, low, high = accuracy(is_right(predicted, truth))
        return cls(
            method=method, kind=kind, accuracy=share, low=low, high=high, epsilon=epsilon, learns=learns,
            prepare_s=prepare_s, prepare_bytes=prepare_bytes, predict_s=predict_s, predict_bytes=predict_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Encrypted k-NN beside the plaintext one, on the same test patients."""

    profile: str
    agreement: float  #: share of patients for whom both predict the same
    difference: float  #: accuracy − that of the plaintext one
    low: float
    high: float
    answer_bytes: int  #: received for one prediction

    @classmethod
    def of(
        cls,
        profile: str,
        predicted: Sequence[str],
        plaintext: Sequence[str],
        truth: Sequence[str],
        *,
        answer_bytes: int,
    ) -> Against:
        estimate, low, high = difference(is_right(predicted, truth), is_right(plaintext, truth))
        return cls(
            profile=profile, agreement=float(is_right(predicted, plaintext).mean()), difference=estimate, low=low,
            high=high, answer_bytes=answer_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run."""

    format: int = 1
    machine: dict[str, Any]
    arguments: dict[str, Any]
    train: int  #: patients
    test: int
    hospitals: dict[str, int]  #: patients of each, in `train`
    chapters: int
    dim: int
    k: int  #: neighbours
    delta: float  #: of every ε
    identifiers: int  #: family names, record numbers and telephones in the notes; each note may repeat them
    identifiers_left: int  #: still there when notes are embedded
    note: str  #: the first test patient's (synthetic)
    embedded: str  #: the same as it is embedded
    total_s: float
    rows: list[Row] = field(default_factory=list)
    against: list[Against] = field(default_factory=list)

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
    kind: str  #: "clear", "encrypted", "dp" or "federated"
    accuracy: float
    low: float
    high: float
    learns: str  #: who learns what
    epsilon: float | None = None  #: null: no guarantee of this sort
    prepare_s: float | None = None  #: indexing or training
    prepare_bytes: int | None = None  #: that leave who has the records
    predict_s: float | None = None  #: one patient alone, median; null: not measured
    predict_bytes: int | None = None  #: sent for it

    @classmethod
    def of(
        cls, method: str, kind: str, predicted: Sequence[str], truth: Sequence[str], learns: str, **cost: Any
    ) -> Row:
        """cost: the fields that may be null."""
        return cls.of_share(method, kind, float(is_right(predicted, truth).mean()), len(truth), learns, **cost)

    @classmethod
    def of_share(cls, method: str, kind: str, share: float, patients: int, learns: str, **cost: Any) -> Row:
        """share: of so many patients, predicted right."""
        _, low, high = accuracy(share, patients)
        return cls(method=method, kind=kind, accuracy=share, low=low, high=high, learns=learns, **cost)


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

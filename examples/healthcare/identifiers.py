"""Names, record numbers and telephones leave the notes before these are embedded: an embedding gives its text away."""

from __future__ import annotations

from collections.abc import Sequence

from examples.healthcare.patients import Patient, known_names
from he_client.protect.text import Pipeline, PseudonymKey, Pseudonyms, Recognisers, Redact


def without_identifiers(patients: Sequence[Patient]) -> list[str]:
    """The notes, with labels instead. Raises MissingExtra."""
    recognisers = Recognisers(known_names(), regions=("US",))
    return Pipeline([Redact("PERSON", "MRN", "PHONE_NUMBER")], recognisers).batch([p.note for p in patients])


def left(patients: Sequence[Patient], notes: Sequence[str]) -> int:
    """Family names, record numbers and telephones that are still in their patient's note."""
    return sum(value in note for p, note in zip(patients, notes, strict=True) for value in p.identifiers)


def pseudonyms(patients: Sequence[Patient], key: PseudonymKey) -> list[str]:
    """Of the record numbers: what a search returns names nobody to who lacks the key."""
    of = Pseudonyms(key, "mrn").of
    return [of(p.record) for p in patients]

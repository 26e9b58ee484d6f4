"""Notes as somebody in a hurry might type them: other names of diagnoses, abbreviations, dropped words, typing errors,
complaints that say nothing, and the patient's name, record number and telephone.

The principal diagnosis is named twice, by two of its names where it has them; every other diagnosis once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

ABBREVIATED, DROPPED, MISTYPED = (
    0.5,
    0.1,
    0.08,
)  #: probabilities: of what has an abbreviation; of a word; of a long word
LONG = 5  #: letters
ABBREVIATIONS = {
    "acute": "ac", "bilateral": "bilat", "chronic": "chr", "complication": "compl", "complications": "compl",
    "congenital": "cong", "diabetes mellitus": "DM", "diagnosis": "dx", "disease": "dis", "diseases": "dis",
    "disorder": "d/o", "disorders": "d/o", "fracture": "fx", "history": "hx", "hypertension": "HTN", "infection": "inf",
    "left": "L", "malignant": "malig", "myocardial infarction": "MI", "right": "R", "secondary": "sec",
    "syndrome": "synd", "treatment": "tx", "unspecified": "unsp", "with": "w/", "without": "w/o",
}  # fmt: skip
_ABBREVIATED = re.compile(r"\b(" + "|".join(sorted(ABBREVIATIONS, key=len, reverse=True)) + r")\b", re.IGNORECASE)
OPENINGS = (
    "Pt {given} {family}, {age} y, MRN {record}.",
    "{given} {family} (MRN {record}), {age} years old.",
    "MRN {record}. Ms/Mr {family}, age {age}.",
)
PRINCIPAL = ("Admitted with {}.", "Presents with {}.", "Seen for {}.", "Referred for {}.")
ASSESSMENT = ("Assessment: {}.", "Impression: {}.", "Plan: continue care for {}.")
OTHERS = ("Hx: {}.", "Also known: {}.", "PMH {}.")
COMPLAINTS = (
    "fatigue", "poor sleep", "mild headache", "reduced appetite", "dizzy on standing", "low mood", "back ache",
    "nausea", "feels cold", "dry mouth", "sore muscles", "weight stable", "no fever", "lives alone", "walks unaided",
    "non-smoker",
)  # fmt: skip
CLOSINGS = ("Next of kin {phone}.", "Call back {phone}.", "Tel {phone} for {given} {family}.")


def write_note(
    rng: random.Random,
    given: str,
    family: str,
    record: str,
    phone: str,
    age: str,
    diagnoses: Sequence[Sequence[str]],
) -> str:
    """diagnoses: the names of each, the principal one first."""

    person = {"given": given, "family": family, "record": record, "phone": phone, "age": age}
    principal, *others = diagnoses
    complaints = rng.sample(COMPLAINTS, rng.randint(1, 3))
    parts = [
        rng.choice(OPENINGS).format(**person),
        rng.choice(PRINCIPAL).format(hurried(rng, rng.choice(principal))),
        f"C/o {', '.join(complaints)}.",
    ]
    if others:
        parts.append(rng.choice(OTHERS).format("; ".join(hurried(rng, rng.choice(names)) for names in others)))
    parts += [rng.choice(ASSESSMENT).format(hurried(rng, rng.choice(principal))), rng.choice(CLOSINGS).format(**person)]
    return " ".join(parts)


def hurried(rng: random.Random, text: str) -> str:
    """Abbreviated, with words left out and mistyped; at least one word stays."""

    def short(match: re.Match[str]) -> str:
        return ABBREVIATIONS[match[0].lower()] if rng.random() < ABBREVIATED else match[0]

    words = _ABBREVIATED.sub(short, text).split()
    kept = [word for word in words if rng.random() >= DROPPED] or words[:1]
    return " ".join(_mistyped(rng, word) if rng.random() < MISTYPED else word for word in kept)


def _mistyped(rng: random.Random, word: str) -> str:
    """Two letters exchanged, one lost, or one doubled."""
    if len(word) < LONG or not word.isalpha():
        return word
    at, kind = rng.randrange(len(word) - 1), rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == 1 else word[: at + 1] + word[at:]

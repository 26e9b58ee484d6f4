"""Synthetic patients. Nobody's data, and no medicine: who has what, where and at which age is drawn at random.

A diagnosis: a category of ICD-10-CM (1,643 of chapters 1 to 19 and 21) uniformly, then one of its subcategories
uniformly; so chapters are as large as the catalogue makes them. Chapters 20 (external causes) and 22 (special purposes)
are left out. A patient: a principal diagnosis and 0 to 3 others, each of its chapter with probability 1/3, else of any;
an age band uniformly; a hospital by the chapter of the principal diagnosis, with shares that are Dirichlet(1) for each
chapter, so hospitals are specialised. The chapter of the principal diagnosis is what is predicted from the note.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from examples.healthcare.notes import write_note
from he_client.demo.catalogue import load_catalogue

HOSPITALS = ("north", "south", "east", "west", "lake")
AGES = ("0-17", "18-39", "40-64", "65-79", "80+")
CHAPTERS = tuple(str(number) for number in (*range(1, 20), 21))
MOST_OTHERS = 3
SAME_CHAPTER = 1 / 3
CATEGORY, SUBCATEGORY = 3, 5  #: characters of a code
GIVEN = (
    "Anna", "Boris", "Carla", "Dmitri", "Elif", "Femi", "Greta", "Hamid", "Ines", "Jonas", "Keiko", "Luca",
    "Mara", "Nils", "Olga", "Pablo", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wim", "Yara", "Zeno",
)  # fmt: skip
FAMILY = (
    "Abendroth", "Bakkali", "Castellanos", "Dombrowski", "Eriksen", "Ferreira", "Grigoryan", "Haavisto", "Ivanenko",
    "Jankowski", "Kowalczyk", "Lindqvist", "Mbeki", "Nakashima", "Okonkwo", "Petrossian", "Quintanilla", "Rasmussen",
    "Szymanski", "Takahashi", "Ulvestad", "Vandenberg", "Wojcik", "Yildirim", "Zielinski",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diagnosis:
    chapter: str
    names: tuple[str, ...]  #: its title, then other names of it


@dataclass(frozen=True, slots=True, repr=False)
class Patient:
    hospital: str
    age: str
    given: str
    family: str
    record: str  #: medical record number, unique
    phone: str  #: of the range that is kept for fiction
    diagnoses: tuple[Diagnosis, ...]  #: the principal one first
    note: str

    @property
    def chapter(self) -> str:
        return self.diagnoses[0].chapter

    @property
    def identifiers(self) -> tuple[str, ...]:
        return self.family, self.record, self.phone


def make_patients(count: int, seed: int) -> list[Patient]:
    """The same for the same arguments. Raises MissingExtra without ICD-10-CM."""
    rng = random.Random(seed)
    categories = _categories()
    of_chapter = {chapter: [c for c in categories if c[0].chapter == chapter] for chapter in CHAPTERS}
    shares = {chapter: [rng.expovariate(1) for _ in HOSPITALS] for chapter in CHAPTERS}
    records = rng.sample(range(10_000_000, 100_000_000), count)

    def draw(among: list[list[Diagnosis]]) -> Diagnosis:
        return rng.choice(rng.choice(among))

    patients = []
    for record in records:
        principal = draw(categories)
        others = [
            draw(of_chapter[principal.chapter] if rng.random() < SAME_CHAPTER else categories)
            for _ in range(rng.randint(0, MOST_OTHERS))
        ]
        given, family, age = rng.choice(GIVEN), rng.choice(FAMILY), rng.choice(AGES)
        phone = f"({rng.choice((212, 312, 415, 617))}) 555-01{rng.randrange(100):02}"
        note = write_note(rng, given, family, str(record), phone, age, [d.names for d in (principal, *others)])
        hospital = rng.choices(HOSPITALS, shares[principal.chapter])[0]
        diagnoses = (principal, *others)
        patients.append(Patient(hospital, age, given, family, str(record), phone, diagnoses, note))
    return patients


def known_names() -> list[str]:
    """As a hospital knows who its patients are: full names, and family names alone."""
    return [*(f"{given} {family}" for given in GIVEN for family in FAMILY), *FAMILY]


def _categories() -> list[list[Diagnosis]]:
    """The subcategories of each category (itself, where it has none). A code is a letter and two characters, a dot, and
    one more for a subcategory; what is below lends it its other names. Chapters come before their codes."""
    catalogue = load_catalogue()
    titles = dict(zip(catalogue.codes, catalogue.titles, strict=True))
    names: dict[str, list[str]] = defaultdict(list)
    for term in catalogue.terms:
        names[term.code[:SUBCATEGORY]].append(term.text)
    chapter, found = "", dict[str, list[Diagnosis]]()
    for code, title in titles.items():
        if code.isdigit():
            chapter = code
        elif chapter in CHAPTERS and len(code) in (CATEGORY, SUBCATEGORY):
            diagnosis = Diagnosis(chapter, tuple(dict.fromkeys([title, *names[code]])))
            found.setdefault(code[:CATEGORY], []).append(diagnosis)
    return [members[1:] or members for members in found.values()]

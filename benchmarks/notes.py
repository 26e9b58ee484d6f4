"""Made-up clinical notes with planted identifiers: where each stands, its kind, its form. All synthetic.

Seeded. Numbers have right checksums where their kinds have any. What real notes look like, and how often each form
occurs in them, is another question: shares here are ours, and so are averages over forms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

GIVEN = (  # noqa: SIM905
    "Anna Ben Carla David Elena Finn Greta Hannah Ivan Julia Karl Laura Mehmet Nora Oskar Paula Quentin Rosa Samuel "
    "Theresa Ulrich Vera William Xenia Yusuf Zoe Grace Mark Will May"
).split()
FAMILY = (  # noqa: SIM905
    "Meyer Schmidt Yılmaz Novak O'Brien García Nguyen Kowalski Fischer Weber Johnson Williams Lang Young Baker Stone "
    "Sommer Winter Brandt Krüger Petrov Rossi Haddad Cohen Silva Lindqvist Müller-Thiel Walker Price Rice"
).split()
MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Planted:
    entity: str
    form: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Note:
    text: str
    planted: list[Planted]


def person(rng: random.Random) -> str:
    return f"{rng.choice(GIVEN)} {rng.choice(FAMILY)}"


def digits(rng: random.Random, count: int) -> str:
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(count - 1))


def grouped(text: str, size: int, separator: str) -> str:
    return separator.join(text[i : i + size] for i in range(0, len(text), size))


def luhn(payload: str) -> str:
    """The check digit after these digits."""
    doubled = [int(c) * (2 - i % 2) for i, c in enumerate(reversed(payload))]
    return str(-sum(n // 10 + n % 10 for n in doubled) % 10)


def card(rng: random.Random) -> str:
    payload = "4" + digits(rng, 14)
    return payload + luhn(payload)


def iban(rng: random.Random) -> str:
    account = digits(rng, 18)
    return f"DE{98 - int(account + '131400') % 97:02}{account}"


def insurance(rng: random.Random) -> str:
    """A German one: a letter, eight digits, a check digit with weights 1, 2, 1, …"""
    letter, number = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), digits(rng, 8)
    weighted = [int(c) * (1 + i % 2) for i, c in enumerate(f"{ord(letter) - 64:02}{number}")]
    return f"{letter}{number}{sum(n // 10 + n % 10 for n in weighted) % 10}"


def mbi(rng: random.Random) -> str:
    """N digit, L letter, A either: NLANLANLLNN."""
    letters, numbers = "ACDEFGHJKMNPQRTUVWXY", "0123456789"
    kinds = {"N": numbers, "L": letters, "A": letters + numbers}
    return str(rng.randint(1, 9)) + "".join(rng.choice(kinds[kind]) for kind in "LANLANLLNN")


def ssn(rng: random.Random) -> str:
    return f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"


def date(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(1935, 2024), rng.randint(1, 12), rng.randint(1, 28)


def misspelt(name: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(name.split()[0]) - 1)
    return (
        name[:at] + name[at + 1] + name[at] + name[at + 2 :] if name[at] != name[at + 1] else name[:at] + name[at + 1 :]
    )


Maker = Callable[[random.Random], str]
#: Of each kind: (form, how often, the sentence around it, the identifier).
FORMS: dict[str, list[tuple[str, int, Sequence[str], Maker]]] = {
    "PERSON": [
        ("full name", 6, ("{} was seen today.", "Discussed with {}.", "Next of kin: {}."), person),
        ("family name after a title", 2, ("Dr. {} agrees.", "Mrs. {} consents."), lambda r: r.choice(FAMILY)),
        ("family name first", 1, ("Patient: {}.",), lambda r: ", ".join(reversed(person(r).split(" ", 1)))),
        ("misspelt", 1, ("{} reports no pain.",), lambda r: misspelt(person(r), r)),
    ],
    "DATE_TIME": [
        ("numeric", 5, ("Seen on {}.", "DOB {}.", "geb. {}."), lambda r: r.choice(
            ("{1:02}/{2:02}/{0}", "{2:02}.{1:02}.{0}", "{0}-{1:02}-{2:02}", "{1}/{2}/{0}")).format(*date(r))),
        ("spelled out", 3, ("Admitted {}.", "Surgery on {}."), lambda r: r.choice(
            ("{2} {3} {0}", "{3} {2}, {0}")).format(*(d := date(r)), MONTHS[d[1] - 1])),
        ("month and year", 1, ("Stroke in {}.",), lambda r: f"{r.choice(MONTHS)} {date(r)[0]}"),
        ("day and month", 1, ("Review on {}.",), lambda r: f"{date(r)[2]} {r.choice(MONTHS)}"),
    ],
    "MRN": [
        ("after a label", 4, ("MRN {}.", "MRN: {}.", "Medical record number {}.", "Patient ID {}.", "Fallnummer {}."),
         lambda r: r.choice(("", "", "AB-")) + digits(r, r.randint(6, 9))),
        ("without a label", 1, ("The chart of {} was merged.",), lambda r: digits(r, 8)),
    ],
    "PHONE_NUMBER": [
        ("international", 2, ("Call {}.", "Mobile {}."), lambda r: r.choice(
            (f"+1 212 555 01{digits(r, 2)}", f"+49 30 {digits(r, 7)}", f"+44 20 7946 0{digits(r, 3)}"))),
        ("national", 4, ("Phone {}.", "Tel. {}."), lambda r: r.choice((
            f"(212) 555-01{digits(r, 2)}", f"212-555-01{digits(r, 2)}", f"030 {digits(r, 7)}",
            f"0151/{digits(r, 8)}"))),
        ("extension", 1, ("Ward extension {}.",), lambda r: digits(r, 4)),
    ],
    "EMAIL_ADDRESS": [
        ("public", 3, ("Write to {}.", "Email: {}."), lambda r: f"{person(r).replace(' ', '.').lower()}@example.org"),
        ("intranet", 1, ("Copy to {}.",), lambda r: f"{r.choice(FAMILY).lower()}@ward{r.randint(1, 9)}.local"),
        ("spelled out", 1, ("Reach {}.",), lambda r: f"{r.choice(GIVEN).lower()} (at) example (dot) org"),
    ],
    "URL": [
        ("with a scheme", 2, ("Images at {}.",), lambda r: f"https://pacs.example.org/study?id={digits(r, 6)}"),
        ("without one", 1, ("See {} for the plan.",), lambda r: f"portal.example.org/p/{digits(r, 5)}"),
    ],
    "IP_ADDRESS": [
        ("version 4", 2, ("Device at {}.",), lambda r: f"10.{r.randint(0, 9)}.{r.randint(0, 255)}.{r.randint(1, 254)}"),
        ("version 6", 1, ("Device at {}.",), lambda r: f"2001:db8::{r.randint(1, 65535):x}:{r.randint(1, 65535):x}"),
    ],
    "US_SSN": [
        ("with dashes", 3, ("SSN {}.", "Social security number {}."), ssn),
        ("bare, after a label", 1, ("SSN {}.",), lambda r: ssn(r).replace("-", "")),
        ("bare, without a label", 1, ("On the form: {}.",), lambda r: ssn(r).replace("-", "")),
    ],
    "US_MBI": [
        ("with dashes", 1, ("Medicare {}.",), lambda r: (m := mbi(r))[:4] + "-" + m[4:7] + "-" + m[7:]),
        ("bare", 1, ("MBI {}.",), mbi),
    ],
    "DE_HEALTH_INSURANCE": [("number", 1, ("KVNR {}.", "Versichertennummer {}."), insurance)],
    "CREDIT_CARD": [
        ("in groups", 1, ("Paid with {}.",), lambda r: grouped(card(r), 4, r.choice(" -"))),
        ("bare", 1, ("Paid with card {}.",), card),
    ],
    "IBAN_CODE": [
        ("in groups", 1, ("Refund to {}.",), lambda r: grouped(iban(r), 4, " ")),
        ("bare", 1, ("Refund to IBAN {}.",), iban),
    ],
}  # fmt: skip
#: What is no identifier and looks like some.
PLAIN: list[Maker] = [
    lambda r: f"BP {r.randint(95, 180)}/{r.randint(55, 110)}, HR {r.randint(50, 120)}, SpO2 {r.randint(88, 100)} %.",
    lambda r: f"Pain {r.randint(0, 10)}/10, GCS {r.randint(3, 15)}/15.",
    lambda r: f"Hb {r.uniform(7, 17):.1f} g/dl, WBC {r.uniform(2, 20):.1f}, platelets {r.randint(80, 450)}000.",
    lambda r: f"ICD-10 {r.choice('CEIJK')}{r.randint(10, 99)}.{r.randint(0, 9)}.",
    lambda r: f"Metoprolol {r.choice((25, 50, 100))} mg 1-0-1, {r.randint(2, 12)} weeks.",
    lambda r: f"Lot {r.choice('ABX')}{digits(r, 7)}, expires {r.randint(1, 12):02}/{r.randint(26, 30)}.",
    lambda r: f"SOP 1.2.840.{digits(r, 5)}.5.1.4, series {r.randint(1, 20)}.",
    lambda r: f"Infusion {r.randint(1, 9)}.{r.randint(0, 9)}.{r.randint(0, 9)} firmware, pump {digits(r, 10)}.",
    lambda r: f"Trial NCT{digits(r, 8)}, arm {r.choice('AB')}, cohort {r.randint(1, 4)}-{r.randint(10, 99)}.",
    lambda r: f"Room {r.randint(100, 999)}, bed {r.randint(1, 4)}, Parkinson and Graves disease excluded.",
    lambda _: "Lungs clear, abdomen soft, no oedema; may walk, will rest, price of the drug discussed.",
]


def notes(count: int, seed: int) -> Iterator[Note]:
    """Five to ten sentences, half of them with an identifier; kinds are equally frequent."""
    rng = random.Random(seed)
    for _ in range(count):
        text, planted = "", []
        for _ in range(rng.randint(5, 10)):
            if rng.random() < 0.5:
                text += rng.choice(PLAIN)(rng) + " "
                continue
            entity = rng.choice(list(FORMS))
            form, _, sentences, make = rng.choices(FORMS[entity], [often for _, often, _, _ in FORMS[entity]])[0]
            before, after = rng.choice(sentences).split("{}")
            identifier = make(rng)
            start = len(text) + len(before)
            planted.append(Planted(entity, form, start, start + len(identifier)))
            text += before + identifier + after + " "
        yield Note(text.rstrip(), planted)

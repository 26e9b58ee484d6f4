"""The ICD-10-CM catalogue: diagnosis titles to search, and inclusion terms whose right answer is known.

Both come from the package `simple-icd-10-cm` (MIT), which carries the April 2026 edition as XML; its import
parses that in about three seconds. Two properties of its public API matter here:

* `get_all_codes` lists 98,505 items, but 39 codes occur twice in a row: a block that holds a single category
  shares its code (B99 "Other infectious diseases", then B99 "Other and unspecified infectious diseases"). The
  first is the block: `prioritize_blocks=True` gives its title.
* Asking each item for its inclusion terms therefore counts the 15 terms of such categories twice: 12,589
  answers, 12,574 different terms.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from he_engine.errors import InvalidInput, MissingExtra


@dataclass(frozen=True, slots=True)
class Term:
    """Another name of a diagnosis: a question with a known right answer."""

    text: str
    code: str  #: the right answer


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Row r is the diagnosis `codes[r]`, called `titles[r]`."""

    codes: list[str]  #: with dots; 39 of them name two rows: a block, then its only category
    titles: list[str]
    terms: list[Term]  #: of the codes above, in catalogue order

    def __len__(self) -> int:
        return len(self.codes)

    def subset(self, rows: int) -> Catalogue:
        """`rows` items spread evenly over all chapters, with their terms.

        Raises InvalidInput unless 1 ≤ rows ≤ len(self).
        """
        if not 1 <= rows <= len(self):
            raise InvalidInput(f"rows: got {rows}, expected 1 to {len(self)}, the size of the catalogue")
        taken = [i * len(self) // rows for i in range(rows)]
        codes = [self.codes[i] for i in taken]
        kept = set(codes)
        return Catalogue(codes, [self.titles[i] for i in taken], [t for t in self.terms if t.code in kept])

    def sample_terms(self, count: int, seed: int) -> list[Term]:
        """`count` different terms (all, where there are fewer), drawn by `seed`; catalogue order."""
        count = min(count, len(self.terms))
        drawn = np.random.default_rng(seed).choice(len(self.terms), count, replace=False)
        return [self.terms[i] for i in sorted(drawn)]


def load_catalogue() -> Catalogue:
    """All of ICD-10-CM. Raises MissingExtra where `simple-icd-10-cm` is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it reads its data by functions that Python calls deprecated
        try:
            import simple_icd_10_cm as icd
        except ImportError:
            raise MissingExtra("simple-icd-10-cm, the catalogue, is not installed: pip install '.[demo]'") from None
    codes: list[str] = icd.get_all_codes(with_dots=True)
    titles: list[str] = []
    terms: list[Term] = []
    previous = ""
    for code, following in zip(codes, [*codes[1:], ""], strict=True):
        block_of_one = code == following and code != previous
        titles.append(_one_line(icd.get_description(code, prioritize_blocks=block_of_one)))
        if not block_of_one:
            terms.extend(Term(_one_line(text), code) for text in icd.get_inclusion_term(code))
        previous = code
    return Catalogue(codes, titles, terms)


def _one_line(text: str) -> str:
    """Single spaces: some entries carry tabs."""
    return " ".join(text.split())

"""The demo's catalogue: the counts, the codes that name two rows, subsets and samples."""

from __future__ import annotations

import sys

import pytest

from he_client.demo.catalogue import Catalogue, load_catalogue
from he_engine.errors import InvalidInput, MissingExtra


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    pytest.importorskip("simple_icd_10_cm", reason="needs the extra [demo]")
    return load_catalogue()


def test_counts(catalogue: Catalogue) -> None:
    assert len(catalogue) == len(catalogue.titles) == 98_505
    assert len(set(catalogue.codes)) == 98_505 - 39
    assert len(set(catalogue.titles)) == 97_768
    assert len(catalogue.terms) == len(set(catalogue.terms)) == 12_574


def test_texts_are_single_lines(catalogue: Catalogue) -> None:
    texts = [*catalogue.titles, *(term.text for term in catalogue.terms)]
    assert all(text and text == " ".join(text.split()) for text in texts)


def test_known_entries(catalogue: Catalogue) -> None:
    assert catalogue.titles[catalogue.codes.index("H54.61")].startswith("Unqualified visual loss, right eye")
    right = {term.text: term.code for term in catalogue.terms}
    assert right["Classical cholera"] == "A00.0"
    assert set(right.values()) <= set(catalogue.codes)


def test_a_code_with_two_rows_is_a_block_and_then_its_category(catalogue: Catalogue) -> None:
    row = catalogue.codes.index("B99")
    assert catalogue.codes[row : row + 3] == ["B99", "B99", "B99.8"]
    assert catalogue.titles[row] == "Other infectious diseases (B99)"
    assert catalogue.titles[row + 1] == "Other and unspecified infectious diseases"


def test_subset_is_spread_and_keeps_its_terms(catalogue: Catalogue) -> None:
    part = catalogue.subset(1000)
    assert len(part) == len(part.titles) == 1000
    assert len({code[0] for code in part.codes}) > 20
    assert part.terms and {term.code for term in part.terms} <= set(part.codes)
    pairs = set(zip(catalogue.codes, catalogue.titles, strict=True))
    assert set(zip(part.codes, part.titles, strict=True)) <= pairs


def test_subset_of_everything_is_everything(catalogue: Catalogue) -> None:
    assert catalogue.subset(len(catalogue)) == catalogue


@pytest.mark.parametrize("rows", [0, -1, 98_506])
def test_subset_refuses_impossible_sizes(catalogue: Catalogue, rows: int) -> None:
    with pytest.raises(InvalidInput, match=f"got {rows}, expected 1 to 98505"):
        catalogue.subset(rows)


def test_sample_is_seeded_and_without_repetition(catalogue: Catalogue) -> None:
    drawn = catalogue.sample_terms(200, seed=1)
    assert len(set(drawn)) == 200
    assert drawn == catalogue.sample_terms(200, seed=1)
    assert drawn != catalogue.sample_terms(200, seed=2)


def test_sample_larger_than_the_terms_is_all_of_them() -> None:
    assert Catalogue([], [], []).sample_terms(5, seed=1) == []


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(MissingExtra, match=r"\.\[demo\]"):
        load_catalogue()

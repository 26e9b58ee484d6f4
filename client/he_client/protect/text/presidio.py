"""Presidio's engine as we use it: on this machine alone, over a blank spaCy tokeniser unless a model is named.

The tokeniser serves Presidio's context: words before a match that make it likelier ("ssn 219099999").
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import spacy
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, Pattern, PatternRecognizer, RecognizerRegistry
from presidio_analyzer.nlp_engine import NlpArtifacts, SpacyNlpEngine
from presidio_analyzer.pattern_recognizer import REGEX_TIMEOUT_SECONDS
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    DateRecognizer,
    DeHealthInsuranceRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    SpacyRecognizer,
    UrlRecognizer,
    UsMbiRecognizer,
    UsSsnRecognizer,
)
from spacy.language import Language
from spacy.tokens import Doc

from he_engine.errors import InvalidInput, MissingExtra

__all__ = ["LANGUAGE", "REGEX_TIMEOUT_SECONDS", "engine"]

LANGUAGE = "en"  #: of stop words and models; patterns have those of several
_SCORE = 0.8  #: of our own patterns
_MONTHS = (
    "jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?|"
    "sep(?:t|tember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_CAPITALS = (
    r"(?-i:(?:Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Okt|Nov|Dec|Dez)\b\.?|January|Januar|February|Februar|March|März|April|May|Mai|June|"
    "Juni|July|Juli|August|September|October|Oktober|November|December|Dezember)"
)
_DATES = {
    "14 March 1956, 14. März 1956": rf"\b{_DAY}(?:st|nd|rd|th)?\.?\s(?:of\s)?(?:{_MONTHS})\.?,?\s\d{{4}}\b",
    "March 14, 1956": rf"\b(?:{_MONTHS})\.?\s{_DAY}(?:st|nd|rd|th)?,?\s\d{{4}}\b",
    "14 March, 14. März": rf"\b{_DAY}(?:st|nd|rd|th)?\.?\s(?:of\s)?{_CAPITALS}(?!\w)",
    "March 14, March 1956": rf"\b{_CAPITALS}\s(?:{_DAY}(?:st|nd|rd|th)?|\d{{4}})\b",
}
_RECORD_LABELS = (
    r"mrn|medical\srecord|(?:patient|case|chart|hospital|record)\s?(?:id|no\.?|number|nr\.?|\#)|"
    r"(?:pat\.?|patienten|fall|akten)-?(?:id|nr\.?|nummer)"
)
_RECORDS = {
    "after a label": rf"(?<=\b(?:{_RECORD_LABELS})(?:\s(?:id|no\.?|number))?\s?[:#=]?\s?)"
    r"(?:[A-Z]{1,4}-?)?\d[\d-]{3,14}\d\b"
}

# Its records may quote the text. What they warn of is checked here and in `recognisers`.
logging.getLogger("presidio-analyzer").setLevel(logging.CRITICAL)


class _Engine(SpacyNlpEngine):
    """With a model that is loaded: Presidio would download one. Where there are no lemmas, words stand for them."""

    def __init__(self, nlp: Language) -> None:
        super().__init__()
        self.nlp: dict[str, Language] = {LANGUAGE: nlp}  # type: ignore[assignment]  # None in the base, until it loads

    def _doc_to_nlp_artifact(self, doc: Doc, language: str) -> NlpArtifacts:
        for token in doc:
            token.lemma_ = token.lemma_ or token.lower_
        return super()._doc_to_nlp_artifact(doc, language)


class _Email(EmailRecognizer):
    """Without the check of the domain: that downloads a list of suffixes, and knows no intranet (anna@ward.local)."""

    def validate_result(self, pattern_text: str) -> None:  # noqa: ARG002
        return None


def engine(names: Sequence[str], model: str | None, regions: Sequence[str]) -> AnalyzerEngine:
    """See Recognisers. Raises InvalidInput, MissingExtra."""
    recognisers: list[EntityRecognizer] = [
        _Email(), UrlRecognizer(), CreditCardRecognizer(), IbanRecognizer(), IpRecognizer(), DateRecognizer(),
        PhoneRecognizer(supported_regions=tuple(regions)), UsSsnRecognizer(), UsMbiRecognizer(),
        DeHealthInsuranceRecognizer(supported_language=LANGUAGE),
        _patterns("DATE_TIME", _DATES), _patterns("MRN", _RECORDS),
    ]  # fmt: skip
    if names:
        recognisers.append(_patterns("PERSON", {"known names": _known(names)}))
    if model is not None:
        recognisers.append(SpacyRecognizer())
    nlp = spacy.blank(LANGUAGE) if model is None else _model(model)
    return AnalyzerEngine(registry=RecognizerRegistry(recognizers=recognisers), nlp_engine=_Engine(nlp))


def _patterns(entity: str, patterns: dict[str, str]) -> PatternRecognizer:
    return PatternRecognizer(entity, patterns=[Pattern(name, pattern, _SCORE) for name, pattern in patterns.items()])


def _known(names: Sequence[str]) -> str:
    """Any white space between words."""
    return r"(?<!\w)(?:" + "|".join(r"\s+".join(map(re.escape, name.split())) for name in names) + r")(?!\w)"


def _model(name: str) -> Language:
    if not (spacy.util.is_package(name) or Path(name).is_dir()):
        raise MissingExtra(f"model {name}: not installed, and no folder; spaCy's documentation says how to install one")
    try:
        return spacy.load(name)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(f"model {name}: spaCy cannot load it ({type(error).__name__})") from None

"""Pipelines: what steps find is replaced, all of it; what recognisers find and what they cannot; nothing is fetched."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st

from he_client import HesearchError, InvalidInput, MissingExtra
from he_client.protect.text import (
    IdCipher,
    Pipeline,
    Pseudonymise,
    PseudonymKey,
    Pseudonyms,
    Recognisers,
    Redact,
    SaltedHash,
    Tokenise,
    Vault,
    VaultKey,
)
from he_client.protect.text.pipeline import TEXTS_AT_A_TIME
from he_client.protect.text.spans import Span, resolve

KEY = PseudonymKey(bytes(range(32)))
PATTERNS = Recognisers()
REDACT_ALL = Redact(*sorted(PATTERNS.entities))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.create(tmp_path / "vault", VaultKey.generate())


# ---- spans -----------------------------------------------------------------------------------------------
@st.composite
def found_spans(draw: st.DrawFn) -> tuple[int, list[Span]]:
    length = draw(st.integers(1, 30))
    ends = st.tuples(st.integers(0, length), st.integers(0, length)).filter(lambda pair: pair[0] != pair[1])
    spans = [
        Span(min(pair), max(pair), f"E{step}", step)
        for pair, step in draw(st.lists(st.tuples(ends, st.integers(0, 3)), max_size=8))
    ]
    return length, spans


@given(found_spans())
def test_all_that_is_found_is_covered_once(given_: tuple[int, list[Span]]) -> None:
    length, found = given_
    resolved = resolve(found, length)
    assert all(a.end <= b.start for a, b in itertools.pairwise(resolved))
    covered = [i for span in resolved for i in range(span.start, span.end)]
    assert set(covered) == {i for span in found for i in range(span.start, span.end)} and len(covered) == len(
        set(covered)
    )
    assert all(span in found for span in resolved if span.step is not None)
    for span in found:  # who loses has a reason
        rivals = [s for s in found if s != span and s.start < span.end and span.start < s.end]
        if all((s.step, s.start - s.end, s.start) > (span.step, span.start - span.end, span.start) for s in rivals):
            assert span in resolved


def test_the_rule_for_overlaps() -> None:
    earlier, longer, shorter, inside = Span(4, 8, "A", 0), Span(6, 14, "B", 1), Span(13, 16, "B", 1), Span(5, 6, "C", 2)
    assert resolve([inside, shorter, longer, earlier], 20) == [earlier, Span(8, 14, "B", None), Span(14, 16, "B", None)]


# ---- pipelines -------------------------------------------------------------------------------------------
def test_each_step_does_its_own(vault: Vault) -> None:
    salted = SaltedHash(bytes(16), "fax")
    pipeline = Pipeline(
        [
            Tokenise("PERSON", vault),
            Pseudonymise("MRN", Pseudonyms(KEY, "mrn")),
            Pseudonymise("CASE", IdCipher(KEY, "case"), pattern=r"case (\d{6,})"),
            Pseudonymise("FAX", salted, pattern=r"fax (\d+)"),
            Redact("EMAIL_ADDRESS", "DATE_TIME"),
        ],
        Recognisers(names=["Anna Meyer"]),
    )
    text = "ANNA\nMeyer (MRN 12345678) case 654321 fax 5550 on 2021-03-04: anna@ward.local. Call Anna Meyer."
    protected = pipeline(text)
    mrn, case = Pseudonyms(KEY, "mrn").of("12345678"), IdCipher(KEY, "case").of("654321")
    first, second = vault.tokens("PERSON", ["ANNA\nMeyer", "Anna Meyer"])
    assert protected == (
        f"{first} (MRN [MRN#{mrn}]) case {case} fax [FAX#{salted.of('5550')}] on [DATE_TIME]: [EMAIL_ADDRESS]. "
        f"Call {second}."
    )
    restored = vault.reveal(protected)
    assert restored.startswith("ANNA\nMeyer (MRN") and restored.endswith("Call Anna Meyer.")
    again = pipeline(protected)
    assert again == protected.replace(case, IdCipher(KEY, "case").of(case)), "the rest shows that it was replaced"


def test_remains_of_overlaps_are_redacted() -> None:
    pipeline = Pipeline([Redact("CODE", pattern="X-12"), Redact("ROOM", pattern=r"12 east wing")])
    assert pipeline("in X-12 east wing") == "in [CODE][ROOM]"


def test_a_pattern_without_its_group_is_taken_whole() -> None:
    pipeline = Pipeline([Redact("ID", pattern=r"id(?: (\d+))?")])
    assert pipeline("id 12, id") == "id [ID], [ID]"


def test_patterns_alone_need_no_recogniser(vault: Vault) -> None:
    pipeline = Pipeline([Tokenise("ID", vault, pattern=r"\d+")])
    texts = [f"text {i} of \ud800" for i in range(TEXTS_AT_A_TIME + 1)]
    protected = pipeline.batch(texts)
    assert [vault.reveal(text) for text in protected] == texts
    assert len(vault) == TEXTS_AT_A_TIME + 1 and vault._version == 3, "written once for each thousand"
    assert pipeline.batch([]) == [] and pipeline("") == "" and pipeline("none") == "none"


def test_results_are_deterministic() -> None:
    pipeline = Pipeline([Pseudonymise("MRN", Pseudonyms(KEY, "mrn")), Redact("URL", "PHONE_NUMBER")])
    texts = ["MRN 1234567, see https://example.org/7 or call 030 1234567", "mrn: AB-1234567"] * 5
    assert pipeline.batch(texts) == [pipeline(text) for text in texts] == pipeline.batch(texts)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    pipeline = Pipeline([REDACT_ALL], PATTERNS)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidInput, match="text 0: got a lone surrogate"):
            pipeline(text)
        return
    spans = pipeline.find(text)
    kept = [
        text[a:b] for a, b in zip([0, *(s.end for s in spans)], [*(s.start for s in spans), len(text)], strict=True)
    ]
    assert pipeline(text) == "".join(
        part for pair in zip(kept, [*(f"[{s.entity}]" for s in spans), ""], strict=True) for part in pair
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Redact("PERSON")], "patterns find no names"),
        ([Redact("NOBODY")], "got NOBODY, expected one of CREDIT_CARD"),
        ([Redact("URL"), Redact("URL")], "URL twice"),
    ],
)
def test_steps_that_cannot_work(steps: list[Redact], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Pipeline(steps, PATTERNS)


def test_bad_steps_and_texts() -> None:
    for make, words in (
        (lambda: Redact(), "one or more"),
        (lambda: Redact("A", "B", pattern="x"), "with a pattern, one"),
        (lambda: Redact("lower"), "entity"),
        (lambda: Redact("A", pattern="("), "pattern"),
        (lambda: Recognisers(names="Anna"), "one text"),
        (lambda: Recognisers(names=["Anna", " "]), "empty name"),
        (lambda: Recognisers(min_score=2), "0 to 1"),
    ):
        with pytest.raises(InvalidInput, match=words):
            make()
    with pytest.raises(InvalidInput, match="text 1: text: got bytes"):
        Pipeline([Redact("ID", pattern="x")]).batch(["x", b"x"])  # type: ignore[list-item]
    with pytest.raises(InvalidInput) as raised:
        Pipeline([Pseudonymise("ID", IdCipher(KEY, "id"), pattern=r"\d+")])("id 98765")
    assert "98765" not in str(raised.value)


# ---- recognisers -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("entity", "text"),
    [
        ("EMAIL_ADDRESS", "write to <anna.meyer@ward.local>"),
        ("PHONE_NUMBER", "call <+49 30 1234567>"),
        ("PHONE_NUMBER", "call <(212) 555-0187>"),
        ("CREDIT_CARD", "card <4111 1111 1111 1111>"),
        ("IBAN_CODE", "IBAN <DE89 3704 0044 0532 0130 00>"),
        ("IP_ADDRESS", "from <192.168.0.7>"),
        ("URL", "at <https://portal.example.org/p?id=7>"),
        ("US_SSN", "SSN <219-09-9999>"),
        ("US_SSN", "ssn <219099999>"),
        ("US_MBI", "MBI <1EG4-TE5-MK73>"),
        ("DE_HEALTH_INSURANCE", "KVNR <A000500015>"),
        ("MRN", "MRN: <12345678>"),
        ("MRN", "Medical record number <AB-1234567>"),
        ("MRN", "patient ID #<1234567>"),
        ("MRN", "Fallnummer <99887766>"),
        ("DATE_TIME", "born <03/14/1956>"),
        ("DATE_TIME", "geb. <14.03.1956>"),
        ("DATE_TIME", "on <14 March 1956>"),
        ("DATE_TIME", "on <March 14th, 1956>"),
        ("DATE_TIME", "am <14. März 1956>"),
        ("DATE_TIME", "review on <14 March>"),
        ("DATE_TIME", "am <3. Okt.> wieder"),
        ("DATE_TIME", "stroke in <May 2019>"),
        ("DATE_TIME", "on <March 3rd>"),
    ],
)  # fmt: skip
def test_what_patterns_find(entity: str, text: str) -> None:
    plain = text.replace("<", "").replace(">", "")
    (span,) = Pipeline([REDACT_ALL], PATTERNS).find(plain)
    assert (span.entity, plain[span.start : span.end]) == (entity, text[text.index("<") + 1 : text.index(">")])


@pytest.mark.parametrize(
    "text",
    ["BP 120/80, HR 72, 98.6 F", "pain 5/10", "C50.9 and E11.65", "take 3.5 mg 3/day", "Hb 13.2 g/dl, WBC 11.4",
     "219099999 cells", "bed 2 may march in 12 marches", "Anna Meyer lives in Köln"],
)  # fmt: skip
def test_what_patterns_leave(text: str) -> None:
    assert Pipeline([REDACT_ALL], PATTERNS)(text) == text


def test_known_names() -> None:
    pipeline = Pipeline([Redact("PERSON")], Recognisers(names=["Anna", "Anna Meyer", "O'Neil (Jr.)"]))
    text = "Anna  Meyer, ANNA MEYER, Anna, Annabel, Dr. o'neil (jr.) and Meyer"
    assert pipeline(text) == "[PERSON], [PERSON], [PERSON], Annabel, Dr. [PERSON] and Meyer"


def test_a_model_of_spacys_finds_what_it_is_made_for(tmp_path: Path) -> None:
    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Zaphod"}])  # type: ignore[attr-defined]
    model.to_disk(tmp_path / "model")
    recognisers = Recognisers(model=str(tmp_path / "model"))
    assert "PERSON" in recognisers.entities and "LOCATION" in recognisers.entities
    assert Pipeline([Redact("PERSON", "US_SSN")], recognisers)("Zaphod, ssn 219099999") == "[PERSON], ssn [US_SSN]"
    with pytest.raises(MissingExtra, match="not installed"):
        Recognisers(model="no_such_model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="cannot load"):
        Recognisers(model=str(tmp_path / "empty"))


OFFLINE = """
import sys
asked = []
outside = ("socket.connect", "socket.get", "socket.send", "urllib.")
sys.addaudithook(lambda event, _: asked.append(event) if event.startswith(outside) else None)
from he_client.protect.text import Pipeline, Recognisers, Redact
recognisers = Recognisers(names=["Anna Meyer"])
pipeline = Pipeline([Redact(*sorted(recognisers.entities))], recognisers)
print(pipeline("Anna Meyer, anna@example.org, https://example.org, 10.0.0.7"))
print(asked)
import socket
with socket.socket() as free, socket.socket() as caller:
    free.bind(("127.0.0.1", 0))
    caller.connect_ex(free.getsockname())
print(asked)
"""


def _python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_nothing_asks_the_network_or_logs(tmp_path: Path) -> None:
    """By the interpreter's own audit events; the last line shows that they would be there."""
    ran = _python(OFFLINE, HOME=str(tmp_path))
    assert ran.stdout == "[PERSON], [EMAIL_ADDRESS], [URL], [IP_ADDRESS]\n[]\n['socket.connect']\n" and not ran.stderr
    assert not list(tmp_path.iterdir()), "no cache of anything"


def test_a_pattern_that_was_given_up_is_an_error() -> None:
    """Presidio goes on without it, as if nothing had been there."""
    script = "from tests.test_text_pipeline import given_up; given_up()"
    ran = _python(script, REGEX_TIMEOUT_SECONDS="0")
    assert ran.returncode == 0, ran.stderr


def given_up() -> None:
    with pytest.raises(HesearchError, match="given up"):
        Pipeline([REDACT_ALL], PATTERNS)("anna@example.org")


def test_without_the_extra_patterns_of_ones_own_still_work() -> None:
    script = """
import sys
sys.modules["presidio_analyzer"] = None
from he_client import MissingExtra
from he_client.protect.text import Pipeline, Redact
print(Pipeline([Redact("ID", pattern="[0-9]+")])("id 17"))
try:
    Pipeline([Redact("URL")])
except MissingExtra as error:
    print(error)
"""
    ran = _python(script)
    assert ran.stdout == "id [ID]\npresidio-analyzer is not installed: pip install '.[protect]'\n", ran.stderr

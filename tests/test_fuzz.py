"""Every parser, given inputs that are nearly right: only HesearchErrors, quickly, in bounded memory (tests/fuzz)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from he_engine.errors import InvalidInput
from tests.fuzz.mutate import fields, joined, mutate_bytes
from tests.fuzz.run import Outcome, fuzz, one
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

INPUTS, SEED = 20_000, 1


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    made = TARGETS[request.param]()
    yield made
    made.close()


@pytest.mark.filterwarnings("ignore")
def test_no_input_breaks_a_parser(target: Target) -> None:
    """Inputs that once failed come first: they are in tests/fuzz/corpus."""
    inputs = INPUTS // target.cost
    outcome = fuzz(target, inputs, SEED)
    assert not outcome.failures, [f"{what}: {data[:200].hex()}" for what, data in outcome.failures.items()]
    assert outcome.runs == inputs
    assert 0.005 < outcome.taken / inputs < 0.95, "some inputs are right, and some are not"


def test_samples_are_taken(target: Target) -> None:
    """Changed samples reach what lies behind the first check."""
    for sample in target.samples:
        outcome = Outcome()
        one(target, sample, outcome, measured=False)
        assert not outcome.failures
    assert target.samples


def test_a_broken_parser_is_noticed() -> None:
    def parse(data: bytes) -> None:
        if not data:
            raise InvalidInput("none")
        if data[0] == 255:
            raise KeyError(data[0])
        if data[0] == 254:
            bytearray(1 << 20)

    broken = Target(name="broken", run=parse, samples=[b"abc"], mutate=mutate_bytes, limit_bytes=1 << 17)
    error, memory = sorted(fuzz(broken, 20_000, SEED).failures)
    assert error.startswith("KeyError in test_fuzz.py, parse") and memory == "over twice 131072 bytes of memory"


def test_the_same_seed_gives_the_same_inputs() -> None:
    for name, make in TARGETS.items():
        if name in ("requests", "responses"):  # their samples hold ciphertexts
            continue
        target = make()
        first, again = ([target.mutate(rng, sample, target.samples) for sample in target.samples * 50]
                        for rng in (Random(5), Random(5)))  # fmt: skip
        assert first == again and len(set(first)) > len(first) // 2
        target.close()


def test_fields_and_joined_are_inverse() -> None:
    for sample in TARGETS["manifest"]().samples:
        message = fields(sample)
        assert message and joined(message) == sample

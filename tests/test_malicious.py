"""A server that lies, over gRPC: what `python -m tests.malicious.run` does, in short; and that it would notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from he_client import Client, TamperedAnswerError, rejections
from tests.malicious.answers import blocks, split
from tests.malicious.forging import adding, leaked, unseen
from tests.malicious.lies import LIES, Lie
from tests.malicious.run import Campaign, Outcome, campaign
from tests.malicious.scenes import DIFFERENT
from tests.malicious.server import Call, Refused, Script, Tell
from tests.malicious.world import EVERYTHING, NOTES, SCRAPS, exact

LIES_TOLD = 600
DECRYPTED = "decrypted what no honest server had sent"
Trace = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def told() -> Iterator[Campaign]:
    with campaign(seed=2) as made:
        yield made


@pytest.fixture(autouse=True)
def _outcome(told: Campaign) -> None:
    told.outcome = Outcome()


def test_every_lie_is_refused_or_harmless(told: Campaign) -> None:
    for number in range(LIES_TOLD):
        told.one(number)
    told.honest()
    outcome = told.outcome
    assert outcome.failures == []
    assert len(outcome.kinds) == len(LIES) >= 37
    assert outcome.detected > 0.8 * LIES_TOLD
    assert outcome.decrypted["answers"] and outcome.decrypted["indexes"], "what is not lied about is decrypted"
    assert not outcome.decrypted["wrong answers"] + outcome.decrypted["wrong indexes"]


# ---- the suite would notice ----------------------------------------------------------------------------------
def test_a_forgery_with_the_fingerprint_succeeds_and_is_noticed(told: Campaign) -> None:
    change = unseen(leaked(told.stage.reader(hasty=False)))
    assert any(change)
    for number in range(30):
        told.one(number, Lie("with F", "search", "Answer", adding(change), ()))
    assert told.outcome.decrypted["wrong answers"] > 0
    decrypted, believed = (len([f for f in told.outcome.failures if what in f]) for what in (DECRYPTED, DIFFERENT))
    assert decrypted == 30, "each passes the check"
    assert believed > 0, "some of the time, all of the random scores are some that vectors may have"
    told.outcome = Outcome()
    told.one(0, Lie("without F", "search", "Answer", adding([1, 2, 3, 4]), (TamperedAnswerError,)))
    assert not told.outcome.failures and told.outcome.detected == 1


def test_a_client_that_verifies_nothing_is_noticed(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_engine.verify.equal", lambda *_: True)
    names = ("one residue", "a multiple of a block added", "two segments swapped", "a replayed answer")
    for number in range(12):
        told.one(number, LIES[names[number % 4]])
    assert len([f for f in told.outcome.failures if DECRYPTED in f]) == 12
    assert any(DIFFERENT in f for f in told.outcome.failures)


def test_a_client_without_digests_is_noticed(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints have no other protection."""
    lies = [LIES[f"hints altered {where} score positions"] for where in ("at", "off the")]
    monkeypatch.setattr("he_client.parts.PartReader.download", _unchecked)
    for number in range(8):
        told.one(number, lies[number % 2])
    assert told.outcome.detected < 8 and told.outcome.failures


def _unchecked(self: Any, entry: Any, kind: Any) -> Any:
    return self.read(entry, kind, 0, next(p.length_bytes for p in entry.parts if p.kind == kind))


def test_a_client_without_pins_is_noticed(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_client.pins.Pin.require_successor", lambda *_: None)
    told.one(0, LIES["an older state, to a client that comes again"])
    assert told.outcome.failures
    told.stage.restart()


# ---- on the wire ---------------------------------------------------------------------------------------------
def trace(told: Campaign, tell: Tell | None) -> tuple[Trace, bool]:
    """What a server sees of a search, and of a search and a look for news after it; whether the first was refused.

    Of each call: method, requests (of ciphertexts the lengths: they are new ones), how many responses were taken, and
    whether the client left before their end.
    """
    world, reader = told.world, told.stage.reader(hasty=False)
    reader.search(world.queries[0])  # payloads are fetched once
    told.server.script = tell and Script(tell, lambda method, _: method == "Answer", 0, False, np.random.default_rng(1))
    told.server.record.clear()
    try:
        reader.search(world.queries[0], k=EVERYTHING)
        refused = False
    except TamperedAnswerError:
        refused = True
    finally:
        told.server.script = None
    reader.search(world.queries[1], k=5)
    reader.count()
    calls: Trace = []
    for call in told.server.record:
        sent = [len(r.chunk) if r.WhichOneof("content") == "chunk" else r for r in call.requests[1:]]
        calls.append((call.method, call.requests[0].SerializeToString(), sent, call.responses, call.left))
    return calls, refused


def slowly(tell: Tell) -> Tell:
    """Piece by piece, so that who had enough could leave."""

    def slow(call: Call) -> Iterator[Any]:
        for piece in sorted(split(tell(call)), key=lambda p: (p.segment_id, p.first_block)):
            time.sleep(0.003)
            yield piece

    return slow


#: Lies that keep the pieces of the honest answer and change their numbers.
VERIFIED = sorted(name for name, lie in LIES.items() if lie.of_residues and "version" not in name)


def test_right_and_wrong_answers_look_alike_on_the_wire(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two blocks: the first is refused while most of the answer is still to come."""
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 2)
    right, refused = trace(told, slowly(blocks))
    assert not refused and [call[0] for call in right] == ["Answer", "Answer", "ReadManifest"]
    assert len(VERIFIED) > 15
    for name in VERIFIED:
        wrong, refused = trace(told, slowly(LIES[name].tell))
        assert refused, name
        assert wrong == right, name


def test_a_worn_fingerprint_looks_alike_on_the_wire(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many rejections nothing is verified; the server is asked as before, and sees nothing of it."""
    told.stage.restart()
    right, _ = trace(told, slowly(blocks))
    monkeypatch.setattr(rejections, "MAX", 0)
    told.server.record.clear()
    with pytest.raises(TamperedAnswerError, match="verifies no more"):
        told.stage.reader(hasty=False).search(told.world.queries[0])
    [call] = told.server.record
    assert (call.method, call.requests[0].SerializeToString(), call.left) == (right[0][0], right[0][1], False)


def test_rejections_wear_a_fingerprint_until_compaction(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "MAX", 3)
    world = told.world
    with told.stage.client() as client:
        reader = told.stage.open(client, SCRAPS)

        def refused(tell: Tell | None, match: str) -> None:
            wanted = (
                Script(tell, lambda method, _: method == "Answer", 0, True, np.random.default_rng(1)) if tell else None
            )
            told.server.script = wanted
            with pytest.raises(TamperedAnswerError, match=match):
                reader.search(world.queries[0])
            told.server.script = None

        for _ in range(3):
            refused(LIES["zeros"].tell, "fail verification")
        refused(None, "verifies no more")
        reader.compact(progress=False)
        world.watch.know(reader)
        assert exact(reader.search(world.queries[:1], k=EVERYTHING)) == world.expected[SCRAPS]
    world.renew(SCRAPS)


def test_where_reactions_differ_on_the_wire(told: Campaign) -> None:
    """docs/malicious.md names these: a piece in a wrong place ends the call, a call that breaks off is not asked again
    where a lie was noticed, and `direct` payloads are fetched for rows that were found."""

    def broken_off(tell: Tell) -> Tell:
        def tell_and_fail(call: Call) -> Iterator[Any]:
            yield from tell(call)
            time.sleep(0.1)
            raise Refused(grpc.StatusCode.UNAVAILABLE)

        return tell_and_fail

    for tell, asked in ((blocks, 2), (LIES["zeros"].tell, 1)):
        calls, refused = trace(told, broken_off(tell))
        assert [call[0] for call in calls] == ["Answer"] * asked + ["Answer", "ReadManifest"]
        assert refused is (asked == 1)
    calls, refused = trace(told, slowly(lambda call: 2 * blocks(call)))
    assert refused and calls[0][-1] and [call[0] for call in calls] == ["Answer", "Answer", "ReadManifest"]
    with Client(told.server.address, insecure=True, threads=1) as client:
        reader = client.open_collection(NOTES, key=told.world.key, payloads="direct")
        told.server.record.clear()
        reader.search(told.world.queries[0], k=2)
        assert [call.method for call in told.server.record] == ["Answer", "ReadSegmentPart", "ReadSegmentPart"]

"""A server that lies, over gRPC: what `python -m tests.malicious.run` does, in short; and that it would notice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from he_client import Client, Collection, HesearchError, TamperedAnswerError, rejections
from he_client.arrival import grouped
from he_client.searching import Searcher
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
    sums = leaked(told.stage.reader(hasty=False))
    for number in range(29):  # another change each time: what it does to rows of zeros is the same for every query
        change = unseen(sums, number)
        assert any(change)
        told.one(number, Lie("with F", "search", "Answer", adding(change, number), ()))
    assert told.outcome.decrypted["wrong answers"] > 0
    decrypted, believed = (len([f for f in told.outcome.failures if what in f]) for what in (DECRYPTED, DIFFERENT))
    assert decrypted == 29, "each passes the check"
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
def trace(told: Campaign, tell: Tell | None, *, queries: int = 1, always: bool = False) -> tuple[Trace, str]:
    """What a server sees of a search, and of a search and a look for news after it; the error of the first, by name.

    Of each call: method, connection, metadata, requests (of ciphertexts the lengths: they are new ones), how many
    responses were taken, and whether the client left before their end. Lied about is the first call of the first
    search, or all of them.
    """
    world, reader = told.world, told.stage.reader(hasty=False)
    reader.search(world.queries[0])  # payloads are fetched once
    rng = np.random.default_rng(1)
    told.server.script = tell and Script(tell, lambda method, _: method == "Answer", 0, always, rng)
    told.server.record.clear()
    error = ""
    try:
        reader.search(world.queries[:queries], k=EVERYTHING)
    except HesearchError as raised:
        error = type(raised).__name__
    finally:
        told.server.script = None
    reader.search(world.queries[1], k=5)
    reader.count()
    calls: Trace = []
    for call in told.server.record:
        sent = [len(r.chunk) if r.WhichOneof("content") == "chunk" else r for r in call.requests[1:]]
        header = call.requests[0].SerializeToString()
        calls.append((call.method, call.peer, call.metadata, header, sent, call.responses, call.left))
    return calls, error


def methods(calls: Trace) -> list[str]:
    return [call[0] for call in calls]


def pieces(tell: Tell, call: Call) -> list[Any]:
    """Block by block, in order."""
    return sorted(split(tell(call)), key=lambda p: (p.segment_id, p.first_block))


def slowly(tell: Tell) -> Tell:
    """Piece by piece, so that who had enough could leave."""

    def slow(call: Call) -> Iterator[Any]:
        for piece in pieces(tell, call):
            time.sleep(0.003)
            yield piece

    return slow


#: Lies that keep the pieces of the honest answer and change their numbers.
VERIFIED = sorted(name for name, lie in LIES.items() if lie.of_residues and "version" not in name)
REFUSED = "TamperedAnswerError"


def require_alike(told: Campaign, shown: Callable[[Tell], Tell], right: Trace, **how: Any) -> None:
    """Every lie about numbers, told in this way, is refused and looks like `right`."""
    assert len(VERIFIED) > 15
    for name in VERIFIED:
        wrong, error = trace(told, shown(LIES[name].tell), **how)
        assert error == REFUSED, name
        assert wrong == right, name


def test_right_and_wrong_answers_look_alike_on_the_wire(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two blocks: the first is refused while most of the answer is still to come."""
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 2)
    right, error = trace(told, slowly(blocks))
    assert not error and methods(right) == ["Answer", "Answer", "ReadManifest"]
    require_alike(told, slowly, right)


class Judged:
    """Groups that a client has verified, or refused, since the last call began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self._count = 0
        recover = Searcher._recover

        def counted(*arguments: Any) -> Any:
            try:
                return recover(*arguments)
            finally:
                with self._changed:
                    self._count += 1
                    self._changed.notify_all()

        monkeypatch.setattr(Searcher, "_recover", counted)

    def then(self, tell: Tell, groups: int, refusal: Refused) -> Tell:
        """The answer, and when so many groups of it have been judged, an error."""

        def told(call: Call) -> Iterator[Any]:
            self._count = 0
            yield from pieces(tell, call)
            with self._changed:
                assert self._changed.wait_for(lambda: self._count == groups, 60)
            raise refusal

        return told


BREAKS = [
    (Refused(grpc.StatusCode.UNAVAILABLE), ["Answer"], ""),
    (Refused(grpc.StatusCode.ABORTED, "Conflict"), ["ReadManifest", "Answer"], ""),
    (Refused(grpc.StatusCode.NOT_FOUND, "NotFound"), ["ReadManifest", "Answer"], ""),
    (Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "Overloaded"), ["Answer"], ""),
    (Refused(grpc.StatusCode.INTERNAL), [], "HesearchError"),
    (Refused(grpc.StatusCode.DATA_LOSS, "TamperedDataError"), [], "DamagedDataError"),
]


@pytest.mark.parametrize(("refusal", "again", "error"), BREAKS, ids=[str(b[0].code) for b in BREAKS])
def test_a_call_that_breaks_off_looks_alike_whatever_was_answered(
    told: Campaign, monkeypatch: pytest.MonkeyPatch, refusal: Refused, again: list[str], error: str
) -> None:
    """After the whole answer, which the client has judged by then: what it does next does not depend on its verdict."""
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 2)
    judged, groups = Judged(monkeypatch), len(grouped(*told.stage.reader(hasty=False)._state.current))
    assert groups > 1

    def breaking(tell: Tell) -> Tell:
        return judged.then(tell, groups, refusal)

    right, found = trace(told, breaking(blocks))
    assert found == error, "a right answer that breaks off is asked for again where that can help"
    assert methods(right) == ["Answer", *again, "Answer", "ReadManifest"]
    require_alike(told, breaking, right)


def test_a_call_that_breaks_off_amid_the_answer(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first group, which is right or wrong."""
    monkeypatch.setattr("he_client.arrival.GROUP_BLOCKS", 2)
    judged, reader = Judged(monkeypatch), told.stage.reader(hasty=False)
    first = {s.id for s in grouped(*reader._state.current)[0].segments}

    def beginning(tell: Tell) -> Tell:
        def told_first(call: Call) -> list[Any]:
            return [piece for piece in tell(call) if piece.segment_id in first]

        return judged.then(told_first, 1, Refused(grpc.StatusCode.UNAVAILABLE))

    right, error = trace(told, beginning(blocks))
    assert not error and methods(right) == ["Answer", "Answer", "Answer", "ReadManifest"]
    seen = set()
    for name in VERIFIED:  # some of them change other groups alone
        wrong, error = trace(told, beginning(LIES[name].tell))
        seen.add(error)
        assert wrong == right, name
    assert seen <= {"", REFUSED} and REFUSED in seen


def test_conflicts_without_end_look_alike(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)

    def breaking(tell: Tell) -> Tell:
        return judged.then(tell, 1, Refused(grpc.StatusCode.ABORTED, "Conflict"))

    right, error = trace(told, breaking(blocks), always=True)
    assert error == "Conflict" and methods(right).count("Answer") == 16 + 1
    wrong, error = trace(told, breaking(LIES["zeros"].tell), always=True)
    assert error == REFUSED and wrong == right


def test_a_search_of_several_calls_makes_all_of_them(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is answered wrongly, or all are; the later ones are made all the same."""
    monkeypatch.setattr("he_client.searching.CALL_BYTES", 1)
    for always in (False, True):
        right, error = trace(told, slowly(blocks), queries=3, always=always)
        assert not error and methods(right) == ["Answer"] * 4 + ["ReadManifest"]
        require_alike(told, slowly, right, queries=3, always=always)


def test_a_worn_fingerprint_looks_alike_on_the_wire(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many rejections nothing is verified; the server is asked as before, and sees nothing of it."""
    monkeypatch.setattr("he_client.searching.CALL_BYTES", 1)
    told.stage.restart()
    right, _ = trace(told, slowly(blocks), queries=3)
    monkeypatch.setattr(rejections, "MAX", 0)
    told.server.record.clear()
    with pytest.raises(TamperedAnswerError, match="verifies no more"):
        told.stage.reader(hasty=False).search(told.world.queries[:3], k=EVERYTHING)
    assert [(c.method, c.peer, c.requests[0].SerializeToString(), c.left) for c in told.server.record] == [
        (method, peer, header, left) for method, peer, _, header, _, _, left in right[:3]
    ]


def answered(told: Campaign, reader: Collection, tell: Tell | None) -> str:
    """A search whose answers are `tell`; the error of it, or nothing where the results are the honest ones."""
    rng = np.random.default_rng(1)
    told.server.script = tell and Script(tell, lambda method, _: method == "Answer", 0, True, rng)
    try:
        results = exact(reader.search(told.world.queries[:1], k=EVERYTHING))
    except TamperedAnswerError as error:
        return str(error)
    finally:
        told.server.script = None
    assert results == told.world.expected[SCRAPS]
    return ""


def test_rejections_wear_a_fingerprint_until_it_is_rebuilt(told: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "MAX", 3)
    with told.stage.client() as client:
        reader = told.stage.open(client, SCRAPS)
        for _ in range(2):
            for _ in range(3):
                assert "fail verification" in answered(told, reader, LIES["zeros"].tell)
            assert "verifies no more" in answered(told, reader, None)
            assert reader.reseal_fingerprints(progress=False).rebuilt == 3
            told.world.watch.know(reader)
            assert not answered(told, reader, None)
    told.world.renew(SCRAPS)


def test_a_leaked_fingerprint_forges_nothing_after_it_was_rebuilt(told: Campaign) -> None:
    with told.stage.client() as client:
        reader = told.stage.open(client, SCRAPS)
        change = unseen(leaked(reader))
        assert any(change)
        before = told.world.watch.counts["wrong answers"]
        with contextlib.suppress(AssertionError):  # random scores, if each is one that vectors may have
            answered(told, reader, adding(change))
        believed = told.world.watch.counts["wrong answers"]
        assert believed > before, "it passes, and is decrypted"
        reader.reseal_fingerprints(everything=True, progress=False)
        told.world.watch.know(reader)
        for _ in range(10):
            assert "fail verification" in answered(told, reader, adding(change))
        assert told.world.watch.counts["wrong answers"] == believed
        assert not answered(told, reader, None)
    told.world.renew(SCRAPS)


def test_where_reactions_differ_on_the_wire(told: Campaign) -> None:
    """docs/malicious.md names these: a piece in a wrong place ends the call, and `direct` payloads are fetched for rows
    that were found."""
    calls, error = trace(told, slowly(lambda call: 2 * blocks(call)))
    assert error == REFUSED and calls[0][-1] and methods(calls) == ["Answer", "Answer", "ReadManifest"]
    with Client(told.server.address, insecure=True, threads=1) as client:
        reader = client.open_collection(NOTES, key=told.world.key, payloads="direct")
        told.server.record.clear()
        reader.search(told.world.queries[0], k=2)
        assert [call.method for call in told.server.record] == ["Answer", "ReadSegmentPart", "ReadSegmentPart"]
        told.server.record.clear()
        rng = np.random.default_rng(1)
        told.server.script = Script(LIES["zeros"].tell, lambda method, _: method == "Answer", 0, False, rng)
        with pytest.raises(TamperedAnswerError):
            reader.search(told.world.queries[0], k=2)
        told.server.script = None
        assert [call.method for call in told.server.record] == ["Answer"]
